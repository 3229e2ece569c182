"""The node's one way of change: what many carry out together is what they would have been one after the other.

The kernel is a map here, so that it can refuse what a real one takes.
"""

import asyncio
from dataclasses import replace
from errno import EINVAL
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from node_with_peers import set_up_overlay

from overlayd.daemon.change.apply import HalfDone, one_by_one
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node
from overlayd.errors import MechanismError, RequestError
from overlayd.model import overlay, peers
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import GLOBAL, Device, DevicePeer
from overlayd.model.rows import Node as Identity
from overlayd.model.rows import Peer, decode
from overlayd.model.state import Draft, State

KEYS = [bytes([number]) * 32 for number in range(1, 5)]
NETWORKS = [ip_network(f"10.9.{number}.0/24") for number in range(4)]
GOOD, CURSED = "192.0.2.1:1", "192.0.2.13:13"
CURSED_KEY = KEYS[3]
PEERS = [f"peers {GLOBAL}"]


class MapKernel:
    """Takes steps all or nothing; refuses a peer at the cursed endpoint."""

    def __init__(self):
        self.things = {}
        self.calls = 0

    def apply(self, steps):
        self.calls += 1
        things = dict(self.things)
        for step in steps:
            if step.have is not None:
                assert things.pop(step.have.key) == step.have, "the plan starts from what is there"
            if isinstance(step.have, Device) and step.want is None:
                things = {key: thing for key, thing in things.items() if not isinstance(thing, DevicePeer)}
            if step.want is not None:
                if getattr(step.want, "endpoint", None) == (ip_address("192.0.2.13"), 13):
                    raise HalfDone(MechanismError("set peers of WireGuard device", "zl-g", EINVAL), [])
                assert step.want.key not in things
                things[step.want.key] = step.want
        self.things = things

    def apply_together(self, changes):
        return one_by_one(self.apply, changes)

    def undo(self, done):
        assert not done

    def forget(self, addresses):
        pass

    def close(self):
        pass


def operation(kind, key, network, endpoint=GOOD):
    """A change of peers, as a decision.

    One key is always cursed and never removed: a change that a later one of its group cancels out never meets the
    kernel, and so is not refused.
    """
    if key == CURSED_KEY:
        kind, endpoint = "add" if kind == "remove" else kind, CURSED
    match kind:
        case "add":
            return lambda draft: peers.add_peer(
                draft,
                GLOBAL,
                key,
                own_key=bytes(32),
                endpoint=endpoint,
                keepalive=0,
                allowed_ips=(network,),
                candidates=(),
            )
        case "remove":
            return lambda draft: peers.remove_peer(draft, GLOBAL, key)
        case "allow":
            return lambda draft: peers.add_allowed_ip(draft, GLOBAL, key, network)
        case "disallow":
            return lambda draft: peers.remove_allowed_ip(draft, GLOBAL, key, network)
        case "teardown":
            return overlay.teardown_global
        case "setup":
            return set_up_overlay
    raise AssertionError(kind)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add"] * 4 + ["allow"] * 3 + ["remove", "disallow", "teardown", "setup", "pause"]),
        st.sampled_from(KEYS),
        st.sampled_from(NETWORKS),
    ),
    max_size=20,
)


def one_after_the_other(operations):
    """The slow way: each alone, on a state of its own; the outcomes, and the peers that are left."""
    state, outcomes = State([Identity(private_key=b"k" * 32)]), []
    draft = Draft(state)
    set_up_overlay(draft)
    state.apply(draft.rows)
    for kind, *arguments in operations:
        draft = Draft(state)
        try:
            answer = operation(kind, *arguments)(draft)
        except RequestError as error:
            outcomes.append(str(error))
            continue
        inverse = state.apply(draft.rows)
        cursed = any(getattr(row, "endpoint", "") == CURSED for row in draft.rows.values())
        if cursed:
            state.apply(inverse)
            outcomes.append("refused")
        else:
            outcomes.append(answer)
    return outcomes, dict(state.table(Peer))


