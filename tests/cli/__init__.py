"""A package, since tests of commands and of their tasks have the same file names."""
