"""Longest-prefix matching, slow and obvious: a dictionary of networks, searched whole."""

from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network
Entry = tuple[bytes, int, object]


@cache
def network(packed: bytes, prefix_len: int) -> Network:
    return ip_network((packed, prefix_len), strict=False)


def inside(inner: Network, outer: Network) -> bool:
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and int(outer.network_address) <= int(inner.network_address) <= int(outer.broadcast_address)
    )


class DictAllowedIPs:
    def __init__(self) -> None:
        self.networks: dict[Network, object] = {}

    def insert(self, packed: bytes, prefix_len: int, value: object) -> object | None:
        previous = self.networks.get(network(packed, prefix_len))
        self.networks[network(packed, prefix_len)] = value
        return previous

    def remove(self, packed: bytes, prefix_len: int) -> object | None:
        return self.networks.pop(network(packed, prefix_len), None)

    def exact(self, packed: bytes, prefix_len: int) -> object | None:
        return self.networks.get(network(packed, prefix_len))

    def lookup(self, packed: bytes) -> object | None:
        entries = self.covering(packed, len(packed) * 8)
        return entries[-1][2] if entries else None

    def covering(self, packed: bytes, prefix_len: int) -> list[Entry]:
        asked = network(packed, prefix_len)
        return self._entries(lambda held: inside(asked, held))

    def within(self, packed: bytes, prefix_len: int) -> list[Entry]:
        asked = network(packed, prefix_len)
        return self._entries(lambda held: inside(held, asked))

    def entries(self) -> list[Entry]:
        return self._entries(lambda held: True)

    def _entries(self, wanted) -> list[Entry]:  # type: ignore[no-untyped-def]
        found = sorted(filter(wanted, self.networks), key=lambda net: (net.version, net.network_address, net.prefixlen))
        return [(net.network_address.packed, net.prefixlen, self.networks[net]) for net in found]
