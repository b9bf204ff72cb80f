"""Messages: the login state of a connection, the connections of each user, and the one path of a message.

Everything here is pure, apart from Deferreds and the log: a message is submitted, logged, delivered and answered by
calls on objects that are passed in. Every user may write to every other. This package must not know sockets, how a
message is encoded, or where it is stored.
"""
