"""What a node says of its side of a way, from values alone; and how much it looks up for that."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from overlayd import keys
from overlayd.model import own_side
from overlayd.model.ends import Hop
from overlayd.model.objects import GLOBAL, Netns
from overlayd.model.own_side import Asked
from overlayd.model.rows import Attachment, Lease, Node, Overlay, Peer, Row, Service
from overlayd.model.seen import Device, DevicePeer, Link, Namespace, Seen, Way
from overlayd.model.state import State

NOW = 1_000_000.0
PRIVATE, DEDICATED, ASKER, ANOTHER = (bytes([8 * number]) + bytes(30) + b"\x40" for number in (1, 2, 3, 4))
NEAR, FAR, GATEWAY = ip_address("10.0.9.2"), ip_address("10.0.40.2"), ip_address("10.0.40.1")
DB = Attachment(handle="pid:7", service="db", address=FAR, netns=Netns(7, 1, 1))
ROWS: tuple[Row, ...] = (
    Node(private_key=PRIVATE),
    Overlay(
        deployment="d",
        instance_id="2",
        interface="zl-d-g",
        cluster=ip_network("10.0.0.0/16"),
        slice=ip_network("10.0.2.0/24"),
        wg_port=51820,
    ),
    Service(name="db", subnet=ip_network("10.0.40.0/26"), bridge="zl-d-db-b"),
    Service(
        name="own", subnet=ip_network("10.0.41.0/26"), bridge="zl-d-own-b", device="zl-d-own-d", private_key=DEDICATED
    ),
    DB,
    Lease(address=FAR, pool="db", holder="pid:7"),
    Peer(public_key=ASKER, listed=(ip_network("10.0.1.0/24"), ip_network("10.0.9.0/26")), name="alpha"),
    Peer(public_key=ANOTHER, listed=(ip_network("10.0.3.0/24"),), name="gamma"),
)
ASKED = Asked(GLOBAL, ASKER, keys.public(PRIVATE), NEAR, ip_network("10.0.9.0/26"), FAR)
SESSION = DevicePeer(
    (ip_address("192.0.2.1"), 51820), int(NOW) - 5, (ip_network("10.0.1.0/24"), ip_network("10.0.9.0/26"))
)
MAC = "02:6f:0a:00:28:02"


def known(asked: Asked = ASKED, *more: Row, without: tuple[Row, ...] = (), **other: Any) -> Any:
    state = State([*(row for row in ROWS if row not in without), *more])
    return own_side.rows_of(state, asked, 1420, **other)


def seen(link: str = "veth-7-s", mac: str = "", **other: Any) -> Seen:
    up = Link(True, 1420, "", "")
    host = Namespace(
        {"zl-d-g": up, "zl-d-db-b": up, link: Link(True, 1420, "", "zl-d-db-b")},
        {"zl-d-db-b": (f"{GATEWAY}/26",)},
        Way("zl-d-g"),
    )
    inside = Namespace({"eth0": Link(True, 1420, mac, "")}, {"eth0": (f"{FAR}/26",)}, Way("eth0", str(GATEWAY)))
    device = Device(keys.text(keys.public(PRIVATE)), 51820, {keys.text(ASKER): SESSION})
    return Seen(host=host, source=inside, device=device)._replace(**other)


def said(asked: Asked = ASKED, of: Any = None, looked: Seen | None = None) -> list[Hop]:
    found = of if of is not None else known(asked)
    (member,) = found.members or (None,)
    return own_side.explain(asked, found, looked or seen(mac=member.mac if member is not None else ""), NOW)


def test_a_side_that_is_right() -> None:
    hops = said()
    assert {each.state for each in hops} == {"ok"}
    assert [each.where for each in hops][:2] == ["eth0 of pid:7", "routes of pid:7"]
    assert hops[-1].where == "session with alpha", "no ping is sent, and none is told of"
    to_the_node = said(ASKED._replace(far=ip_address("10.0.2.1")))
    assert {each.state for each in to_the_node} == {"ok"}


FAULTS = {
    "no such scope": (ASKED._replace(scope="nowhere"), (), (), "device of service nowhere is not set up"),
    "another key": (ASKED._replace(asked=ANOTHER), (), (), "has another key than the node that asks was told"),
    "no such peer": (ASKED._replace(asker=DEDICATED), (), (), "lack "),
    "nobody": (ASKED._replace(far=ip_address("10.0.40.9")), (), (), "nobody has it there"),
    "its own address": (ASKED._replace(far=NEAR), (), (), "nobody has it there"),
    "not announced": (ASKED._replace(near=ip_address("10.0.77.2")), (), (), "gives 10.0.77.2 to nobody"),
    "announced by another": (ASKED._replace(near=ip_address("10.0.3.2")), (), (), "gives 10.0.3.2 to peer gamma"),
    "isolated": (
        ASKED,
        (Attachment(handle="pid:7", service="db", address=FAR, netns=Netns(7, 1, 1), isolation_network="blue"),),
        (DB,),
        "in the isolation network blue",
    ),
    "a peer of another scope": (
        Asked("own", ASKER, keys.public(DEDICATED), NEAR, ip_network("10.0.9.0/26"), FAR),
        (),
        (),
        "peers of device zl-d-own-d lack",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_what_this_node_knows(name: str) -> None:
    asked, more, without, expected = FAULTS[name]
    hops = said(asked, known(asked, *more, without=without))
    assert expected in f"{hops[-1].where} {hops[-1].what}"
    assert hops[-1].state == "broken"
    assert hops[-1].remedy


def test_what_is_wrong_in_the_kernel_and_on_the_host() -> None:
    finding = ("forward-blocked", "table ip walls chain f", "drops", "nft insert rule")
    assert said(of=known(findings=(finding,)))[-1] == Hop(
        "table ip walls chain f", "drops", "broken", "nft insert rule"
    )
    assert said(looked=seen(link="veth-8-s", mac=MAC))[-1].where == "veth-7-s"
    no_session = Device(keys.text(keys.public(PRIVATE)), 1, {keys.text(ASKER): SESSION._replace(last_handshake=0)})
    assert said(looked=seen(mac=known().members[0].mac, device=no_session))[-1].state == "unknown"


def test_without_an_overlay_nothing_is_known() -> None:
    assert own_side.rows_of(State([Node(private_key=PRIVATE)]), ASKED, 0) is None


def test_no_more_is_looked_up_than_the_two_ends() -> None:
    """However many there are, of peers and containers."""
    others: list[Row] = [Peer(public_key=bytes([number]) * 32, listed=()) for number in range(200, 250)]
    for number in range(10, 40):
        address = ip_address("10.0.40.0") + number
        others += [
            Attachment(handle=f"pid:{number}", service="db", address=address),
            Lease(address=address, pool="db", holder=f"pid:{number}"),
        ]
    found = known(ASKED, *others)
    assert [each.handle for each in found.members] == ["pid:7"]
    assert [each.name for each in found.peers] == ["alpha"]
    assert list(found.services) == ["db"]
