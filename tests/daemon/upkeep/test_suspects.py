"""Which part of the node an event makes suspect: our own work acquits itself, somebody else's does not."""

import os
import threading
from ipaddress import ip_address, ip_interface, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from overlayd.daemon.change.node import Node as LiveNode
from overlayd.daemon.upkeep.suspects import (
    EGRESS,
    EVERYTHING,
    FORWARDING,
    HOST,
    PID_MAX,
    RULESET,
    SURROUNDINGS,
    Judge,
    Part,
)
from overlayd.linux import bridge, veth
from overlayd.linux import rtnetlink as rt
from overlayd.linux.monitor import (
    AddressChanged,
    Event,
    LinkChanged,
    MacForgotten,
    MacTold,
    Overrun,
    ParameterChanged,
    PortChanged,
    RouteChanged,
    RulesetChanged,
)
from overlayd.linux.route_messages import KernelRoute
from overlayd.model.layout import Facts, mac, veths
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, ROUTE_PROTOCOL, Netns, veth_alias
from overlayd.model.rows import Attachment, Node, Overlay, Peer, Service
from overlayd.model.state import State

MTU = 1420
PID = os.getpid() + 1  # a process that did something, perhaps long gone
SERVICE, GLOBAL, OWN = Part("service", "web"), Part("device", ""), Part("device", "own")

STATE = State(
    [
        Node(private_key=bytes(32)),
        Overlay(deployment="d", instance_id="i", interface="zl-d-i-g", cluster=ip_network("10.0.0.0/8"), wg_port=51820),
        Service(name="web", subnet=ip_network("10.200.0.0/28"), bridge="zl-d-i-web-b"),
        Service(
            name="own", subnet=ip_network("10.200.1.0/28"), bridge="zl-d-i-own-b", device="zl-d-i-own-d", wg_port=51821
        ),
        Peer(scope="own", public_key=b"P" * 32, listed=(ip_network("10.9.0.0/24"),)),
        Attachment(handle="pid:7", service="web", address=ip_address("10.200.0.2"), netns=Netns(7, 1, 2)),
    ]
)
BRIDGE = rt.Link(
    ifindex=3,
    flags=rt.IFF_UP | rt.IFF_MULTICAST,
    name="zl-d-i-web-b",
    mtu=MTU,
    group=GROUP_BRIDGE,
    master=0,
    peer=0,
    kind="bridge",
    alias="overlayd bridge web",
    mac=bridge.mac(ip_address("10.200.0.1")),
    alternative_names=(),
)
VETH = BRIDGE._replace(
    ifindex=4,
    name="veth-7-s",
    group=GROUP_VETH,
    master=3,
    kind="veth",
    alias="",
    mac=veth.host_mac(mac(ip_address("10.200.0.2"))),
)
DEVICE = BRIDGE._replace(
    ifindex=5, name="zl-d-i-own-d", group=GROUP_DEVICE, kind="tun", alias="overlayd device own", mac=b""
)
UPLINK = BRIDGE._replace(ifindex=2, name="eth9", group=0, alias="", mac=b"")


class Record:
    """What was suspected and what acquitted."""

    def __init__(self) -> None:
        self.verdicts: list[tuple[Part, str] | Part] = []
        self.causes: list[str] = []
        self.patient: list[str] = []  # the causes that can wait

    def suspect(self, part: Part, cause: str, who: str = "", *, changing: bool = False) -> None:
        self.verdicts.append((part, who))
        self.causes.append(cause)
        self.patient += [cause] * changing

    def acquit(self, part: Part, cause: str) -> None:
        self.verdicts.append(part)
        self.causes.append(cause)


def judged(*events: Event, state: State = STATE) -> list[Any]:
    """The verdicts on events, on a host with an uplink, a bridge, a veth and a device."""
    return recorded(*events, state=state).verdicts


