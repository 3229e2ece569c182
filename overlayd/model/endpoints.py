"""Endpoints at which no peer is.

Owns: which those are, and the words.  Must not know: how this host's addresses are read (`linux.surroundings`), or
which endpoints lead into the overlay (`routing`).
"""

from collections.abc import Mapping
from ipaddress import IPv4Address

from overlayd.model.objects import Address
from overlayd.model.rows import Service
from overlayd.model.state import State

_EVERYBODY = IPv4Address("255.255.255.255")  # RFC 919


def nobodys(address: Address) -> str:
    """Why no host can be at an address, for a person; empty when one can."""
    if address.is_unspecified:
        return "is the address of nobody"
    if address.is_multicast:
        return "is the address of a group, and of no host"
    return "is the address of all hosts" if address == _EVERYBODY else ""


def misplaced(state: State, at: tuple[Address, int], here: Mapping[Address, str]) -> str:
    """Why a tunnel to an endpoint ends on this host, as that is now; empty when it does not.

    here: this host's addresses, and the broadcast addresses of its networks with their network as text.
    """
    address, port = at
    network = here.get(address)
    if network:
        return f"is the broadcast address of network {network}"
    if network is None and not address.is_loopback:
        return ""
    around = state.overlay
    if around is not None and port == around.wg_port:
        return "is this node's own WireGuard port"
    for service in state.table(Service).values():
        if service.dedicated and port == service.wg_port:
            return f"is this node's own WireGuard port, of service {service.name}"
    return ""
