"""How a TURN server is written: `host:port`, or a URI of RFC 7065.

Owns: the scheme and the transport.  Must not know: which hosts and ports are legal, or how a server is reached.

    turn.example:3478                       UDP
    turn:turn.example:3478?transport=tcp    TCP
    turns:turn.example:5349                 TLS over TCP
"""

import re
from typing import Literal, NamedTuple

# Protocol constants (RFC 8656 18).
PORT, TLS_PORT = 3478, 5349

Transport = Literal["udp", "tcp", "tls"]

_URI = re.compile(r"(turns?):(.*?)(?:\?(.*))?", re.IGNORECASE | re.DOTALL)


class Server(NamedTuple):
    """at: `host:port`, or as it was written until the port has been made certain."""

    at: str
    transport: Transport = "udp"

    @property
    def default_port(self) -> int:
        return TLS_PORT if self.transport == "tls" else PORT

    def __str__(self) -> str:
        """The one way that we write it: `host:port` for UDP, as it always was."""
        match self.transport:
            case "udp":
                return self.at
            case "tcp":
                return f"turn:{self.at}?transport=tcp"
            case "tls":
                return f"turns:{self.at}"


def read(text: str) -> Server:
    """ValueError says what is wrong.  A host that is called `turn` keeps its port: `turn:3478` is no URI."""
    match = _URI.fullmatch(text)
    if match is None or match[2].isdecimal():
        return Server(text)
    scheme, at, query = match[1].lower(), match[2], match[3]
    if at.startswith("//"):
        raise ValueError(f"a URI of TURN has no slashes: {scheme}:{at[2:]}")
    transport = "udp" if scheme == "turn" else "tcp"
    if query is not None:
        name, _, transport = query.lower().partition("=")
        if name != "transport" or transport not in ("udp", "tcp"):
            raise ValueError(f"?{query}: a URI of TURN may end with ?transport=udp or ?transport=tcp")
    if scheme == "turns":
        if transport == "udp":
            raise ValueError("turns: over UDP, which is DTLS, is not spoken; ?transport=tcp is TLS")
        return Server(at, "tls")
    return Server(at, "tcp" if transport == "tcp" else "udp")
