"""What happens in a namespace is heard of, with who did it where the kernel tells."""

import os
import select
import socket
import threading
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from lab.patience import LIMIT

from overlayd.linux.monitor import (
    AddressChanged,
    LinkChanged,
    MacForgotten,
    MacTold,
    Monitor,
    Overrun,
    ParameterChanged,
    RouteChanged,
    RulesetChanged,
    is_own_thread,
    process_name,
)
from overlayd.linux.nft import Nft
from overlayd.model import set_members
from overlayd.model.objects import NFT_TABLE, Step

# The kernel numbers threads as the initial pid namespace does (PROC_PID_INIT_INO, include/linux/proc_ns.h).
SEES_ITSELF = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC


@pytest.fixture
def monitor(host):
    with Monitor() as opened:
        yield opened


def heard(monitor):
    """All that is there to be read."""
    events = []
    while ready := select.select(monitor.sockets, [], [], 0)[0]:
        for source in ready:
            events += monitor.read(source)
    return events


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def test_links_come_and_go_and_of_each_only_the_last_is_told(monitor, shell):
    shell("ip link add br0 type bridge; ip link add br1 type bridge; ip link set br0 up")
    shell("ip link set br0 alias 'some thing'; ip link set br0 mtu 1300; ip link del br1")
    events = {event.link.name: event for event in of(LinkChanged, heard(monitor))}
    assert [(name, event.gone) for name, event in events.items()] == [("br0", False), ("br1", True)]
    assert (events["br0"].link.mtu, events["br0"].link.alias, events["br0"].link.kind) == (1300, "some thing", "bridge")
    shell("ip link del br0")
    assert [event.gone for event in of(LinkChanged, heard(monitor))] == [True]


def test_a_bridge_that_forgets_a_mac(monitor, shell):
    shell("ip link add br0 address 02:00:00:00:00:02 type bridge; ip link add v0 type veth peer name v1")
    heard(monitor)  # a bridge forgets its own MAC when it is given it
    shell("ip link set v0 master br0; ip link set br0 up; ip link set v0 up")
    shell("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev br0")
    shell("bridge fdb add 02:00:00:00:00:01 dev v0 master static; ip neigh del 192.0.2.9 dev br0")
    assert of(MacForgotten, heard(monitor)) == []
    shell("bridge fdb del 02:00:00:00:00:01 dev v0 master")
    (event,) = of(MacForgotten, heard(monitor))
    assert (event.ifindex, event.mac) == (socket.if_nametoindex("v0"), bytes.fromhex("020000000001"))
    shell("bridge fdb del 02:00:00:00:00:02 dev br0 self")
    (event,) = of(MacForgotten, heard(monitor))
    assert (event.ifindex, event.mac) == (socket.if_nametoindex("br0"), bytes.fromhex("020000000002"))


def test_macs_that_somebody_tells_for_good(monitor, shell):
    shell("ip link add br0 address 02:00:00:00:00:02 type bridge; ip link set br0 up")
    for port in ("v0", "w0"):
        shell(f"ip link add {port} type veth peer name {port}p; ip link set {port} master br0 up")
    heard(monitor)
    for port in ("v0", "w0"):
        shell(f"bridge fdb replace 02:00:00:00:00:01 dev {port} master static")
    shell("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 nud permanent dev br0")
    shell("ip neigh add 192.0.2.8 lladdr 02:00:00:00:00:08 nud reachable dev br0")
    shell("ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 nud stale dev br0; ip neigh add proxy 192.0.2.6 dev br0")
    shell("ip -6 neigh add 2001:db8::9 lladdr 02:00:00:00:00:0a nud permanent dev br0")
    told = [(socket.if_indextoname(event.ifindex), event.mac[-1]) for event in of(MacTold, heard(monitor))]
    assert told == [("v0", 1), ("w0", 1), ("br0", 9), ("br0", 10)]


def test_a_port_leaving_its_bridge_is_no_deletion(monitor, shell):
    shell("ip link add br0 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br0")
    heard(monitor)
    shell("ip link set v0 nomaster")
    events = of(LinkChanged, heard(monitor))
    assert not any(event.gone for event in events)
    assert [event.link.master for event in events if event.link.name == "v0"][-1] == 0


def test_the_port_names_who_asked(monitor):
    pid = os.posix_spawn("/sbin/ip", ["ip", "address", "add", "10.1.2.3/24", "dev", "lo"], os.environ)
    os.waitpid(pid, 0)
    assert {event.port for event in of(AddressChanged, heard(monitor))} == {pid}
    assert process_name(pid) == ""
    assert process_name(os.getpid())


def test_addresses_and_not_those_that_ipv6_gives_itself(monitor, shell):
    shell("ip link add d0 type bridge; ip link set d0 up")
    index = of(LinkChanged, heard(monitor))[0].link.ifindex
    shell("ip address add 10.1.2.3/24 dev d0; ip address del 10.1.2.3/24 dev d0; ip address add fd01::1/64 dev d0")
    events = of(AddressChanged, heard(monitor))
    assert {event.ifindex for event in events} == {index}
    assert [event.added for event in events] == [ip_interface("10.1.2.3/24"), None, ip_interface("fd01::1/64")]
    shell("ip address flush dev d0; ip link set d0 down")
    heard(monitor)
    shell("ip link set d0 up; sleep 0.1")
    assert of(AddressChanged, heard(monitor)) == []


