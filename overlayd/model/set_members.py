"""The members of our nftables sets.

Owns: which elements the cluster, an address, a bridge port or an edge peer costs, as nftables writes them.  Must not
know: what the rules do with a member (`ruleset`), or how it reaches the kernel (`linux.setelem`).
"""

from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses

from overlayd.model.objects import Address, Element, Network

MAX_NETWORK = 0xFFFF_FFFE  # a traffic class handle, in which 0 ("none") and 2^32 - 1 ("root") mean something else
OF_HOST = (("inet", "closed"), ("inet", "bridged"))  # see `host`


def cluster(network: Network) -> list[Element]:
    """The cluster CIDR: the source of what is masqueraded, and what a member must not reach."""
    return [Element("inet", f"cluster{network.version}", _prefix(network))]


def host(closed: Iterable[int], bridged: Iterable[int]) -> list[Element]:
    """The versions of IP that the host forwards for us alone, and those whose bridged packets pass as if forwarded."""
    sets = (("closed", closed), ("bridged", bridged))
    return [Element("inet", name, f"ipv{version}") for name, versions in sets for version in versions]


def remembered_host(things: Iterable[object]) -> tuple[list[int], list[int]]:
    """What `host` was given when these members were made: our sets remember it when the disk does not."""
    closed: list[int] = []
    bridged: list[int] = []
    for each in things:
        if isinstance(each, Element) and (each.family, each.set) in OF_HOST:
            (closed if each.set == "closed" else bridged).append(int(each.member[-1]))
    return sorted(closed), sorted(bridged)


def node(address: Address) -> list[Element]:
    """An address of the node itself that members reach: the node address, and the gateway address of every bridge."""
    return [Element("inet", f"node{address.version}", str(address))]


def tunnel(port: int) -> list[Element]:
    """The port of one of the node's WireGuard devices, which no container has towards the outside."""
    return [Element("inet", "tunnels", str(port))]


def member(address: Address, network: int | None, port: str | None = None) -> list[Element]:
    """A local container's address in an isolation network; two elements, and two more when it sits on a bridge.

    network: the number that stands for the isolation network on this node, 1 to MAX_NETWORK, one number a network;
    None is a container without a network, which costs nothing.  port: the name of the veth's host end when a bridge
    holds it. Raises ValueError for a number out of range.
    """
    if network is None:
        return []
    if not 1 <= network <= MAX_NETWORK:
        raise ValueError(f"network number {network} is not in 1..{MAX_NETWORK}")
    number, version = classid(network), address.version
    elements = [
        Element("inet", f"network{version}", str(address), number),
        Element("inet", f"member{version}", f"{number} . {address}"),
    ]
    if port is not None:
        elements.append(Element("bridge", "network", f'"{port}"', number))
        elements.append(Element("bridge", "member", f'{number} . "{port}"'))
    return elements


def port(name: str, mac: bytes, addresses: Iterable[Address]) -> list[Element]:
    """A port of a bridge: what a container may send from there; one element for each of its addresses.

    name: of the veth's host end.  mac: of the container's end.
    """
    ends = [(each.version, each if each.version == 4 else _bare(each)) for each in addresses]
    return [Element("bridge", f"port{version}", f'"{name}" . {mac.hex(":")} . {end}') for version, end in ends]


def leg(name: str, addresses: Iterable[Address]) -> list[Element]:
    """A container's veth without a bridge: one element for each of its addresses.  name: of the host end."""
    return [Element("inet", f"leg{each.version}", f'"{name}" . {each}') for each in addresses]


def edge(address: Address, allowed: Sequence[Network], subnets: Sequence[Network] = ()) -> list[Element]:
    """A roaming peer's overlay address, and the CIDRs and services' subnets it may reach: an element each.

    What is inside another is left out: the kernel refuses overlapping elements.  CIDRs are joined where they meet.
    Subnets are not, so that a service that comes or goes changes its own element, whatever else changes at that time;
    they do not overlap each other.  What is of the other IP version than the address cannot be reached from it and is
    left out too.
    """
    version = address.version
    cidrs: list[Network]
    if version == 4:
        cidrs = list(collapse_addresses(network for network in allowed if network.version == 4))
    else:
        cidrs = list(collapse_addresses(network for network in allowed if network.version == 6))
    reachable = [cidr for cidr in cidrs if not any(cidr != subnet and _inside(cidr, subnet) for subnet in subnets)]
    reachable += [subnet for subnet in subnets if not any(_inside(subnet, cidr) for cidr in cidrs)]
    grants = [Element("inet", f"grant{version}", f"{address} . {_prefix(network)}") for network in reachable]
    return [Element("inet", f"edge{version}", str(address)), *grants]


def _inside(inner: Network, outer: Network) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def classid(number: int) -> str:
    """A number as a traffic class handle, the type of `meta priority`: major and minor half, in hexadecimal."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def _bare(address: Address | int) -> str:  # an IPv6 address as bare bytes
    return f"{int(address):#x}"


def _prefix(network: Network) -> str:  # as nftables writes it: a host prefix is a bare address
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
