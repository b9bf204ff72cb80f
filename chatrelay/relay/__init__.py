"""What messages do: the login state of a connection, who is here, and the one path of a message.

Everything here is pure: a message is submitted, logged, delivered and answered by calls on neighbours that are handed
in. This package must not know sockets, how a message is encoded, or where it is stored.
"""
