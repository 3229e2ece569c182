"""Edge peers as decisions: what a mint implies, what it refuses, and when one is over."""

from ipaddress import ip_address, ip_network

import pytest

from overlayd.errors import RequestError
from overlayd.model import edges, overlay, rows, services
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import GLOBAL, DevicePeer, Element
from overlayd.model.plan import plan
from overlayd.model.rows import Edge, Lease, Node, Service
from overlayd.model.state import Draft, State

CLUSTER = ip_network("10.200.0.0/16")
WEB, DB = ip_network("10.200.1.0/28"), ip_network("10.200.2.0/28")
FACTS = Facts(mtu=1420)


def change(state, decide):
    draft = Draft(state)
    answer = decide(draft)
    state.apply(draft.rows)
    return answer


def ready():
    state = State([Node(private_key=b"k" * 32)])
    change(
        state,
        lambda draft: overlay.setup_global(
            draft, deployment="d", instance_id="1", cluster=CLUSTER, slice=None, wg_port=51820, nat=None
        ),
    )
    return state


def mint(state, name="phone", *, key=b"e" * 32, now=1000, ttl=60, allowed=(WEB,), granted=()):
    return change(
        state,
        lambda draft: edges.mint(draft, name, public_key=key, now=now, ttl=ttl, allowed=allowed, services=granted),
    )


def set_up_service(state, name, subnet):
    return change(
        state, lambda draft: services.setup_service(draft, name, subnet=ip_network(subnet), dedicated_key=None)
    )


def tear_down_service(state, name):
    change(state, lambda draft: services.teardown_service(draft, name))


def grants(state):
    return {
        thing.member.partition(" . ")[2]
        for thing in layout(state, FACTS).values()
        if isinstance(thing, Element) and thing.set.startswith("grant")
    }


def test_a_mint_implies_a_peer_with_one_address_and_its_grants():
    state = ready()
    before = layout(state, FACTS)
    edge = mint(state, allowed=(WEB, DB, WEB))
    assert (edge.minted, edge.expires, edge.allowed) == (1000, 1060, (WEB, DB))
    made = [step.want for step in plan(before, layout(state, FACTS))]
    (peer,) = (thing for thing in made if isinstance(thing, DevicePeer))
    assert (peer.scope, peer.public_key, peer.allowed_ips) == (GLOBAL, b"e" * 32, {ip_network(edge.address)})
    assert {(thing.set, thing.member) for thing in made if isinstance(thing, Element)} == {
        ("edge4", str(edge.address)),
        ("grant4", f"{edge.address} . 10.200.1.0/28"),
        ("grant4", f"{edge.address} . 10.200.2.0/28"),
    }
    change(state, lambda draft: edges.revoke(draft, "phone"))
    assert layout(state, FACTS) == before
    assert state.get(Lease, str(edge.address)).holder == ""


def test_it_is_over_at_its_second_and_not_before():
    state = ready()
    mint(state, "a", ttl=60)
    mint(state, "b", key=b"b" * 32, ttl=61)
    assert change(state, lambda draft: edges.expire(draft, 1059.999)) == []
    assert change(state, lambda draft: edges.expire(draft, 1060.0)) == ["a"]
    assert list(state.table(Edge)) == ["b"]
    assert change(state, lambda draft: edges.expire(draft, 5000.0)) == ["b"]


def test_a_name_in_use_is_refused_until_it_is_over():
    state = ready()
    first = mint(state)
    with pytest.raises(RequestError, match=str(first.address)):
        mint(state, now=1059)
    second = mint(state, key=b"f" * 32, now=1060)
    assert second.expires == 1120
    assert state.get(Lease, str(first.address)).holder in ("", "edge:phone")
    assert sum(lease.holder == "edge:phone" for lease in state.table(Lease).values()) == 1


def test_a_range_that_would_orphan_it_is_refused_once_by_name():
    state = ready()
    edge = mint(state)
    with pytest.raises(RequestError, match=f"{edge.address} .edge:phone.; detach"):
        change(
            state,
            lambda draft: overlay.setup_global(
                draft,
                deployment="d",
                instance_id="1",
                cluster=CLUSTER,
                slice=ip_network("10.200.9.0/24"),
                wg_port=51820,
                nat=None,
            ),
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"ttl": 0},
        {"ttl": 10**10},
        {"granted": ("web",)},
        {"allowed": [ip_network("::/0")]},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong):
    state = ready()
    with pytest.raises(RequestError, match=r"request\."):
        mint(state, **wrong)
    assert not state.table(Edge)


