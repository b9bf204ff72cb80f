"""Limits that are counted or timed, as values.

Everything here is pure: the time is passed in, and the caller decides what follows when a limit is reached. This
package must not know sockets, sessions or what a message means, and must not close or answer anything.
"""
