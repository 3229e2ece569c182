"""Where the kernel would send a packet."""

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from throwaway import Namespace

from overlayd.linux.netlink import Netlink
from overlayd.linux.route import leaves_host


@pytest.fixture(scope="module")
def netlink() -> Iterator[Netlink]:
    """A host with one link, and a default route for IPv4."""
    with Namespace() as host:
        host.ip(
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            "address add 10.9.0.1/24 dev d0",
            "address add 10.9.0.7/24 dev d0",
            "address add fd00::1/64 dev d0 nodad",
            "route add default via 10.9.0.2",
            "route add prohibit 192.0.2.128/25",
        )
        with host.entered():
            netlink = Netlink()
        with netlink:
            yield netlink


@pytest.mark.parametrize(("text", "leaves"), [
    ("10.9.0.2", True),
    ("10.9.0.1", False),
    ("10.9.0.7", False),  # a second address of a network, whose preferred source is the first
    ("10.9.0.255", False),
    ("127.0.0.1", False),
    ("127.9.9.9", False),
    ("224.0.0.1", False),
    ("255.255.255.255", False),
    ("192.0.2.1", True),
    ("192.0.2.129", False),  # a prohibited part of what the default route reaches
    ("fd00::2", True),
    ("fd00::1", False),
    ("::1", False),
    ("ff02::1", False),
    ("2001:db8::1", False),  # no route
])  # fmt: skip
def test_only_other_hosts_are_left_for(netlink: Netlink, text: str, leaves: bool) -> None:
    assert leaves_host(netlink, ip_address(text)) is leaves
