"""Scripts against the kernel: their order, the way into a namespace and back, and what a refusal is called."""

import errno
import os
from ipaddress import ip_interface
from pathlib import Path
from socket import if_indextoname

import pytest

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux import netns, own_routes
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import address_request, find_link
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.script import Script, run
from overlayd.linux.syscalls import LATER
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, nested, text


def bridge_request(name):
    body = rt.link_body(text(rt.IFLA_IFNAME, name), nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "bridge")))
    return Request("create bridge", name, rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def up_request(name):
    return Request("set up", name, rt.RTM_SETLINK, 0, rt.link_body(index=LATER, up=True))


@pytest.fixture
def inside(host, container):
    """A container, and a descriptor of its namespace."""
    box = container()
    descriptor = netns.open_namespace(box.netns)
    yield box, descriptor
    os.close(descriptor)


def done(*scripts):
    with Netlink() as netlink:
        run(netlink, scripts)


def test_on_the_host_and_inside_in_one_run(inside, shell):
    box, descriptor = inside
    script = Script()
    script.transact([bridge_request("out0")])
    script.enter(descriptor)
    script.transact([bridge_request("in0")])
    script.find("in0")
    script.transact([up_request("in0"), address_request(LATER, ip_interface("10.9.0.1/24"))])
    script.leave()
    script.find("out0")
    script.transact([up_request("out0")])
    done(script)
    assert script.finish()
    assert "in0" in box.run("ip -4 -o address") and "out0" not in box.run("ip -o link")
    assert "UP" in shell("ip -o link show out0") and "in0" not in shell("ip -o link")
    assert netns.own_inode() != box.netns.inode


def test_a_refusal_ends_its_script_and_no_other(inside):
    _box, descriptor = inside
    first, second = Script(), Script()
    first.enter(descriptor)
    first.find("nonesuch")
    first.transact([bridge_request("never0")])
    second.transact([bridge_request("b0"), bridge_request("b0"), bridge_request("b1")])
    second.transact([bridge_request("b2")])
    done(first, second)
    with pytest.raises(MechanismError) as raised:
        first.finish()
    assert (raised.value.operation, raised.value.object, raised.value.errno) == ("find link", "nonesuch", errno.ENODEV)
    with pytest.raises(MechanismError) as raised:
        second.finish()
    assert (raised.value.operation, raised.value.object, raised.value.errno) == ("create bridge", "b0", errno.EEXIST)
    with Netlink() as netlink:  # the kernel carries out what follows in the same datagram, the script does not go on
        assert [find_link(netlink, name) is not None for name in ("b0", "b1", "b2", "never0")] == [
            True,
            True,
            False,
            False,
        ]


def test_the_kernels_own_words(host):
    unknown = rt.link_body(text(rt.IFLA_IFNAME, "x0"), nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "nonesuch")))
    script = Script()
    script.transact([Request("create", "x0", rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, unknown)])
    done(script)
    with pytest.raises(MechanismError, match="Unknown device type"):
        script.finish()


def test_what_is_tolerated_is_no_refusal(host):
    script = Script()
    script.transact([bridge_request("b0")])
    script.transact([bridge_request("b0")], (errno.EEXIST,))
    script.set_parameter("ipv6/conf/nonesuch/accept_ra", "0", (errno.ENOENT,))
    done(script)
    assert script.finish()


def test_a_parameter_that_has_its_value_is_not_written(inside):
    box, descriptor = inside
    script = Script()
    script.enter(descriptor)
    script.set_parameter("ipv6/conf/lo/accept_ra", "0")
    script.set_parameter("ipv6/conf/lo/accept_ra", "0", unless_there=True)
    script.set_parameter("ipv6/conf/lo/nonesuch", "0", unless_there=True)
    done(script)
    with pytest.raises(MechanismError) as raised:
        script.finish()
    assert (raised.value.object, raised.value.errno) == ("net/ipv6/conf/lo/nonesuch", errno.ENOENT)
    assert box.run("cat /proc/sys/net/ipv6/conf/lo/accept_ra").strip() == "0"


def test_routes_stop_a_script_which_goes_on_inside(inside):
    box, descriptor = inside
    box.run("sh -c 'ip link set lo up; ip address add 192.0.2.1/24 dev lo; ip route add 198.51.100.0/24 dev lo'")
    script = Script()
    script.enter(descriptor)
    script.require_no_routes(own_routes.TABLE)
    script.find("lo")
    script.require_no_routes(rt.RT_TABLE_MAIN)
    behind = script.length
    script.transact([address_request(LATER, ip_interface("192.0.2.9/32"))])
    done(script)
    assert not script.finish()
    assert script.stopped == behind - 1
    script.go_on(behind)
    done(script)
    assert script.finish()
    assert "192.0.2.9" in box.run("ip -4 -o address show lo")


def test_what_never_comes_up(host, monkeypatch):
    script = Script()
    script.transact([bridge_request("b0")])
    script.await_ready("b0")
    done(script)
    with pytest.raises(MechanismError, match="it does not come up") as raised:
        script.finish()
    assert raised.value.errno == errno.ETIMEDOUT


def test_a_fault_point_in_the_middle(inside, monkeypatch):
    _box, descriptor = inside
    passed = []

    def pass_or_break(name):
        passed.append(name)
        if name == "here":
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fault, "ARMED", True)
    monkeypatch.setattr(fault, "point", pass_or_break)
    script = Script()
    script.enter(descriptor)
    script.transact([bridge_request("in0")])
    script.point("here")
    script.transact([bridge_request("in1")])
    done(script)
    with pytest.raises(OSError, match="broken"):
        script.finish()
    assert passed == ["netlink:create bridge", "here"]
    assert if_indextoname(1) == "lo" and netns.own_inode() != os.fstat(descriptor).st_ino


def test_a_way_in_that_is_none(host):
    script = Script()
    with Path("/proc/self/stat").open() as file:
        script.enter(file.fileno())
        done(script)
    with pytest.raises(MechanismError) as raised:
        script.finish()
    assert (raised.value.operation, raised.value.errno) == ("enter", errno.EINVAL)
