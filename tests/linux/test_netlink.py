"""Messages and sockets against what the kernel makes of them, as `ip` shows it; and the errors."""

import errno
import json
import socket
import struct
from ipaddress import ip_interface, ip_network

import pytest

from overlayd.errors import MechanismError
from overlayd.linux import netlink as netlink_module
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import address_request, find_link, link_index, look_up_request, route_request
from overlayd.linux.monitor import Monitor
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import parse_route, route_filter
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL, nested, text

NEW = NLM_F_CREATE | NLM_F_EXCL


def bridge(name, *more, up=False):
    kind = nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "bridge"))
    body = rt.link_body(text(rt.IFLA_IFNAME, name), kind, *more, up=up)
    return Request("create bridge", name, rt.RTM_NEWLINK, NEW, body)


def test_links_decode_as_ip_shows_them(host, shell):
    shell(
        "ip link add d0 mtu 1333 address 02:00:00:00:00:07 group 77 type veth peer name d1;"
        "ip link set d0 up alias 'overlayd x y'"
    )
    shell("ip link property add dev d0 altname other; ip link add br0 type bridge; ip link set d0 master br0")
    shell("ip link add v0 type veth peer name v1")
    with Netlink() as netlink:
        links = {link.name: link for link in map(rt.parse_link, netlink.dump("list", rt.RTM_GETLINK, rt.link_filter()))}
    shown = {link["ifname"]: link for link in json.loads(shell("ip -j -d link"))}
    assert links.keys() == shown.keys()
    d0 = links["d0"]
    assert (d0.mtu, d0.group, d0.alias, d0.alternative_names) == (1333, 77, "overlayd x y", ("other",))
    assert (d0.mac, d0.kind, d0.master) == (bytes([2, 0, 0, 0, 0, 7]), "veth", links["br0"].ifindex)
    assert (links["v0"].peer, links["v1"].peer) == (links["v1"].ifindex, links["v0"].ifindex)
    for name, link in links.items():
        assert link.ifindex == shown[name]["ifindex"]
        assert bool(link.flags & rt.IFF_UP) == ("UP" in shown[name]["flags"])
        assert link.kind == shown[name].get("linkinfo", {}).get("info_kind", "")


def test_addresses_and_routes_decode_as_they_were_asked_for(host, shell):
    shell("ip link add d0 type bridge; ip link add d1 type bridge; ip link set d0 up; ip link set d1 up")
    wanted = {ip_interface("10.1.2.3/16"), ip_interface("fd01::3/64")}
    with Netlink() as netlink:
        d0, d1 = link_index("d0"), link_index("d1")
        netlink.transact([address_request(d0, interface) for interface in wanted])
        netlink.transact(
            [
                route_request(d0, ip_network("10.9.0.0/16"), ip_interface("10.1.0.1/32").ip, flags=NEW),
                route_request(d1, ip_network("10.8.0.1/32"), flags=NEW),
                route_request(d0, ip_network("::/0"), ip_interface("fd01::1/64").ip, flags=NEW),
            ]
        )
        shell(
            "ip route add 10.7.0.0/16 nexthop via 10.1.0.1 dev d0 nexthop dev d1;"
            "ip route add 10.6.0.0/16 dev d0 mtu 1300 metric 5"
        )
        addresses = [rt.parse_address(body) for body in netlink.dump("list", rt.RTM_GETADDR, rt.address_filter(d0))]
        routes = {r.destination: r for r in map(parse_route, netlink.dump("list", rt.RTM_GETROUTE, route_filter()))}
        ours = [parse_route(body) for body in netlink.dump("list", rt.RTM_GETROUTE, route_filter(0x6F))]
    assert {a.interface for a in addresses if a.scope == rt.RT_SCOPE_UNIVERSE} == wanted
    assert routes[ip_network("10.9.0.0/16")].gateway == ip_interface("10.1.0.1/32").ip
    assert routes[ip_network("10.8.0.1/32")].scope == rt.RT_SCOPE_LINK
    assert [index for index, _flags in routes[ip_network("10.7.0.0/16")].hops] == [d0, d1]
    assert (routes[ip_network("10.6.0.0/16")].mtu, routes[ip_network("10.6.0.0/16")].metric) == (1300, 5)
    assert routes[ip_network("10.1.0.0/16")].source == ip_interface("10.1.2.3/16").ip
    assert {route.destination for route in ours} == {
        ip_network("10.9.0.0/16"),
        ip_network("10.8.0.1/32"),
        ip_network("::/0"),
    }
    assert "nodad" in shell("ip address show dev d0") and "tentative" not in shell(
        "ip address show dev d0 to fd01::/64"
    )


def test_a_batch_names_the_request_that_was_refused_and_does_the_others(host):
    with Netlink() as netlink, pytest.raises(MechanismError) as raised:
        netlink.transact([bridge("a0"), bridge("a0"), bridge("b0")])
    assert (raised.value.operation, raised.value.object, raised.value.errno) == ("create bridge", "a0", errno.EEXIST)
    assert link_index("a0") and link_index("b0")


def test_the_kernels_explanation_is_in_the_detail(host):
    unknown = rt.link_body(text(rt.IFLA_IFNAME, "x0"), nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "nonesuch")))
    with Netlink() as netlink, pytest.raises(MechanismError) as raised:
        netlink.transact([Request("create", "x0", rt.RTM_NEWLINK, NLM_F_CREATE, unknown)])
    assert raised.value.errno == errno.EOPNOTSUPP
    assert raised.value.detail == "Unknown device type"


