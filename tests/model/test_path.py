"""A way is explained from values alone: the first hop that is not right, and no hop of a right way."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model import ends
from overlayd.model.ends import Hop, Known, Member, Peer, Service
from overlayd.model.path import explain
from overlayd.model.seen import Device, DevicePeer, Link, Namespace, OtherSide, Seen, Way

NOW = 1_000_000.0
GATEWAY, DEVICE, BRIDGE = ip_address("10.0.9.1"), "zl-d-g", "zl-d-web-b"
OWN, THEIRS, ANOTHER = ("%s=" % (letter * 43) for letter in "ABC")
WEB = Member("pid:7", "web", ip_address("10.0.9.2"), None, "", "veth-7-s", "02:6f:0a:00:09:02")
NEAR = Member("pid:8", "web", ip_address("10.0.9.3"), None, "", "veth-8-s", "02:6f:0a:00:09:03")
PEER = Peer("beta", THEIRS, "", "192.0.2.2:51820", (ip_network("10.0.2.0/24"), ip_network("10.0.40.0/26")))
KNOWN = Known(
    cluster=ip_network("10.0.0.0/16"),
    slice=ip_network("10.0.1.0/24"),
    node_address=ip_address("10.0.1.1"),
    mtu=1420,
    devices={"": (DEVICE, OWN)},
    services={"web": Service("web", ip_network("10.0.9.0/26"), GATEWAY, BRIDGE, "")},
    members=(WEB, NEAR),
    peers=(PEER,),
    names={"db": (ip_address("10.0.40.2"),), "lost": (ip_address("10.0.77.7"),)},
)


def inside(member: Member) -> Namespace:
    return Namespace(
        links={"lo": Link(True, 65536, "", ""), "eth0": Link(True, 1420, member.mac, "")},
        addresses={"eth0": (f"{member.address}/26", "fe80::1/64")},
        way=Way("eth0", str(GATEWAY)),
    )


HOST = Namespace(
    links={
        BRIDGE: Link(True, 1420, "", ""),
        DEVICE: Link(True, 1420, "", ""),
        WEB.link: Link(True, 1420, "", BRIDGE),
        NEAR.link: Link(True, 1420, "", BRIDGE),
    },
    addresses={BRIDGE: (f"{GATEWAY}/26",), DEVICE: ("10.0.1.1/16",)},
    way=Way(DEVICE),
)
SESSION = DevicePeer((ip_address("192.0.2.2"), 51820), int(NOW) - 20, PEER.allowed_ips)
SEEN = Seen(
    host=HOST,
    source=inside(WEB),
    device=Device(OWN, 51820, {THEIRS: SESSION}),
    answers=dict.fromkeys(("target", "gateway", "other node", "target from here", "other node from here"), 0.001)
    | {"endpoint": 0.001},
    underlay=Way("eth9", "192.0.2.254"),
)


def broken(seen: Seen, source: str = "7", target: str = "db", known: Known = KNOWN) -> str:
    """The broken hop, if any, in one line."""
    hops = explain(known, ends.find(known, source), ends.find(known, target), seen, NOW)
    assert all(each.state != "broken" for each in hops[:-1])
    assert hops[-1].state != "broken" or hops[-1].remedy
    return f"{hops[-1].where} {hops[-1].what}" if hops[-1].state == "broken" else ""


@dataclass
class Case:
    """source, eth0, links, session, device: what of them is otherwise, None for a link that is gone.  seen: of the
    rest.  silent: the pings without an answer.  expected: what the broken hop says, empty when none is broken.
    """

    expected: str
    source: dict[str, Any] | None = None
    eth0: dict[str, Any] | None = None
    links: dict[str, Link | None] | None = None
    session: dict[str, Any] | None = None
    device: dict[str, Any] | None = None
    seen: dict[str, Any] | None = None
    silent: tuple[str, ...] = ()

    def applied(self) -> Seen:
        source = inside(WEB)
        if self.eth0 is not None:
            source = source._replace(links={**source.links, "eth0": source.links["eth0"]._replace(**self.eth0)})
        source = source._replace(**(self.source or {}))
        session = SESSION._replace(**(self.session or {}))
        device = Device(OWN, 51820, {THEIRS: session})._replace(**(self.device or {}))
        links = {**HOST.links, **(self.links or {})}
        host = HOST._replace(links={name: link for name, link in links.items() if link is not None})
        answers = {**SEEN.answers, **dict.fromkeys(self.silent)}
        seen = SEEN._replace(source=source, device=device, host=host, answers=answers)
        return seen._replace(**(self.seen or {}))


CASES = {
    "eth0 down": Case("eth0 of pid:7 is down", eth0={"up": False}),
    "no eth0": Case("is missing; there is only lo", source={"links": {"lo": Link(True, 1, "", "")}}),
    "another MAC": Case("has the MAC 02:00", eth0={"mac": "02:00:00:00:00:01"}),
    "too large an MTU": Case("an MTU of 1500", eth0={"mtu": 1500}),
    "no address": Case("lacks its address 10.0.9.2", source={"addresses": {}}),
    "no route": Case("have no way", source={"way": Way(problem="Network is unreachable")}),
    "another gateway": Case("the gateway is 10.0.9.1", source={"way": Way("eth0", "10.0.9.77")}),
    "another link": Case("not through eth0", source={"way": Way("wg7")}),
    "process gone": Case("cannot be looked at", source={"problem": "No such file or directory"}),
    "process not to be seen": Case("", source={"problem": "Permission denied"}),
    "port gone": Case("veth-7-s is missing", links={"veth-7-s": None}),
    "port of no bridge": Case("is on no bridge, not of zl-d-web-b", links={"veth-7-s": Link(True, 1420, "", "")}),
    "port down": Case("veth-7-s is down", links={"veth-7-s": Link(False, 1420, "", BRIDGE)}),
    "port elsewhere": Case("is a port of br0", links={"veth-7-s": Link(True, 1420, "", "br0")}),
    "bridge down": Case("bridge zl-d-web-b is down", links={BRIDGE: Link(False, 1420, "", "")}),
    "bridge gone": Case("bridge zl-d-web-b is missing", links={BRIDGE: None}),
    "bridge without gateway": Case("lacks the gateway's address", seen={"host": HOST._replace(addresses={})}),
    "device gone": Case("device zl-d-g is missing", links={DEVICE: None}),
    "device down": Case("device zl-d-g is down", links={DEVICE: Link(False, 1420, "", "")}),
    "device of large MTU": Case("device zl-d-g has an MTU", links={DEVICE: Link(True, 1500, "", "")}),
    "device silent": Case("does not tell its peers", device={"problem": "timed out"}),
    "device not to be seen": Case("", device={"problem": "Permission denied"}),
    "device not looked at": Case("device zl-d-g does not tell its peers: was not looked at", seen={"device": None}),
    "device's key": Case("and this node's is", device={"public_key": THEIRS}),
    "forwarding": Case("forwarding is off", seen={"forwards": False}),
    "address taken": Case("another has taken it", seen={"neighbours": {(BRIDGE, "10.0.9.2"): "02:00:00:00:00:09"}}),
    "no route of the host": Case("have no way to 10.0.40.2", seen={"host": HOST._replace(way=Way(problem="none"))}),
    "foreign route": Case("through uplink, not zl-d-g", seen={"host": HOST._replace(way=Way("uplink"))}),
    "peer off the device": Case("is not on the device", device={"peers": {}}),
    "allowed IP off the device": Case("though they should", session={"allowed_ips": ()}),
    "allowed IP at another": Case(
        "lost 10.0.40.2 to CCCC",
        device={"peers": {THEIRS: SESSION, ANOTHER: SESSION._replace(allowed_ips=(ip_network("10.0.40.2/32"),))}},
    ),
    "endpoint": Case("endpoint of beta is not known", session={"endpoint": None, "last_handshake": 0}),
    "no underlay": Case("cannot be sent to", seen={"underlay": Way(problem="Network is unreachable")}),
    "refused": Case("nobody is at its port", session={"last_handshake": 0}, seen={"refused": True}),
    "refused since the handshake": Case(
        "nobody is at its port", silent=("target", "other node", "other node from here"), seen={"refused": True}
    ),
    "dead host": Case("does not answer a ping either", session={"last_handshake": 0}, silent=("endpoint",)),
    "closed there": Case("firewall drops the port", session={"last_handshake": 5}, silent=("target",)),
    "not among theirs": Case("nobody of 10.0.9.0/26", silent=("target", "other node")),
    "slice not among theirs": Case("of 10.0.1.0/24", silent=("target", "other node", "other node from here")),
    "nobody there": Case("nobody has it there", silent=("target", "target from here")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_hop_that_is_wrong_is_named(name: str) -> None:
    said = broken(CASES[name].applied())
    assert CASES[name].expected in said
    assert bool(said) == bool(CASES[name].expected)


def test_the_other_side_is_told_in_its_own_words_and_before_what_can_only_be_guessed() -> None:
    fault = Hop("device zl-d-g", "gives 10.0.9.2 to nobody", "broken", "add_allowed_ip")
    fine = OtherSide((Hop("eth0 of pid:9", "is up"),))
    dead = Case("", session={"last_handshake": 0}, silent=("target",)).applied()
    silent = Case("", silent=("target", "target from here")).applied()
    for seen in (SEEN, dead, silent):
        assert broken(seen._replace(other_side=OtherSide((fault,)))) == f"on node beta: {fault.where} {fault.what}"
    hops = explain(KNOWN, ends.find(KNOWN, "7"), ends.find(KNOWN, "db"), SEEN._replace(other_side=fine), NOW)
    assert hops[-2:] == [Hop("on node beta: eth0 of pid:9", "is up"), Hop("10.0.40.2", "answers a ping in 1.0 ms")]
    unknown = OtherSide(problem="it does not answer")
    for seen, guessed in ((dead, "firewall drops the port"), (silent, "nobody has it there"), (SEEN, "")):
        for said in (fine, unknown):
            assert guessed in broken(seen._replace(other_side=said))
        hops = explain(KNOWN, ends.find(KNOWN, "7"), ends.find(KNOWN, "db"), seen._replace(other_side=unknown), NOW)
        assert Hop("the side of node beta", "is not known: it does not answer", "unknown") in hops


def test_a_right_way_has_no_broken_hop() -> None:
    near = SEEN._replace(target=inside(NEAR), host=HOST._replace(way=Way(BRIDGE)))
    assert (
        broken(SEEN) == broken(near, target="8") == broken(SEEN, "node", "beta") == broken(SEEN, "7", "outside") == ""
    )


def near(**answers: float | None) -> Seen:
    """To a container of the same bridge."""
    host = HOST._replace(way=Way(BRIDGE))
    return SEEN._replace(target=inside(NEAR), host=host, answers={**SEEN.answers, **answers})


def test_what_cannot_be_known_is_told_and_is_no_fault() -> None:
    def last(seen: Seen, target: str, known: Known = KNOWN) -> str:
        assert broken(seen, target=target, known=known) == ""
        unknown = [
            each
            for each in explain(known, ends.find(known, "7"), ends.find(known, target), seen, NOW)
            if each.state == "unknown"
        ]
        return f"{unknown[-1].where} {unknown[-1].what}"

    silent: dict[str, float | None] = {"target": None, "target from here": None}
    assert last(near(**silent), "8") == "10.0.9.3 answers no ping; it may filter them"
    assert "of this host neither" in last(SEEN._replace(answers={**SEEN.answers, **silent}), "198.51.100.1")
    assert "name an address that does" in last(SEEN._replace(answers={**SEEN.answers, **silent}), "198.51.100.1")
    assert "was not tried: nobody is there to ping; name an address" in last(SEEN._replace(answers={}), "outside")
    linkless = KNOWN._replace(members=(WEB._replace(link=""), NEAR))
    assert "no link on this host" in last(SEEN, "db", linkless)


def test_a_ping_that_only_this_node_gets_answered() -> None:
    assert "not that container" in broken(near(target=None), target="8")
    outside = SEEN._replace(answers={**SEEN.answers, "target": None})
    assert "answers this host, but not the container" in broken(outside, target="198.51.100.1")
    routed = outside._replace(host=HOST._replace(way=Way("eth0", "192.0.2.254")))
    assert broken(routed, target="outside").startswith("router 192.0.2.254 answers this host, but not the container")
    no_way = SEEN._replace(host=HOST._replace(way=Way(problem="Network is unreachable")))
    assert "way out of this host there is none" in broken(no_way, target="outside")


def test_a_node_that_has_no_device() -> None:
    assert "device there is none" in broken(SEEN, known=KNOWN._replace(devices={}))


def test_a_service_that_is_not_known_any_more_is_asked_nothing() -> None:
    known = KNOWN._replace(services={})
    seen = near()._replace(source=inside(WEB)._replace(way=Way("eth0")), target=inside(NEAR)._replace(way=Way("eth0")))
    assert broken(seen, target="8", known=known) == ""


def test_who_is_meant() -> None:
    second = WEB._replace(global_address=ip_address("10.0.1.9"))
    host_peer = Peer("", ANOTHER, "", "", (ip_network("10.0.3.1/32"),))
    bare = Peer("bare", ANOTHER, "", "", ())
    known = KNOWN._replace(members=(second, NEAR), peers=(PEER, host_peer))
    assert ends.find(known, "10.0.1.9").member == ends.find(known, "pid:7").member == second
    assert ends.find(known, str(GATEWAY)).kind == ends.find(known, "10.0.1.1").kind == "node"
    assert ends.find(known, "10.0.40.2").peer == ends.find(known, "BBBB...").peer == PEER
    assert ends.find(known, "CCCC").address == ip_address("10.0.3.1"), "a peer of one address is at it"
    assert ends.find(KNOWN._replace(peers=(bare,)), "bare").address is None
    named = known._replace(name="alpha")
    assert (ends.find(named, "alpha").kind, ends.find(known, "alpha").kind) == ("node", "nobody")
    assert ends.find(named, "beta").peer == PEER
    assert ends.find(known, "BBB").kind == "nobody", "too short to be the beginning of a key"


def test_a_name_of_a_service_that_leads_into_another_one() -> None:
    other = Service("db", ip_network("10.0.8.0/26"), ip_address("10.0.8.1"), "zl-d-db-b", "")
    known = KNOWN._replace(
        services={**KNOWN.services, "db": other, "web": KNOWN.services["web"]},
        names={"db": (WEB.address,), "web": (NEAR.address,)},
    )
    assert "which is in service web" in broken(near(), target="db.overlay.local", known=known)
    assert broken(near(), target="web", known=known) == ""


def test_isolation_and_names_and_those_that_nobody_has() -> None:
    blue = KNOWN._replace(members=(WEB._replace(network="blue"), NEAR))
    assert "pid:7 is in the isolation network blue, pid:8 in none" in broken(SEEN, target="8", known=blue)
    both = KNOWN._replace(members=(WEB._replace(network="blue"), NEAR._replace(network="blue")))
    assert broken(near(), target="8", known=both) == broken(SEEN, target="outside", known=both) == ""
    assert "ends at this node" in broken(SEEN, known=blue)
    assert "lost stands for 10.0.77.7, which nobody has" in broken(SEEN, target="lost")
    assert "no peer has 10.0.77.8" in broken(SEEN, target="10.0.77.8")
    assert "is no container" in broken(SEEN, target="nonsense")
    nameless = KNOWN._replace(peers=(PEER._replace(name=""),))
    assert "'' is no container" in broken(SEEN, target="", known=nameless), "a peer without a name is not called so"
    for everywhere in ("127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1", "ff02::1"):
        assert f"{everywhere} means another host at each place" in broken(SEEN, target=everywhere)


def test_a_way_that_is_not_of_this_node_is_not_judged_here() -> None:
    """What is looked at begins at this node; of another way it would name faults, and remedies that do harm."""
    assert broken(SEEN, source="beta", target="10.0.40.2") == "this node has neither of the two"
    hops = explain(KNOWN, ends.find(KNOWN, "db"), ends.find(KNOWN, "outside"), SEEN, NOW)
    assert hops[-1].remedy == "ask the node of an end: on beta, overlayctl why db outside"
    assert "has neither" in broken(SEEN, source="outside", target="198.51.100.1")
    assert "no peer has 10.0.77.8" in broken(SEEN, source="10.0.77.8", target="7")
    assert broken(SEEN, target="2001:db8::7") == "2001:db8::7 is of IPv6, and the overlay has IPv4 alone"
    hop = ends.find(KNOWN, "web").name
    assert hop is not None and "a service: name one of its containers, as pid:7;" in hop.remedy


def test_a_finding_of_the_doctor_is_told_where_it_stops_the_packet() -> None:
    forward = ("forward-blocked", "table ip filter chain FORWARD", "drops it", "insert a rule")
    port = ("wireguard-blocked", "table ip filter chain INPUT", "drops port 51820", "insert a rule")
    known = KNOWN._replace(findings=(port, forward))
    assert broken(SEEN, known=known) == "table ip filter chain FORWARD drops it"
    known = KNOWN._replace(findings=(port,))
    assert broken(SEEN, known=known) == "", "a session that lives gets in"
    asleep = Case("", session={"last_handshake": 1}).applied()
    assert broken(asleep, known=known) == "table ip filter chain INPUT drops port 51820"
    cut_off = Case("", silent=("target", "target from here", "other node", "other node from here")).applied()
    assert broken(cut_off, known=known) == "table ip filter chain INPUT drops port 51820", "since a moment ago"
    diverted = ("route-diverted", "what zl-b brings to 10.0.2.2", "does not go through zl-g", "ip rule add")
    assert broken(SEEN, known=KNOWN._replace(findings=(diverted,))) == " ".join(diverted[1:3])


def test_what_cannot_be_judged_is_to_blame_when_only_what_is_forwarded_is_lost() -> None:
    doubt = ("forward-blocked", "table ip filter chain FORWARD", "may drop it", "insert a rule")
    known = KNOWN._replace(doubts=(doubt,))
    assert broken(SEEN, known=known) == "", "it answers"
    lost = Case("", silent=("target", "other node")).applied()
    assert broken(lost, known=known) == "table ip filter chain FORWARD may drop it"
    assert "that node lacks it" in broken(lost)
    told = lost._replace(other_side=OtherSide((Hop("allowed IPs", "have it", "broken", "add it"),)))
    assert "on node beta: allowed IPs have it" in broken(told, known=known), "what the other node says comes first"
    all_lost = Case("", silent=("target", "target from here", "other node", "other node from here")).applied()
    assert "table ip" not in broken(all_lost, known=known), "this host's own packets do not pass that chain"
    same = near()._replace(answers={"target": None, "target from here": 0.001})
    assert "table ip" not in broken(same, target="8", known=known), "nor do those within a bridge"
    outside = explain(known, ends.find(known, "7"), ends.find(known, "outside"), SEEN._replace(answers={}), NOW)
    assert [each.where for each in outside if each.state == "unknown"] == [doubt[1], "arrival"]


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 3)), max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_the_owner_is_the_peer_with_the_narrowest_allowed_ip(given: list[tuple[int, int, int]], number: int) -> None:
    networks: dict[int, list[Any]] = {}
    for base, length, peer in given:
        networks.setdefault(peer, []).append(ip_network((base, length), strict=False))
    peers = [Peer(str(key), THEIRS, "", "", tuple(each)) for key, each in networks.items()]
    address = ip_address(number)
    lengths = {each.name: [n.prefixlen for n in each.allowed_ips if address in n] for each in peers}
    found = ends.owner(peers, address)
    best = max((max(each) for each in lengths.values() if each), default=None)
    assert (found is None) == (best is None)
    assert found is None or max(lengths[found.name]) == best
