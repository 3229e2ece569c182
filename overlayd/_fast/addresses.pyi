from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

class Address4(IPv4Address):
    """As its base, and equal to the same one of it; so are the others."""

class Network4(IPv4Network): ...
class Network6(IPv6Network): ...

def address(text: str | bytes) -> IPv4Address | IPv6Address | None:
    """An address without a zone; None for a text that is none, or that `ipaddress` has to judge."""

def network(text: str | bytes) -> IPv4Network | IPv6Network | None:
    """A CIDR with the number of its bits, without bits beyond them, or an address that stands for itself; None for a
    text that is none, or that `ipaddress` has to judge.
    """

def of_bytes(data: bytes, prefix: int) -> IPv4Network | IPv6Network:
    """A network from the bytes of its address; ValueError: these are none, or have bits beyond the prefix."""

def is_inside(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    """Whether a network holds all of another one; False for those of different versions."""

def place(network: IPv4Network | IPv6Network) -> tuple[bytes, int]:
    """The bytes of a network's address, and its prefix: where it is in a trie."""
