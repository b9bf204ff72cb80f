"""The peers' programs: one small file each, doing the same job on the same wire, as its library's documentation would.

A SESSID is believed (no webserver is asked: uID = SESSID), a message goes to every connection of touID, and its
sender is answered. They log nothing, limit nothing, and check little; the tables say so beside their figures.
"""