@given(OPERATIONS)
@settings(max_examples=60)
def test_together_as_one_after_the_other(tmp_path_factory, operations):
    async def run():
        directory = tmp_path_factory.mktemp("data")
        journal, kernel = Journal.open(directory), MapKernel()
        node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))
        await node.change(set_up_overlay, everything=True)
        asked = []
        for kind, *arguments in operations:
            if kind == "pause":
                await asyncio.sleep(0.0005)
                continue
            decide = operation(kind, *arguments)
            change = (
                node.change(decide, everything=True)
                if kind in ("teardown", "setup")
                else node.change_together(decide, PEERS)
            )
            asked.append(asyncio.create_task(change))
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert kernel.things == layout(node.state, node.facts)
        await node.close()
        await journal.close()
        again = Journal.open(directory)
        kept = {id[1]: decode(id, data) for id, data in again.rows.items() if id[0] == "peer"}
        await again.close()
        assert kept == node.state.table(Peer)
        return outcomes, dict(node.state.table(Peer))

    outcomes, left = asyncio.run(run())
    shown = [
        "refused" if isinstance(o, MechanismError) else str(o) if isinstance(o, Exception) else o for o in outcomes
    ]
    expected, expected_left = one_after_the_other([step for step in operations if step[0] != "pause"])
    assert shown == expected
    assert left == expected_left


async def test_those_who_wait_share_one_visit_to_the_kernel(tmp_path):
    journal, kernel = Journal.open(tmp_path), MapKernel()
    node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))
    await node.change(set_up_overlay, everything=True)
    before = kernel.calls
    many = [operation("add", n.to_bytes(32), ip_network((n << 8, 24))) for n in range(1, 401)]
    syncs = journal.syncs
    await asyncio.gather(*(node.change_together(decide, PEERS) for decide in many))
    assert len(node.state.peers(GLOBAL)) == 400
    assert kernel.calls - before <= 2 and journal.syncs - syncs <= 2, "one for the first, one for all that waited"
    await node.close()
    await journal.close()


async def test_what_changes_nothing_is_neither_written_nor_told(tmp_path):
    journal, kernel = Journal.open(tmp_path), MapKernel()
    node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))
    await node.change(set_up_overlay, everything=True)
    same = operation("add", KEYS[0], NETWORKS[0])
    await node.change_together(same, PEERS)
    told = []
    with node.subscribe(told.append):
        assert await node.change_together(same, PEERS) == []
        assert await node.change(lambda draft: "nothing", exclusive=PEERS) == "nothing"
        assert not told
        await asyncio.gather(
            node.change_together(same, PEERS), node.change_together(operation("remove", KEYS[0], None), PEERS)
        )
    assert [list(change.values()) for change in told] == [[None]]
    assert not node.state.peers(GLOBAL)
    await node.close()
    await journal.close()


async def test_what_is_learned_and_refused_is_not_known(tmp_path):
    journal, kernel = Journal.open(tmp_path), MapKernel()
    node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))
    await node.change(set_up_overlay, everything=True)
    await node.change_together(operation("add", KEYS[0], NETWORKS[0], "beta.example:13"), PEERS)
    peer = node.state.peers(GLOBAL)[KEYS[0]]

    def where(address):
        return lambda facts: replace(facts, resolved={(peer.key, peer.endpoint): (ip_address(address), 13)})

    (refusal,) = await asyncio.gather(
        node.update_facts(where("192.0.2.13"), [peer.id], exclusive=PEERS), return_exceptions=True
    )
    assert isinstance(refusal, MechanismError)
    assert kernel.things == layout(node.state, node.facts)
    await node.update_facts(where("192.0.2.7"), [peer.id], exclusive=PEERS)
    assert kernel.things == layout(node.state, node.facts)
    assert (ip_address("192.0.2.7"), 13) in {getattr(thing, "endpoint", None) for thing in kernel.things.values()}
    await node.close()
    await journal.close()
