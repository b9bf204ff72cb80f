"""The `chatrelay` command: a module for each command, `main` for the command line, `terminal` for input and output.

Only a command's result goes to standard output. Everything else goes to standard error. This package must not run a
relay: twistd does.
"""
