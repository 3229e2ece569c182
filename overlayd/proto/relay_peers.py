"""To whom a relay sends: the addresses that it takes for nodes, and those that it keeps its clients from.

Owns: the order of the rules, and what is nobody's business on any host.  Must not know: routes and interfaces (`Hop`
says what they say), or sessions.

A relay sends from inside of its network what comes from outside of it.  So it is no way to what stands behind its host
or beside it (RFC 8656, section 21.3): private networks are relayed to only where nodes are known to be.
"""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from overlayd.proto.wireguard import Address, Network

# Never relayed to, whatever the operator says: this host, its links, everybody at once, and IPv6 that is IPv4 behind a
# translator, by which the former would come in again (RFC 8656 21.3; RFC 6890).
NEVER: tuple[Network, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")),
    *map(IPv6Network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")),
    *map(IPv6Network, ("fe80::/10", "ff00::/8")),
)

# Relayed to only where nodes are known to be: RFC 1918, 6598, 6890 and 2544, 4193 and 3879; and the service addresses
# of a cloud that are outside of these (Azure's).
PRIVATE: tuple[Network, ...] = (
    *map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24")),
    *map(IPv4Network, ("198.18.0.0/15", "168.63.129.16/32")),
    *map(IPv6Network, ("fc00::/7", "fec0::/10")),
)

# What the next hop to an address is: there is none, for it is this host's own or leads nowhere; the uplink; or anything
# else, such as a bridge of containers.
Hop = Literal["none", "uplink", "inside"]


class RelayPeers:
    """refused: networks that nothing is relayed to, beside NEVER: the overlay's.  denied, allowed: the operator's, of
    which the former count first.  is_known: whether a node is known to be at an address.  hop: see `Hop`.  beside: the
    networks that the relay's own address is in, where nodes may be as well.
    """

    def __init__(
        self,
        *,
        refused: Iterable[Network],
        denied: Iterable[Network] = (),
        allowed: Iterable[Network] = (),
        is_known: Callable[[Address], bool] = lambda address: False,
        hop: Callable[[Address], Hop] = lambda address: "uplink",
        beside: Iterable[Network] = (),
    ) -> None:
        self._never = (*NEVER, *refused)
        self._denied, self._allowed, self._beside = tuple(denied), tuple(allowed), tuple(beside)
        self._is_known, self._hop = is_known, hop

    def refusal(self, address: Address) -> str:
        """Why nothing is relayed to an address, in words; empty when it is."""
        if _is_in(address, self._never):
            return "this relay never sends there"
        if _is_in(address, self._denied):
            return "denied_peers forbids it"
        hop = self._hop(address)
        if hop == "none":
            return "this host's own, or no way there"
        if _is_in(address, self._allowed) or self._is_known(address):
            return ""
        if hop == "inside":
            return "a network behind this host, and allowed_peers does not name it"
        if _is_in(address, PRIVATE) and not _is_in(address, self._beside):
            return "a private network, and allowed_peers does not name it"
        return ""


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
