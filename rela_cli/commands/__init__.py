"""The commands: one file or folder a command; a command line in, text out."""
