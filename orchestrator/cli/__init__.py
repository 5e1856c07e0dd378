"""The command line: a file for each family of commands, and what people read while a command works."""
