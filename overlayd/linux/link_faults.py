"""What is broken of a link of ours: a clause of its `fault` each, or nothing.

Owns: what has to be so of a link, and the words when it is not.  Must not know: how a link is looked at (`view`), or
what is done about a fault.
"""

from collections.abc import Iterable
from ipaddress import ip_network

from overlayd.linux import bridge_options, forwarding, sysctl
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import is_wide
from overlayd.linux.view import View
from overlayd.model.objects import GROUP_VETH, Address, Interface, scope_of_alias


def down(link: rt.Link, name: str = "it") -> list[str]:
    """A link that is down.  name: what the clause calls it."""
    return [] if link.flags & rt.IFF_UP else [f"{name} is down"]


def taken(link: rt.Link) -> list[str]:
    """A VRF has a routing table of its own, in which there is no overlay."""
    return ["it is a part of another link, a VRF or a bridge"] if link.master else []


def parameter(link: rt.Link) -> list[str]:
    """The parameters of IPv4 that forwarding needs, as the link has them."""
    return list(filter(None, [forwarding.fault(link)]))


def no_queue(link: rt.Link) -> list[str]:
    """A TUN keeps what it is given for wireguard-go in a ring of so many packets; other links do without."""
    return ["its txqueuelen is 0, and it drops all it is given"] if link.kind == "tun" and link.queue == 0 else []


def other_mac(link: rt.Link, mac: bytes) -> list[str]:
    """A link with another MAC than the one that it was given."""
    return [] if link.mac == mac else [f"its MAC is {link.mac.hex(':') or 'missing'}, not {mac.hex(':')}"]


def other_group(link: rt.Link) -> list[str]:
    """A host end of a veth that is not in our link group."""
    return [] if link.group == GROUP_VETH else [f"it is in link group {link.group:#x}"]


def takes_advertisements(link: rt.Link) -> list[str]:
    """A link that takes router advertisements or redirects, and could be told otherwise."""
    takes = link.takes_advertisements and sysctl.is_writable(f"ipv6/conf/{link.name}/accept_ra")
    return ["it takes router advertisements or redirects"] if takes else []


def lost_routes(link: rt.Link, addresses: Iterable[Interface], host: View | None) -> list[str]:
    """The networks of the addresses whose routes, which came with the addresses, are no longer there."""
    if host is None:
        return []
    wide = (each.network for each in addresses if is_wide(each))
    return [f"its route to {network} is gone" for network in wide if (link.ifindex, network) not in host.connected]


def lost_mac(link: rt.Link, host: View | None) -> list[str]:
    """A bridge whose forwarding database has lost its own MAC passes on what is for the host."""
    there = host is None or (link.ifindex, link.mac) in host.forwarding
    return [] if there else ["its forwarding database does not have its own MAC"]


def lost_host_route(link: rt.Link, address: Interface, host: View) -> list[str]:
    """A host end on no bridge without the route to its container."""
    there = (link.ifindex, ip_network(address.ip), None) in host.routes
    return [] if there else [f"the route to {address.ip} is gone"]


def lost_address(link: rt.Link, gateway: Address, host: View) -> list[str]:
    """A host end on no bridge without an address of its own, which passes no reverse path filter then."""
    there = gateway.version == 6 or (link.ifindex, gateway) in host.near
    return [] if there else [f"its own address {gateway} is gone"]


def port(link: rt.Link, mac: bytes, bridge: rt.Link, host: View) -> list[str]:
    """A locked port passes no frame from a MAC that its bridge has not been told of."""
    if scope_of_alias(bridge.alias, "bridge") is None:
        return [f"it is on {bridge.name}, which is no bridge of ours"]
    told = (link.ifindex, mac) in host.forwarding
    untold = [] if told else [f"its bridge has not been told of the MAC {mac.hex(':')}"]
    return [*bridge_options.port_faults(link), *untold]


def misled(link: rt.Link, address: Interface, mac: bytes, host: View) -> list[str]:
    """What somebody told the host of a neighbour counts, though the neighbour itself would say otherwise."""
    told = host.neighbours.get((link.ifindex, address.ip), mac)
    return [] if told == mac else [f"{link.name} was told that {address.ip} is at {told.hex(':')}, not {mac.hex(':')}"]
