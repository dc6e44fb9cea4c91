"""The registered data sets and where their images come from."""
