"""The registered data sets and the sources of their images."""