def test_without_a_grant_it_may_reach_the_whole_cluster():
    state = ready()
    assert mint(state, allowed=()).allowed == (CLUSTER,)
    assert grants(state) == {"10.200.0.0/16"}


def test_a_service_is_granted_as_long_as_it_is_there():
    state = ready()
    set_up_service(state, "web", "10.200.1.0/26")
    set_up_service(state, "db", "10.200.1.64/26")
    edge = mint(state, allowed=(), granted=("web", "db", "web"))
    assert (edge.allowed, edge.services) == ((), ("web", "db"))
    assert edges.reach(state, edge) == (ip_network("10.200.1.0/26"), ip_network("10.200.1.64/26"))
    assert grants(state) == {"10.200.1.0/26", "10.200.1.64/26"}
    tear_down_service(state, "web")
    assert grants(state) == {"10.200.1.64/26"}
    set_up_service(state, "other", "10.200.1.0/26")
    assert grants(state) == {"10.200.1.64/26"}, "the next owner of the subnet was not granted"
    set_up_service(state, "web", "10.200.2.0/26")
    assert grants(state) == {"10.200.1.64/26", "10.200.2.0/26"}
    tear_down_service(state, "web")
    tear_down_service(state, "db")
    assert grants(state) == set()
    assert list(state.table(Edge)) == ["phone"], "its time is not over"


def test_a_service_that_is_not_here_is_named_with_those_that_are():
    state = ready()
    with pytest.raises(
        RequestError, match=r"request\.allow: 'wbe' is neither a CIDR nor a service.*; its services: none"
    ):
        mint(state, granted=("wbe",))
    set_up_service(state, "web", "10.200.1.0/26")
    set_up_service(state, "db", "10.200.1.64/26")
    with pytest.raises(RequestError, match="its services: db, web"):
        mint(state, granted=("web", "wbe"))


@pytest.mark.parametrize(("allowed", "left"), [
    ((CLUSTER,), {"10.200.0.0/16"}),
    ((ip_network("10.200.1.0/26"),), {"10.200.1.0/26"}),
    ((ip_network("10.200.1.7/32"),), {"10.200.1.7"}),
    ((ip_network("10.200.1.0/27"), ip_network("10.200.1.32/27")), {"10.200.1.0/26"}),
])  # fmt: skip
def test_a_service_inside_a_cidr_or_around_it_comes_and_goes_without_it(allowed, left):
    """The kernel takes no two elements that overlap."""
    state = ready()
    set_up_service(state, "web", "10.200.1.0/26")
    mint(state, allowed=allowed, granted=("web",))
    networks = [ip_network(each) for each in grants(state)]
    assert not any(a.overlaps(b) for i, a in enumerate(networks) for b in networks[:i])
    assert any(ip_address("10.200.1.9") in network for network in networks)
    tear_down_service(state, "web")
    assert grants(state) == left


def test_services_that_come_and_go_at_once_do_not_touch_each_others_grants():
    """Both are decided on states that show the other's change or not; in the kernel either may be the first."""
    state = ready()
    set_up_service(state, "web", "10.200.1.0/26")
    set_up_service(state, "db", "10.200.1.64/26")
    mint(state, allowed=(ip_network("10.200.1.70/32"),), granted=("web", "db"))
    db = state.get(Service, "db")

    def steps():
        touched = [(Service.table, "web")]
        before = layout(state, FACTS, touched)
        inverse = state.apply({(Service.table, "web"): None})
        after = layout(state, FACTS, touched)
        state.apply(inverse)
        return {step for step in plan(before, after) if isinstance(step.have, Element)}

    with_db = steps()
    state.apply({db.id: None})
    assert steps() == with_db


def test_an_edge_peer_of_the_released_version_is_read_as_it_was_written():
    written = (
        b'{"name":"phone","address":"10.200.1.2","public_key":"ZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWU=",'
        b'"minted":1000,"expires":1060,"allowed":["10.200.1.0/28"]}'
    )
    edge = rows.decode((Edge.table, "phone"), written)
    assert (edge.allowed, edge.services) == ((WEB,), ())
    assert rows.encode(edge) == written


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "10.200.3.4"])
def test_addresses_that_nobody_outside_can_dial(address):
    with pytest.raises(RequestError, match=f"request.node_endpoint: .*{address}"):
        edges.require_dialable(Draft(ready()), ip_address(address))


@pytest.mark.parametrize("address", ["192.0.2.7", "10.201.0.1", "2001:db8::7"])
def test_addresses_that_somebody_outside_can_dial(address):
    edges.require_dialable(Draft(ready()), ip_address(address))
