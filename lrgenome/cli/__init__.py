"""The command line: options, one thin file a command, and the mapping from errors to exit codes."""
