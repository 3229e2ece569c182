"""The yardstick of attach: what the kernel takes for a container's pair, asked by messages packed by hand.

Owns: those messages, of as little as makes a container reachable: the pair with its host end on the bridge and up, and
in the container's namespace loopback and interface up, the address and the default route.  Must not know: overlayd,
which may not change the yardstick.

Sources: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/veth.h.
"""

import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from lab import Node, netns

NEWLINK, DELLINK, SETLINK, NEWADDR, NEWROUTE = 16, 17, 19, 20, 24
REQUEST, ACK, EXCL, CREATE = 1, 4, 0x200, 0x400
ERROR = 2
ADDRESS, NAME, MTU, MASTER, LINKINFO, GROUP, NET_NS_FD, TX_QUEUES, RX_QUEUES = 1, 3, 4, 10, 18, 27, 28, 31, 32
INFO_KIND, INFO_DATA, VETH_PEER = 1, 2, 1
ADDR_LOCAL, ADDR_ADDRESS = 2, 1
ROUTE_OIF, ROUTE_GATEWAY = 4, 5
UP = 1  # IFF_UP
LOOPBACK, INSIDE, OUTSIDE = 1, 100, 10_000  # link indexes; ours are chosen, so nothing has to be looked up
DOOMED = 4711  # the link group of what is deleted together
BATCH = 64  # acknowledgements that fit in a socket's buffer
BRIDGE, GATEWAY = "yard", IPv4Interface("10.9.0.1/16")


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def link(index: int, *attributes: bytes, up: bool = False) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, UP * up, UP * up) + b"".join(attributes)


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, REQUEST | ACK | flags, 0, 0) + body


def transact(host: socket.socket, messages: Sequence[bytes]) -> None:
    """Send messages and take their acknowledgements; OSError for the first that is refused."""
    for at in range(0, len(messages), BATCH):
        some = messages[at : at + BATCH]
        host.send(b"".join(some))
        left = len(some)
        while left:
            data = host.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                code = -struct.unpack_from("=i", data, 16)[0] if kind == ERROR else 0
                if code:
                    raise OSError(code, os.strerror(code))
                left -= kind == ERROR
                data = data[length:]


class BareHost:
    """A node without a daemon but with a bridge, and a file that is synced."""

    def __init__(self, node: Node) -> None:
        netns.add_bridge(node.netns, BRIDGE, GATEWAY)
        self.node = node
        self.host = netns.open_socket(node.namespace, socket.AF_NETLINK, socket.SOCK_RAW)
        bridge = node.run(["cat", f"/sys/class/net/{BRIDGE}/ifindex"])
        self._settings = number(MASTER, int(bridge)) + number(TX_QUEUES, 1) + number(RX_QUEUES, 1)
        node.data_dir.mkdir(exist_ok=True)
        self._file = os.open(node.data_dir / "yardstick", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def close(self) -> None:
        self.host.close()
        os.close(self._file)

    def sync(self) -> None:
        """What one commit cannot do without."""
        os.write(self._file, bytes(300))
        os.fdatasync(self._file)

    def attach(self, pid: int, place: int, *, second: bool = False) -> None:
        """place: of the container on the bridge, from 0, by which its host end and address are known.  second: it has
        an eth0 and a default route already, and keeps them.
        """
        address = GATEWAY.ip + 1 + place
        mtu = number(MTU, 1340)
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            inside_end = link(
                INSIDE,
                text(NAME, "eth1" if second else "eth0"),
                number(NET_NS_FD, namespace),
                attribute(ADDRESS, b"\x02\x00" + IPv4Address(address).packed),
                mtu + number(TX_QUEUES, 1) + number(RX_QUEUES, 1),
            )
            kind = text(INFO_KIND, "veth") + attribute(INFO_DATA, attribute(VETH_PEER, inside_end))
            pair = link(
                OUTSIDE + place, text(NAME, name_of(place)), mtu, self._settings, attribute(LINKINFO, kind), up=True
            )
            transact(self.host, [message(NEWLINK, CREATE | EXCL, pair)])
        finally:
            os.close(namespace)
        packed = IPv4Address(address).packed
        local = struct.pack("=BBBBI", socket.AF_INET, GATEWAY.network.prefixlen, 0, 0, INSIDE)
        local += attribute(ADDR_LOCAL, packed) + attribute(ADDR_ADDRESS, packed)
        # A unicast route of the main table, set by the administrator.
        default = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0)
        default += attribute(ROUTE_GATEWAY, GATEWAY.ip.packed) + number(ROUTE_OIF, INSIDE)
        with netns.open_socket(Path(f"/proc/{pid}/ns/net"), socket.AF_NETLINK, socket.SOCK_RAW) as inside:
            messages = [
                message(SETLINK, 0, link(LOOPBACK, up=True)),
                message(SETLINK, 0, link(INSIDE, up=True)),
                message(NEWADDR, CREATE | EXCL, local),
                message(NEWROUTE, CREATE | EXCL, default),
            ]
            transact(inside, messages[:-1] if second else messages)

    def detach(self, places: Sequence[int]) -> None:
        """All at once, by a link group: the kernel then waits for one grace period, not for one each."""
        doom = number(GROUP, DOOMED)
        transact(self.host, [message(SETLINK, 0, link(0, text(NAME, name_of(place)), doom)) for place in places])
        transact(self.host, [message(DELLINK, 0, link(0, doom))])

    def add_bridge(self, name: str) -> None:
        """A bridge with an address, up."""
        kind = attribute(LINKINFO, text(INFO_KIND, "bridge"))
        transact(self.host, [message(NEWLINK, CREATE | EXCL, link(0, text(NAME, name), kind, up=True))])

    def delete_link(self, name: str) -> None:
        transact(self.host, [message(DELLINK, 0, link(0, text(NAME, name)))])


def name_of(place: int) -> str:
    return f"yard{place}"
