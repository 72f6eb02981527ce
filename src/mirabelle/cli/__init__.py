"""The command line: parse, call, print. One file per command, imported when it is called."""
