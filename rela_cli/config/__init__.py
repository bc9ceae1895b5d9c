"""From a command line to a checked config: schema, parts, composing, messages about what is wrong."""