def recorded(*events: Event, changing: tuple[str, ...] = (), state: State = STATE) -> Record:
    """changing: the resources that requests under way hold."""
    record = Record()
    node = SimpleNamespace(state=state, facts=Facts(mtu=MTU), is_settled=lambda resource: resource not in changing)
    judge = Judge(cast(LiveNode, node), record)
    judge.remember([UPLINK, BRIDGE, VETH, DEVICE])
    for event in events:
        judge.judge(event)
    return record


def test_what_a_request_is_about_to_change_may_yet_acquit_itself() -> None:
    """Half-made by ourselves, it is looked at only if nothing follows."""
    half = (
        LinkChanged(VETH._replace(master=0), gone=False),
        PortChanged(VETH._replace(flags=rt.IFF_UP, port={33: b"\1"})),
    )
    assert recorded(*half).patient == []
    assert recorded(*half, changing=("pid:7",)).patient == [VETH.name, f"port {VETH.name}"]
    assert recorded(*half, changing=("pid:8", "service web")).patient == []
    down = LinkChanged(BRIDGE._replace(flags=0), gone=False)
    assert recorded(down).patient == []
    assert recorded(down, changing=("service web",)).patient == [BRIDGE.name]


@pytest.mark.parametrize(
    ("flags", "port", "fine"),
    [
        (rt.IFF_LOWER_UP, {1: b"\3", 33: b"\0", 8: b"\1"}, True),
        (rt.IFF_LOWER_UP, {1: b"\3", 33: b"\1"}, False),
        (rt.IFF_LOWER_UP, {1: b"\3", 8: b"\0"}, False),
        (rt.IFF_LOWER_UP, {1: b"\0"}, False),
        (0, {1: b"\0"}, True),  # its other end is down
        (rt.IFF_LOWER_UP, {}, True),  # of an old kernel
    ],
)
def test_the_options_of_a_port(flags: int, port: dict[int, bytes], fine: bool) -> None:
    found = judged(PortChanged(VETH._replace(flags=rt.IFF_UP | flags, port=port)))
    assert (found == [SERVICE]) == fine  # acquitted, else suspected


def test_a_port_of_somebody_else_is_nobodys_business() -> None:
    assert judged(PortChanged(UPLINK._replace(port={33: b"\1"}))) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"bridge": {5: b"\1\0\0\0"}},
        {"bridge": {23: b"\1"}},
        {"flags": rt.IFF_UP | rt.IFF_MULTICAST | rt.IFF_NOARP},
        {"flags": rt.IFF_UP},
    ],
)
def test_the_options_of_a_bridge(changed: dict[str, Any]) -> None:
    assert judged(LinkChanged(BRIDGE._replace(**changed), False)) != [SERVICE]


@pytest.mark.parametrize("found", [BRIDGE, VETH, BRIDGE._replace(name="old-b", alternative_names=("zl-d-i-web-b",))])
def test_a_link_that_is_as_wanted_acquits_itself(found: rt.Link) -> None:
    assert judged(LinkChanged(found, False)) == [SERVICE]


def test_what_the_layout_has_of_a_container_is_what_its_links_are_held_to() -> None:
    """The judge has a shorter way to it."""
    attachment = Attachment(
        handle="pid:7",
        service="web",
        address=ip_address("10.200.0.2"),
        global_address=ip_address("10.1.0.2"),
        mac=b"\2\0\0\0\0\7",
        netns=Netns(7, 1, 2),
    )
    overlay = replace(STATE.table(Overlay)[""], slice=ip_network("10.1.0.0/16"))
    state = State([*STATE.table(Node).values(), *STATE.table(Service).values(), overlay, attachment])
    wanted = [*veths(state, Facts(mtu=MTU), attachment)]
    assert [each.name for each in wanted] == ["veth-7-s", "veth-7-g"]
    for each in wanted:
        link = VETH._replace(
            name=each.name,
            mtu=each.mtu,
            master=3 if each.bridge else 0,
            mac=veth.host_mac(each.mac),
            alias=veth_alias(each.label, aside=False),
        )
        assert judged(LinkChanged(link, False), state=state) == [SERVICE]
        assert judged(LinkChanged(link._replace(mac=bytes(6)), False), state=state) != [SERVICE]


