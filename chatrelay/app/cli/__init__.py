"""The `chatrelay` command: one module a command, the command line in `main`, and what all of them print in `terminal`.

What a command prints on standard output is data; everything else goes to standard error. This package must not run a
relay: twistd does.
"""
