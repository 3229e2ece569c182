"""What the kernel shows against what the journal says: what is missing, and what is too much.

Owns: the comparison, in words.  Must not know: how either was read.

Compared is what a person sees with `ip`: links, their ports, addresses, routes, proxies, and who listens at WireGuard's
ports.  The MTU follows the way out, and peers and members of nftables sets have lists of their own: of those the
daemon's `doctor` speaks.
"""

from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_interface, ip_network

from overlayd.inspect.picture import Difference, Link, Picture, Role
from overlayd.model import drift
from overlayd.model.layout import Layout
from overlayd.model.objects import (
    GLOBAL,
    ROUTE_PROTOCOL,
    Alias,
    Bridge,
    Device,
    Fence,
    Interface,
    Network,
    Proxy,
    Route,
    Veth,
)


def compare(picture: Picture, want: Layout, sections: Collection[str]) -> list[Difference]:
    """The differences in the `sections` of the picture that were read, in a stable order."""
    links = {link.role: link for link in picture.links}
    roles = {link.name: link.role for link in picture.links}
    wanted = {_role(thing): thing for thing in want.values() if isinstance(thing, Device | Bridge | Veth)}
    found = list(_links(links, roles, wanted))
    found += _addresses(picture, links, roles, want)
    if "routes" in sections:
        found += _routes(picture, roles, want)
    if "neighbours" in sections:
        found += _proxies(picture, roles, want)
    if "sockets" in sections:
        found += _sockets(picture, links, wanted)
    return found


def _role(thing: Device | Bridge | Veth) -> Role:
    match thing:
        case Device():
            return Role("device", thing.scope)
        case Bridge():
            return Role("bridge", thing.service)
        case Veth():
            return Role("veth", thing.name)


def _called(link: Link) -> str:
    return link.name if link.role.kind == "veth" else f"{link.role.kind} {link.name}"


Wanted = Mapping[Role, Device | Bridge | Veth]


def _links(links: Mapping[Role, Link], roles: Mapping[str, Role], wanted: Wanted) -> Iterator[Difference]:
    for role, thing in wanted.items():
        link = links.get(role)
        if link is None:
            yield Difference(drift.name(thing), "is missing")
            continue
        if thing.name not in link.names:
            yield Difference(drift.name(thing), f"is called {link.name}")
        if not link.up:
            yield Difference(drift.name(thing), "is down")
        if isinstance(thing, Veth) and not _is_in_place(link, thing, roles):
            where = f"is on {link.master}" if link.master else "is on no bridge"
            yield Difference(thing.name, f"{where}, not on {thing.bridge or 'none'}")
    for role, link in links.items():
        if role not in wanted:
            yield Difference(_called(link), "is not wanted")


def _is_in_place(link: Link, want: Veth, roles: Mapping[str, Role]) -> bool:
    """Whether a veth is a port of the bridge that it should be on, or of none."""
    if want.service is None:
        return not link.master
    return roles.get(link.master) == Role("bridge", want.service)


def _addresses(
    picture: Picture, links: Mapping[Role, Link], roles: Mapping[str, Role], want: Layout
) -> Iterator[Difference]:
    wanted: dict[Role, set[Interface]] = {}
    for thing in want.values():
        match thing:
            case Device():
                wanted.setdefault(_role(thing), set()).update(thing.addresses)
            case Bridge():
                wanted.setdefault(_role(thing), set()).add(thing.address)
            case Alias():
                wanted.setdefault(Role("device", GLOBAL), set()).add(ip_interface(thing.address))
    shown: dict[Role, set[Interface]] = {}
    for each in picture.addresses:
        if not each.address.is_link_local:
            shown.setdefault(roles[each.link], set()).add(each.address)
    for role, link in links.items():
        if role.kind == "veth":
            continue
        have, should = shown.get(role, set()), wanted.get(role, set())
        yield from (Difference(_called(link), f"lacks its address {each}") for each in sorted(should - have, key=str))
        if role in wanted:
            extra = sorted(have - should, key=str)
            yield from (Difference(_called(link), f"has an address that is not wanted: {each}") for each in extra)


def _routes(picture: Picture, roles: Mapping[str, Role], want: Layout) -> Iterator[Difference]:
    wanted: dict[Network, Role] = {}
    for thing in want.values():
        match thing:
            case Route():
                wanted[thing.destination] = Role("device", thing.scope)
            case Veth() if thing.service is None:
                wanted[ip_network(thing.address.ip)] = _role(thing)
    shown = {
        each.destination: roles.get(each.link)
        for each in picture.routes
        if each.protocol == ROUTE_PROTOCOL and each.type == "unicast"
    }
    for destination, role in wanted.items():
        if shown.get(destination) != role:
            yield Difference(f"route {destination}", "is missing" if destination not in shown else "leads elsewhere")
    for destination in shown.keys() - wanted.keys():
        yield Difference(f"route {destination}", "is not wanted")
    fences = {thing.destination: thing for thing in want.values() if isinstance(thing, Fence)}
    standing = {
        each.destination for each in picture.routes if each.protocol == ROUTE_PROTOCOL and each.type == "unreachable"
    }
    yield from (Difference(drift.name(fences[each]), "is missing") for each in fences.keys() - standing)
    yield from (Difference(drift.name(Fence(each)), "is not wanted") for each in standing - fences.keys())


def _proxies(picture: Picture, roles: Mapping[str, Role], want: Layout) -> Iterator[Difference]:
    wanted = {
        (Role("bridge", thing.service), str(thing.address)) for thing in want.values() if isinstance(thing, Proxy)
    }
    shown = {(roles[each.link], each.address) for each in picture.neighbours if each.state == "proxy"}
    for role, address in sorted(wanted - shown):
        yield Difference(f"proxy for {address}", f"is missing on the bridge of service {role.name}")
    for role, address in sorted(shown - wanted):
        yield Difference(f"proxy for {address}", f"is not wanted on the {role.kind} of {role.name}")


def _sockets(picture: Picture, links: Mapping[Role, Link], wanted: Wanted) -> Iterator[Difference]:
    listening = {int(each.local.rpartition(":")[2]) for each in picture.sockets if each.protocol == "udp"}
    for role, thing in wanted.items():
        if isinstance(thing, Device) and role in links and thing.listen_port not in listening:
            yield Difference(drift.name(thing), f"does not listen at UDP port {thing.listen_port}")
