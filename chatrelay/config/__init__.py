"""The options of the relay: their defaults, their checks, and where each one is set.

One class is the whole list; the command line, the environment and the TOML file are read into it. This package must
not know what the relay does with an option.
"""
