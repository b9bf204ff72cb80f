"""The relay as a program: built from its parts, started by twistd, stopped by signals, and the `chatrelay` command.

Everything that belongs to the process is here: endpoints, certificates, descriptors, signals, the log of the process,
systemd. This package must not know what a message means. Of the other packages, only the demo imports this one.
"""
