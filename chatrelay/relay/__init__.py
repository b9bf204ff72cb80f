"""Messages: the login state of a connection, the connections of each user, and the one path of a message.

Everything here is pure, apart from Deferreds and log messages: a message is submitted, logged, delivered and answered
by calls on objects that are passed in. Every user may send messages to every other user. This package must not know
sockets, how a message is encoded, or where it is stored.
"""
