"""Edge peers as decisions: what a mint implies, what it refuses, and when one is over."""

from ipaddress import ip_network

import pytest

from overlayd.errors import RequestError
from overlayd.model import edges, overlay
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import GLOBAL, DevicePeer, Element
from overlayd.model.plan import plan
from overlayd.model.rows import Edge, Lease, Node
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


def mint(state, name="phone", *, key=b"e" * 32, now=1000, ttl=60, allowed=(WEB,)):
    return change(state, lambda draft: edges.mint(draft, name, public_key=key, now=now, ttl=ttl, allowed=allowed))


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
    [{"name": ""}, {"name": "a\nb"}, {"ttl": 0}, {"ttl": 10**10}, {"allowed": ()}, {"allowed": [ip_network("::/0")]}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong):
    state = ready()
    with pytest.raises(RequestError, match=r"request\."):
        mint(state, **wrong)
    assert not state.table(Edge)
