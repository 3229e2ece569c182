"""The kernel as pyroute2 reads it: links, addresses, routes, forwarding databases, neighbours, sockets, connections.

Owns: the questions, and which of the answers are about this node's overlay.  Must not know: what should be there.

Our own codec reads the same kernel for the daemon, thousands of times a second; this one is slow and written by others,
and so notices when ours is wrong.
"""

import os
import socket
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from pyroute2.conntrack import Conntrack
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.diag import DiagSocket
from pyroute2.netlink.exceptions import NetlinkError

from overlayd.inspect.picture import Address, Connection, Forwarding, Link, Neighbour, Picture, Role, Route, Socket
from overlayd.model.objects import (
    GROUP_BRIDGE,
    GROUP_DEVICE,
    GROUP_DOOMED,
    GROUP_VETH,
    ROUTE_PROTOCOL,
    Network,
    scope_of_alias,
)

_IFF_UP = 1  # linux/if.h
_AF_BRIDGE = 7  # linux/socket.h
_MAIN_TABLE = 254  # linux/rtnetlink.h, RT_TABLE_MAIN
_NTF_SELF, _NTF_PROXY = 0x02, 0x08  # linux/neighbour.h
_NEIGHBOUR_STATES = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}  # linux/neighbour.h, NUD_*
_ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
}
_SOCKET_STATES = {1: "established", 7: "unconnected", 10: "listening"}  # net/tcp_states.h
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_ANY = {"0.0.0.0", "::"}


def look(sections: Collection[str], ports: Collection[int], networks: Collection[Network], path: str) -> Picture:
    """What the network namespace of this process shows of ours.

    sections: names of fields of `Picture`; those of links and addresses are always read, for they tell what is ours.
    ports: UDP ports of WireGuard devices.  networks: of the overlay, beside those of the addresses on our links.  path:
    the daemon's socket.
    """
    picture = Picture()
    with IPRoute() as route:
        links = list(route.get_links())
        names = {message["index"]: message.get("ifname") for message in links}
        picture.links = list(_links(links, names))
        ours = {link.name for link in picture.links}
        picture.addresses = list(_addresses(route, names, ours))
        own = {str(each.address.ip) for each in picture.addresses}
        around = [*networks, *(each.address.network for each in picture.addresses if not each.address.is_link_local)]
        readers: dict[str, Callable[[], list[Any]]] = {
            "routes": lambda: list(_routes(route, names, ours)),
            "fdb": lambda: list(_fdb(route, names, ours)),
            "neighbours": lambda: list(_neighbours(route, names, ours)),
            "sockets": lambda: [*_internet_sockets(ports, own), *_unix_sockets(path, ours)],
            "conntrack": lambda: list(_connections(around)),
        }
        for section, read in readers.items():
            if section in sections:
                try:
                    setattr(picture, section, read())
                except NetlinkError as error:
                    picture.unseen[section] = f"{os.strerror(error.code)} (errno {error.code})"
                except OSError as error:
                    picture.unseen[section] = f"{error.strerror} (errno {error.errno})"
    return picture


def _links(messages: list[Any], names: dict[int, str]) -> Iterator[Link]:
    for message in messages:
        role = _role(message)
        if role is None:
            continue
        properties = message.get("prop_list")
        alternative = properties.get_attrs("IFLA_ALT_IFNAME") if properties is not None else []
        yield Link(
            name=message.get("ifname"),
            role=role,
            type=message.get(("linkinfo", "kind")) or "",
            up=bool(message["flags"] & _IFF_UP),
            mtu=message.get("mtu"),
            mac=message.get("address") or "",
            master=names.get(message.get("master"), ""),
            names=(message.get("ifname"), *alternative),
        )


def _role(message: Any) -> Role | None:
    """By link group and alias, as the daemon marks its links; None for a link that is not ours."""
    group, alias = message.get("group"), message.get("ifalias") or ""
    if group in (GROUP_VETH, GROUP_DOOMED):
        return Role("veth", message.get("ifname"))
    for kind, mark in (("device", GROUP_DEVICE), ("bridge", GROUP_BRIDGE)):
        scope = scope_of_alias(alias, kind)
        if group == mark and scope is not None:
            return Role(kind, scope)
    return None


def _addresses(route: IPRoute, names: dict[int, str], ours: Collection[str]) -> Iterator[Address]:
    for message in route.get_addr():
        link = names.get(message["index"], "")
        if link in ours:
            text = message.get("local") or message.get("address")
            yield Address(link, ip_interface(f"{text}/{message['prefixlen']}"))


