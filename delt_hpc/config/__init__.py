"""The configuration: its schema, its files, ready recipes."""
