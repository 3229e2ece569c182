"""The indexes of a state after any changes are those of a state that is made afresh of its rows, and a change can be
taken back.
"""

from ipaddress import ip_address, ip_network

from decisions import ready
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from overlayd.model.objects import GLOBAL, Netns
from overlayd.model.rows import ROWS, Attachment, Lease, Membership, Node, Overlay, Peer, Service
from overlayd.model.state import Draft, State

ME = Node(private_key=b"k" * 32)
SCOPES = (GLOBAL, "web")
# Rows with the same key replace each other; what several may not share (a network, a namespace, a key) they do not.
PEERS = [
    Peer(scope=scope, public_key=bytes([n]) * 32, endpoint=endpoint, listed=listed)
    for place, scope in enumerate(SCOPES)
    for n in range(3)
    for endpoint, listed in (
        ("192.0.2.1:1", (ip_network(f"10.{place}.{n}.0/24"),)),
        ("", (ip_network(f"10.{place}.{n}.0/25"), ip_network(f"fd00:{place}:{n}::/48"))),
    )
]
LEASES = [
    Lease(address=ip_address(f"10.9.0.{n + 2}"), pool=pool, holder=holder, released=released)
    for n in range(3)
    for pool in SCOPES
    for holder, released in (("pid:1", 0), ("", 1), ("", 7))
]
ATTACHMENTS = [
    Attachment(
        handle=f"pid:{n}",
        service="web",
        address=ip_address(f"10.9.0.{n + 2}"),
        netns=Netns(n, 1, 100 * n + inode) if inode else None,
        others=(Netns(50 + n, 1, 100 * n + inode),) if inode else (),
        public_key=bytes([n]) * 32 if guest else b"",
    )
    for n in range(1, 4)
    for inode, guest in ((1, False), (2, False), (0, True))
]
SERVICES = [Service(name="web", subnet=ip_network(subnet), bridge="b") for subnet in ("10.9.0.0/28", "10.9.0.0/27")]
OVERLAYS = [
    Overlay(deployment="d", instance_id="i", interface="g", cluster=ip_network("10.8.0.0/15"), wg_port=1, up=up)
    for up in (True, False)
]
MEMBERSHIPS = [
    Membership(cluster="prod", node="me", instance="i", blocks=tuple(map(ip_network, blocks)))
    for blocks in ((), ("10.8.0.0/24",), ("10.8.0.0/24", "10.9.0.0/29"))
]
ALL = [*PEERS, *LEASES, *ATTACHMENTS, *SERVICES, *OVERLAYS, *MEMBERSHIPS]

KINDS = {kind.table: kind for kind in ROWS}
CHANGES = st.lists(
    st.dictionaries(st.integers(0, len(ALL) - 1), st.booleans(), max_size=6).map(
        lambda drawn: {ALL[place].id: ALL[place] if put else None for place, put in drawn.items()}
    ),
    max_size=12,
)


def shown(state: State) -> dict[str, object]:
    """What all questions are answered with."""
    tables = {kind.table: dict(state.table(kind)) for kind in ROWS}
    pools = {scope: state.pools(scope) for scope in SCOPES}
    return {
        "tables": tables,
        "overlay": state.overlay,
        "node address": state.node_address,
        "scopes": sorted(state.scopes()),
        "peers": {scope: dict(state.peers(scope)) for scope in SCOPES},
        "owners": {
            (scope, network): state.allowed_ips(scope).exact(network.network_address.packed, network.prefixlen)
            for scope in SCOPES
            for peer in PEERS
            for network in peer.listed
        },
        "namespaces": {inode: state.in_namespace(inode) for inode in range(400)},
        "processes": {pid: state.of_process(pid) for pid in range(60)},
        "guests": {n: state.guest(bytes([n]) * 32) for n in range(4)},
        "leases": {scope: dict(state.leases(scope)) for scope in SCOPES},
        "next": {scope: [(each.held, each.choose()) for each in found] for scope, found in pools.items()},
    }


@given(CHANGES)
def test_the_indexes_are_those_of_the_rows(changes) -> None:
    state = State([ME])
    for change in changes:
        shown(state)  # pools are made when they are asked for, and kept
        state.apply(change)
        rows = [row for kind in ROWS for row in state.table(kind).values()]
        assert shown(state) == shown(State(rows))


@given(CHANGES)
def test_a_change_can_be_taken_back(changes) -> None:
    state = State([ME])
    for change in changes:
        before = shown(state)
        inverse = state.apply(change)
        assert state.apply(inverse) == change
        assert shown(state) == before
        state.apply(change)


@given(CHANGES, CHANGES)
def test_a_draft_shows_the_state_as_it_would_be_and_leaves_it_as_it_is(first, then) -> None:
    state = State([ME])
    for change in first:
        state.apply(change)
    before, draft, expected = shown(state), Draft(state), State(row for row in _rows(state))
    for change in then:
        for id, row in change.items():
            if row is not None:
                draft.put(row)
            elif (old := draft.get(KINDS[id[0]], id[1])) is not None:
                draft.drop(old)
        expected.apply(change)
    for kind in ROWS:
        assert {row.key: row for row in draft.all(kind)} == dict(expected.table(kind))
    assert shown(state) == before
    state.apply(draft.rows)
    assert shown(state)["tables"] == shown(expected)["tables"]


def _rows(state: State):
    return [row for kind in ROWS for row in state.table(kind).values()]


def test_replacing_an_equal_row_is_no_change():
    state = ready()
    draft = Draft(state)
    draft.put(replace(state.get(Overlay)))
    assert not draft.rows
    assert Peer.table == "peer"