def _routes(route: IPRoute, names: dict[int, str], ours: Collection[str]) -> Iterator[Route]:
    for message in route.get_routes(table=_MAIN_TABLE):
        link = names.get(message.get("oif"), "")
        if link not in ours and message["proto"] != ROUTE_PROTOCOL:
            continue
        anywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
        yield Route(
            destination=ip_network(f"{message.get('dst') or anywhere}/{message['dst_len']}"),
            link=link,
            via=message.get("gateway") or "",
            protocol=message["proto"],
            type=_ROUTE_TYPES.get(message["type"], str(message["type"])),
        )


def _fdb(route: IPRoute, names: dict[int, str], ours: Collection[str]) -> Iterator[Forwarding]:
    for message in route.get_neighbours(family=_AF_BRIDGE):
        master = names.get(message.get("master"), "")
        if master not in ours or message["flags"] & _NTF_SELF:
            continue
        state = {0x80: "permanent", 0x40: "static"}.get(message["state"], "learned")
        yield Forwarding(master, names.get(message["ifindex"], ""), message.get("lladdr") or "", state)


def _neighbours(route: IPRoute, names: dict[int, str], ours: Collection[str]) -> Iterator[Neighbour]:
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in route.get_neighbours(family=family):
            link = names.get(message["ifindex"], "")
            if link in ours and message["ndm_type"] != 5:  # linux/rtnetlink.h, RTN_MULTICAST: the kernel's own
                state = _NEIGHBOUR_STATES.get(message["state"], "none")
                yield Neighbour(link, message.get("dst"), message.get("lladdr") or "", state)
        # Proxies are dumped by themselves, and only to who asks for them in the request: `get_neighbours` would take
        # the flag for a filter.
        for message in route.neigh("dump", family=family, flags=_NTF_PROXY, dump_filter=lambda _: True):
            link = names.get(message["ifindex"], "")
            if link in ours and message.get("protocol") == ROUTE_PROTOCOL:
                yield Neighbour(link, message.get("dst"), "", "proxy")


def _internet_sockets(ports: Collection[int], own: Collection[str]) -> Iterator[Socket]:
    """Sockets at an address of ours, and UDP sockets at a port of WireGuard."""
    with DiagSocket() as diag:
        diag.bind()
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
            for family in (socket.AF_INET, socket.AF_INET6):
                for message in diag.get_sock_stats(family=family, protocol=protocol):
                    source, port = message["idiag_src"], message["idiag_sport"]
                    if source not in own and (protocol != socket.IPPROTO_UDP or port not in ports):
                        continue
                    target = _end(message["idiag_dst"], message["idiag_dport"])
                    yield Socket(
                        protocol=_PROTOCOLS[protocol],
                        local=_end(source, port),
                        remote="" if message["idiag_dst"] in _ANY else target,
                        state=_SOCKET_STATES.get(message["idiag_state"], str(message["idiag_state"])),
                    )


def _unix_sockets(path: str, ours: Collection[str]) -> Iterator[Socket]:
    """The daemon's own, and those of processes that serve a device in user space."""
    wanted = {path, *(f"/{run}/wireguard/{name}.sock" for name in ours for run in ("run", "var/run"))}
    with DiagSocket() as diag:
        diag.bind()
        for message in diag.get_sock_stats(family=socket.AF_UNIX):
            name = message.get_attr("UNIX_DIAG_NAME")
            if name in wanted and message["udiag_state"] == 10:
                yield Socket("unix", name, "", "listening")


def _connections(around: Collection[Network]) -> Iterator[Connection]:
    for family in (socket.AF_INET, socket.AF_INET6):
        with Conntrack(nfgen_family=family) as conntrack:
            for entry in conntrack.dump_entries():
                out, back = entry.tuple_orig, entry.tuple_reply
                ends = (out.saddr, out.daddr, back.saddr, back.daddr)
                if any(_is_in(end, around) for end in ends):
                    yield Connection(
                        protocol=_PROTOCOLS.get(out.proto, str(out.proto)),
                        source=_end(out.saddr, out.sport),
                        target=_end(out.daddr, out.dport),
                        answered_by=_end(back.saddr, back.sport),
                        answered_to=_end(back.daddr, back.dport),
                    )


def _is_in(text: str | None, networks: Collection[Network]) -> bool:
    if text is None:
        return False
    address = ip_address(text)
    return any(address.version == network.version and address in network for network in networks)


def _end(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
