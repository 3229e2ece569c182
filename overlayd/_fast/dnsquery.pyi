MAX_DATAGRAM: int
"""Bytes of the largest DNS datagram that we send, or take."""

SECRET: int
"""Bytes of the secret that server cookies are made with."""

def wire_name(text: str) -> bytes:
    """A name as it stands in messages (RFC 1035, section 3.1), in lower case; "" and "." are the root.

    ValueError when a label is empty or longer than 63 bytes, or the whole is longer than 255, or is not ASCII.
    """

def server_cookie(secret: bytes, client_cookie: bytes, client: bytes) -> bytes:
    """The 8 bytes that a client at this packed address hears back behind its own 8 (RFC 7873, appendix B.1)."""