@pytest.mark.parametrize(
    "found",
    [
        BRIDGE._replace(flags=0),
        BRIDGE._replace(mtu=1300),
        BRIDGE._replace(group=0),
        BRIDGE._replace(alias=""),
        BRIDGE._replace(name="other"),
        BRIDGE._replace(kind="veth"),
        BRIDGE._replace(mac=bytes(6)),
        VETH._replace(flags=0),
        VETH._replace(mtu=1300),
        VETH._replace(group=0),
        VETH._replace(mac=bytes(6)),
        VETH._replace(master=0),
        VETH._replace(master=5),
        VETH._replace(name="veth-7-g"),
    ],
)
def test_a_link_that_is_not_makes_its_service_suspect(found: rt.Link) -> None:
    assert judged(LinkChanged(found, False)) == [(SERVICE, "")]


def test_of_a_device_too_little_is_told() -> None:
    assert judged(LinkChanged(DEVICE, False)) == [(OWN, "")]
    assert judged(LinkChanged(DEVICE._replace(name="zl-d-i-g", alias=""), True)) == [(GLOBAL, "")]


def test_links_that_nothing_wants_are_left_to_the_audit() -> None:
    stale = [VETH._replace(name="veth-8-s"), BRIDGE._replace(name="zl-x-b", alias="overlayd bridge gone")]
    virtual = UPLINK._replace(name="docker0")
    assert judged(*(LinkChanged(each, gone) for each in (*stale, virtual) for gone in (False, True))) == []


def test_a_host_end_with_another_name_makes_everything_suspect() -> None:
    renamed = VETH._replace(name="elsewhere0")
    assert judged(LinkChanged(renamed, False)) == [(EVERYTHING, "")]
    assert judged(LinkChanged(renamed, True)) == []
    assert judged(LinkChanged(renamed._replace(ifindex=9), False)) == []  # never ours by its name


def test_a_mac_that_a_bridge_forgot() -> None:
    record = recorded(MacForgotten(VETH.ifindex, VETH.mac), MacForgotten(99, VETH.mac))
    assert (record.verdicts, record.patient) == ([(SERVICE, "")], ["MAC at 4"])
    gone = judged(LinkChanged(VETH, True), MacForgotten(VETH.ifindex, VETH.mac))
    assert gone == judged(LinkChanged(VETH, True)), "the port has left"


def test_a_mac_that_somebody_told() -> None:
    foreign, inner = bytes.fromhex("020000000099"), b"\x02" + VETH.mac[1:]
    assert judged(MacTold(VETH.ifindex, foreign), MacTold(BRIDGE.ifindex, VETH.mac)) == [(SERVICE, "")] * 2
    own = [MacTold(VETH.ifindex, VETH.mac), MacTold(BRIDGE.ifindex, BRIDGE.mac)]
    if VETH.mac[:1] == b"\xfe":
        own.append(MacTold(VETH.ifindex, inner))
    assert judged(*own, MacTold(UPLINK.ifindex, foreign), MacTold(99, foreign)) == []


def test_the_mac_that_a_bridge_was_made_with_is_no_suspicion_once_it_is_forgotten() -> None:
    first = b"\x5e\1\2\3\4\5"
    record = recorded(MacTold(BRIDGE.ifindex, first), MacForgotten(BRIDGE.ifindex, first))
    assert record.verdicts == [(SERVICE, ""), SERVICE]
    assert record.causes == ["MAC 5e:01:02:03:04:05 at 3"] * 2
    assert judged(MacForgotten(BRIDGE.ifindex, BRIDGE.mac)) == [(SERVICE, "")]


def test_an_address_that_a_bridge_should_have_may_come_and_not_go() -> None:
    wanted, other = ip_interface("10.200.0.1/28"), ip_interface("10.99.0.1/26")
    assert judged(AddressChanged(BRIDGE.ifindex, 0, wanted)) == []
    assert judged(AddressChanged(BRIDGE.ifindex, 0, other)) == [(SERVICE, "")]
    assert judged(AddressChanged(BRIDGE.ifindex, 0)) == [(SERVICE, "")]
    assert judged(AddressChanged(DEVICE.ifindex, 0, wanted)) == [(OWN, "")], "not the bridge's"


