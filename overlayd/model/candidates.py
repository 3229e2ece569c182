"""This node's candidates: where others may reach it.

Owns: candidates of type host and their priority (RFC 8445).  Must not know: where addresses come from, or servers.
"""

from collections.abc import Iterable
from typing import NamedTuple

from overlayd.model.objects import Address

HOST_PREFERENCE = 126  # RFC 8445, section 5.1.2.2
COMPONENT = 1  # WireGuard has one UDP port for everything


class Candidate(NamedTuple):
    """kind: "host", "server-reflexive" or "relay"."""

    kind: str
    address: Address
    port: int
    priority: int


def priority(type_preference: int, local_preference: int, component: int = COMPONENT) -> int:
    """RFC 8445, section 5.1.2.1.  type_preference: 0 to 126; local_preference: 0 to 65535; component: 1 to 256."""
    return (type_preference << 24) + (local_preference << 8) + (256 - component)


def host_candidates(addresses: Iterable[Address], port: int) -> list[Candidate]:
    """One for each of this host's addresses, which come in order of preference."""
    return [
        Candidate("host", address, port, priority(HOST_PREFERENCE, 65535 - place))
        for place, address in enumerate(addresses)
    ]
