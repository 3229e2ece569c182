"""What may drop packets of a link out of sight of nftables."""

import ctypes
import os
import socket
import struct

import pytest

from overlayd.linux import rtnetlink as rt
from overlayd.linux.link_filters import link_filters
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.link_filters import LinkFilter
from overlayd.model.objects import GROUP_BRIDGE
from overlayd.proto.netlink import attribute, nested

BPF, BPF_PROG_LOAD, BPF_PROG_TYPE_XDP = 321, 5, 6  # the system call on amd64, linux/bpf.h
DROP = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = XDP_DROP; exit
ALL = "protocol all prio 8 u32 match u32 0 0 action"


@pytest.fixture(autouse=True)
def links(host, shell):
    for name in ("eth0", "ours", "other"):
        shell(f"ip link add {name} type veth peer name {name}-far; ip link set {name} up; ip link set {name}-far up")
    shell(f"ip link set ours group {GROUP_BRIDGE}; tc qdisc add dev other root blackhole")


def test_nothing(shell):
    assert link_filters("eth0") == []
    shell("tc qdisc add dev eth0 root tbf rate 1gbit burst 1m latency 9ms; tc qdisc add dev ours clsact")
    assert link_filters("eth0") == []


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("tc qdisc add dev ours root blackhole", [LinkFilter("ours", "blackhole")]),
        (
            f"tc filter add dev ours ingress {ALL} mirred egress redirect dev lo",
            [LinkFilter("ours", "redirect", "ingress", "lo")],
        ),
        (
            f"tc filter add dev ours egress {ALL} mirred egress redirect dev lo",
            [LinkFilter("ours", "redirect", "egress", "lo")],
        ),
        (f"tc filter add dev ours egress {ALL} mirred egress mirror dev lo", []),
        ("tc filter add dev eth0 ingress bpf da bytecode '1,6 0 0 0'", [LinkFilter("eth0", "bpf", "ingress")]),
    ],
)
def test_queueing_disciplines_and_filters(shell, command, found):
    if "filter" in command:
        shell(f"tc qdisc add dev {command.split()[4]} clsact")
    shell(command)
    assert link_filters("eth0") == found


def test_a_redirection_to_what_shapes_loses_nothing(shell):
    """CNI's bandwidth plugin limits what a container sends so, and calls the link bwp..."""
    shell("ip link add bwp0123456789a type ifb; ip link set bwp0123456789a up; tc qdisc add dev ours clsact")
    shell(f"tc filter add dev ours ingress {ALL} mirred egress redirect dev bwp0123456789a")
    assert link_filters("eth0") == []
    shell("ip link set bwp0123456789a down")
    assert link_filters("eth0") == [LinkFilter("ours", "redirect", "ingress", "bwp0123456789a")]


@pytest.mark.parametrize("link", ["ours", "eth0"])
@pytest.mark.parametrize("options", ["pfifo limit 0", "tbf rate 8bit burst 10 latency 1ms"])
def test_a_queueing_discipline_that_drops_what_it_gets(shell, link, options):
    shell(f"tc qdisc add dev {link} root {options}")
    to_nobody(link)
    assert link_filters("eth0") == [LinkFilter(link, "lossy", target=options.split()[0])]
    shell(f"tc qdisc del dev {link} root; tc qdisc add dev {link} root pfifo limit 100")
    to_nobody(link)
    assert link_filters("eth0") == []


def to_nobody(link):
    """Send some frames by a link."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((link, 0))
        for _ in range(5):
            try:
                raw.send(bytes(6) + bytes(6) + b"\x08\x00" + bytes(60))
            except OSError:  # the discipline has no room
                continue


def test_xdp():
    code, license = ctypes.create_string_buffer(DROP), ctypes.create_string_buffer(b"GPL")
    about = struct.pack("<IIQQ", BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(license))
    request = ctypes.create_string_buffer(about, 128)
    program = ctypes.CDLL(None, use_errno=True).syscall(BPF, BPF_PROG_LOAD, request, 128)
    if program < 0:
        pytest.skip(f"this kernel takes no program: {os.strerror(ctypes.get_errno())}")
    try:
        generic = attribute(3, struct.pack("=I", 2))  # IFLA_XDP_FLAGS, XDP_FLAGS_SKB_MODE
        xdp = nested(43, attribute(1, struct.pack("=i", program)), generic)
        with Netlink() as netlink:
            body = rt.link_body(xdp, index=socket.if_nametoindex("ours"))
            netlink.transact([Request("attach XDP", "ours", rt.RTM_SETLINK, 0, body)])
    finally:
        os.close(program)
    assert link_filters("eth0") == [LinkFilter("ours", "xdp")]
