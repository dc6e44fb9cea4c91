"""Export of a finished run as a data set that can be used without this package."""