def test_what_was_deleted() -> None:
    assert judged(LinkChanged(BRIDGE, True), LinkChanged(VETH._replace(master=0), False)) == [(SERVICE, "")] * 2
    assert judged(LinkChanged(BRIDGE, True), AddressChanged(BRIDGE.ifindex, PID)) == [
        (SERVICE, ""),
        (SURROUNDINGS, ""),  # a link that is gone is nobody's
    ]


def test_the_way_out() -> None:
    default = KernelRoute(ip_network("0.0.0.0/0"), 254, 3, 0, 1, None, None, 0, 0, ((2, 0),))
    events = (LinkChanged(UPLINK, False), AddressChanged(2, PID), RouteChanged(default, False, PID))
    both = [(EGRESS, ""), (SURROUNDINGS, "")]
    assert judged(*events) == [(EGRESS, ""), *reversed(both), *both]


def test_a_network_of_somebody_elses() -> None:
    assert judged(AddressChanged(4711, PID)) == [(SURROUNDINGS, "")]


@pytest.mark.parametrize(
    ("port", "who"),
    [(0, ""), pytest.param(os.getpid(), "", id="ourselves"), (PID_MAX + 1, ""), (4294967290, ""), (1, "process 1")],
)
def test_who_asked_for_an_address(port: int, who: str) -> None:
    ((part, said),) = judged(AddressChanged(BRIDGE.ifindex, port))
    assert part == SERVICE
    assert said == who or said.endswith(f"({who})")


def test_a_lost_route_is_suspect_unless_its_peer_is_gone() -> None:
    def lost(
        destination: str, index: int = DEVICE.ifindex, gone: bool = True, protocol: int = ROUTE_PROTOCOL
    ) -> RouteChanged:
        hops = ((index, 0),)
        return RouteChanged(
            KernelRoute(ip_network(destination), 254, protocol, 253, 1, None, None, 0, 0, hops), gone, 0
        )

    connected = rt.RTPROT_KERNEL
    assert judged(lost("10.200.1.0/28", protocol=connected)) == [(OWN, "")]
    assert judged(lost("10.200.0.0/28", index=BRIDGE.ifindex, protocol=connected)) == [(SERVICE, "")]
    assert judged(lost("10.8.0.0/24", index=UPLINK.ifindex, protocol=connected)) == []
    assert judged(lost("10.9.0.0/24")) == [(OWN, "")]
    assert judged(lost("10.8.0.0/24"), lost("10.9.0.0/24", gone=False), lost("10.9.0.0/24", index=99)) == []
    assert judged(lost("10.200.0.2/32", index=VETH.ifindex)) == [(SERVICE, "")]


def test_parameters() -> None:
    wrong = [rt.Netconf(-1, 0, None), rt.Netconf(BRIDGE.ifindex, 0, None), rt.Netconf(DEVICE.ifindex, None, 1)]
    right = [rt.Netconf(-1, 1, None), rt.Netconf(BRIDGE.ifindex, None, 2), rt.Netconf(99, 0, 1)]
    assert judged(*map(ParameterChanged, wrong)) == [(FORWARDING, "")] * 3
    assert judged(*map(ParameterChanged, right)) == []
    assert judged(ParameterChanged(rt.Netconf(UPLINK.ifindex, 0, None))) == [(HOST, "")], "the host's, to be named"


def test_the_ruleset() -> None:
    own = threading.get_native_id()
    assert judged(RulesetChanged(True, own, "python"), RulesetChanged(False, PID, "nft")) == []
    assert judged(RulesetChanged(True, PID_MAX, "nft")) == [(RULESET, f"nft (process {PID_MAX})")]


def test_what_was_not_heard() -> None:
    assert judged(Overrun(True), Overrun(False)) == [(RULESET, ""), (EVERYTHING, "")]
