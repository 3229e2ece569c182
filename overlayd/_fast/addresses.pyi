from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

def address(text: str | bytes) -> IPv4Address | IPv6Address | None:
    """An address without a zone; None for a text that is none, or that `ipaddress` has to judge."""

def network(text: str | bytes) -> IPv4Network | IPv6Network | None:
    """A CIDR with the number of its bits, without bits beyond them, or an address that stands for itself; None for a
    text that is none, or that `ipaddress` has to judge.
    """