def test_tolerated_errors_are_no_errors_and_replies_come_back_in_order(host):
    with Netlink() as netlink:
        replies = netlink.transact(
            [
                look_up_request("nope", errno.ENODEV),
                bridge("a0"),
                look_up_request("a0"),
                look_up_request("lo"),
            ]
        )
        assert [rt.parse_link(body).name for body in replies] == ["a0", "lo"]
        assert find_link(netlink, "nope") is None


def test_more_requests_than_the_receive_buffer_holds_acknowledgements(host):
    with Netlink() as netlink:
        netlink.transact([bridge("a0", up=True)])
        index = link_index("a0")
        many = [ip_interface(f"10.{n >> 8}.{n & 255}.1/32") for n in range(1000)]
        netlink.transact([address_request(index, interface) for interface in many])
        bodies = netlink.dump("list", rt.RTM_GETADDR, rt.address_filter(index))
    found = {rt.parse_address(body).interface for body in bodies}
    assert found >= set(many)


def test_what_is_done_is_told_once_a_batch_and_what_is_refused_each_time(host, monkeypatch):
    told = []

    def receive(opened):
        for each in received(opened):
            told.append(each)
            yield each

    received = netlink_module.receive
    monkeypatch.setattr(netlink_module, "receive", receive)
    with Netlink() as netlink:
        netlink.transact([bridge(f"a{number}") for number in range(20)])
        assert len(told) == 1
        again = [bridge(f"a{number}") for number in (3, 7, 20, 9)]
        with pytest.raises(MechanismError) as raised:
            netlink.transact([again[0]._replace(tolerated=(errno.EEXIST,)), *again[1:]])
    assert raised.value.object == "a7"
    assert len(told) == 1 + 3
    assert link_index("a20")


def test_an_interrupted_dump_is_read_again(host, monkeypatch):
    """The kernel sets the flag on its own time: here it is set on the first message of the first reading."""
    genuine = netlink_module.messages
    readings = []

    def interrupt_once(data):
        for message in genuine(data):
            readings.append(message.type)
            mark = netlink_module.NLM_F_DUMP_INTR if len(readings) == 1 else 0
            yield message._replace(flags=message.flags | mark)

    monkeypatch.setattr(netlink_module, "messages", interrupt_once)
    with Netlink() as netlink:
        bodies = netlink.dump("list", rt.RTM_GETLINK, rt.link_filter())
    assert readings.count(netlink_module.NLMSG_DONE) == 2
    assert len(bodies) == len({rt.parse_link(body).name for body in bodies})


def test_a_dump_that_is_always_interrupted_is_an_error(host, monkeypatch):
    interrupted = netlink_module.Message(
        netlink_module.NLMSG_DONE, netlink_module.NLM_F_DUMP_INTR, 0, 0, memoryview(b"")
    )
    monkeypatch.setattr(Netlink, "walk", lambda *_: iter([interrupted]))
    with Netlink() as netlink, pytest.raises(MechanismError) as raised:
        netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter())
    assert raised.value.errno == errno.EINTR


def test_a_refused_dump_is_an_error(host):
    with Netlink() as netlink, pytest.raises(MechanismError) as raised:
        netlink.dump("list links", rt.RTM_GETLINK, b"\1" * 16)
    assert (raised.value.operation, raised.value.errno) == ("list links", errno.EINVAL)


def netlink_socket():
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def test_only_the_kernel_can_write_to_a_socket_of_ours(host):
    """A container that may configure its own network may write to the sockets in it."""
    with Netlink() as netlink, Monitor() as monitor, netlink_socket() as forger:
        for ours in (netlink._socket, *monitor.sockets[:1]):
            port, _groups = ours.getsockname()
            with pytest.raises(ConnectionRefusedError):
                forger.sendto(bytes(16), (port, 0))


def test_what_others_have_written_is_passed_over(host):
    with netlink_socket() as ours, netlink_socket() as forger:
        ours.bind((0, 0))
        port, _groups = ours.getsockname()
        refusal = struct.pack("=IHHIIi16x", 36, netlink_module.NLMSG_ERROR, 0, 1, 0, -errno.ENODEV)
        for forged in (refusal, bytes(16)):
            forger.sendto(forged, (port, 0))
        ours.send(netlink_module.message(rt.RTM_GETLINK, netlink_module.NLM_F_REQUEST, 1, look_up_request("lo").body))
        (answer,) = netlink_module.receive(ours)
        assert rt.parse_link(answer.body).name == "lo"


def test_answers_to_what_was_cut_short_are_passed_over(host, monkeypatch):
    genuine = netlink_module.receive
    with Netlink() as netlink:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(netlink_module, "receive", interrupted)
            netlink.transact([look_up_request("nope"), look_up_request("lo")])
        assert genuine is netlink_module.receive
        assert find_link(netlink, "lo").name == "lo"
        next(netlink.walk("list", rt.RTM_GETADDR, rt.address_filter()))
        assert [rt.parse_link(body).name for body in netlink.dump("list", rt.RTM_GETLINK, rt.link_filter())] == ["lo"]


def interrupted(*_):
    raise KeyboardInterrupt
