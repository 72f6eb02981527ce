"""The command line: parse arguments, call the library, print. Each command has its own file, imported when it is called."""
