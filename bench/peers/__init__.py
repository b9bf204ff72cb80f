"""The peers' programs: one small file each, with the same protocol, written as its library's documentation shows.

They accept every SESSID as the uID, without a request to a session page. They send a message to every connection of
touID, and answer the sender. They log nothing, limit nothing, and check little; the tables say so beside their figures.
"""
