"""The configuration: schema, loading and ready recipes."""
