"""HTTP/2 for a server, without sockets (RFC 9113, RFC 7541).

Bytes in, events and bytes out. What a client may make it hold or do is bounded everywhere.
"""