def test_of_the_routes_that_come_with_addresses_the_end(monitor, shell):
    shell("ip link add d0 type bridge; ip link set d0 up; ip address add 10.1.0.1/24 dev d0")
    shell("ip address add fd01::1/64 dev d0 nodad; ip route add 10.2.0.0/24 dev d0; ip route del 10.2.0.0/24")
    assert of(RouteChanged, heard(monitor)) == []
    shell("ip route del 10.1.0.0/24; ip -6 route del fd01::/64 dev d0; ip -6 route del fe80::/64 dev d0")
    events = of(RouteChanged, heard(monitor))
    assert [(str(event.route.destination), event.gone) for event in events] == [
        ("10.1.0.0/24", True),
        ("fd01::/64", True),
    ]


def test_of_routes_default_ones_and_the_end_of_ours(monitor, shell):
    shell("ip link add d0 type bridge; ip link set d0 up; ip address add 10.1.0.1/24 dev d0")
    heard(monitor)
    shell("ip route add 10.2.0.0/16 dev d0; ip route add 10.3.0.0/16 dev d0 proto 0x6f; ip route del 10.3.0.0/16")
    shell("ip route add default via 10.1.0.2; ip -6 route add fd03::/64 dev d0 proto 0x6f; ip -6 route del fd03::/64")
    events = of(RouteChanged, heard(monitor))
    assert [(str(event.route.destination), event.gone) for event in events] == [
        ("10.3.0.0/16", True),
        ("0.0.0.0/0", False),
        ("fd03::/64", True),
    ]


def test_forwarding_and_reverse_path_filtering(monitor, shell):
    shell("ip link add d0 type bridge")
    events = heard(monitor)
    assert of(ParameterChanged, events) == [], "what a new link starts with"
    index = of(LinkChanged, events)[0].link.ifindex
    shell("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/d0/rp_filter")
    told = [event.netconf for event in of(ParameterChanged, heard(monitor))]
    assert any(each.ifindex == -1 and each.forwarding == 1 for each in told)
    assert any(each.ifindex == index and each.rp_filter == 1 for each in told)


def test_who_changed_the_ruleset_and_whether_it_was_ours(monitor, shell):
    nft = Nft()
    nft.ensure()  # by a program of its own, which is one more look at the ruleset
    assert [(event.ours, event.program) for event in of(RulesetChanged, heard(monitor))] == [(True, "nft")]
    nft.apply([Step(None, element) for element in set_members.node(ip_address("10.9.9.8"))])
    (own,) = of(RulesetChanged, heard(monitor))
    assert (own.ours, is_own_thread(own.thread)) == (True, SEES_ITSELF)
    shell("nft add table inet foreign; nft add set inet foreign s '{ type ipv4_addr; }'")
    assert [(event.ours, event.program) for event in of(RulesetChanged, heard(monitor))] == [(False, "nft")] * 2
    for command in (
        f"nft add rule inet {NFT_TABLE} forward drop",
        f"nft add element inet {NFT_TABLE} node4 '{{ 10.9.9.9 }}'",
        f"nft delete table bridge {NFT_TABLE}",
        "nft flush ruleset",
    ):
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"exec {command}"], os.environ)
        os.waitpid(pid, 0)
        (event,) = of(RulesetChanged, heard(monitor))
        assert (event.ours, event.program) == (True, "nft")
        assert (event.thread == pid) == SEES_ITSELF
        assert not is_own_thread(pid)
    nft.close()


def test_a_change_by_another_thread_of_ours_is_ours(monitor):
    nft = Nft()
    nft.ensure()
    heard(monitor)
    done = threading.Event()

    def work():
        nft.apply([Step(None, element) for element in set_members.node(ip_address("10.9.9.8"))])
        done.wait(LIMIT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not (events := of(RulesetChanged, heard(monitor))):
            pass
        assert {is_own_thread(event.thread) for event in events} == {SEES_ITSELF}
    finally:
        done.set()
        thread.join()
        nft.close()


def test_more_than_it_can_hold_is_said_so(host, shell, tmp_path, monkeypatch):
    monkeypatch.setattr("overlayd.linux.monitor._BUFFER", 1 << 16)
    batch = tmp_path / "batch"
    batch.write_text("link add d0 type bridge\n" + "link set d0 mtu 1400\nlink set d0 mtu 1300\n" * 100)
    with Monitor() as monitor:
        shell(f"ip -batch {batch}")
        assert Overrun(False) in heard(monitor)
        shell("ip link set d0 mtu 1234")
        assert of(LinkChanged, heard(monitor))[-1].link.mtu == 1234


def test_a_program_may_have_any_name():
    own = Path("/proc/self/comm")
    before = own.read_bytes().strip()
    try:
        own.write_bytes(b"\xffbad")
        assert process_name(os.getpid()) == r"\xffbad"
    finally:
        own.write_bytes(before)
