"""The registry: peers of records, in whatever order these come, beside a slow oracle that looks at all of them."""

import json
from base64 import b64encode
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.model import cluster_records as records
from overlayd.model.cluster_records import NODE, BadRecord
from overlayd.model.registry import Registry
from overlayd.model.rows import Member, MemberNames, Peer, Row

CIDR = ip_network("10.200.0.0/16")
OWN = b"\xff" * 32


def key(number: int) -> bytes:
    return bytes([number]) * 32


def record(number: int, at: int, **others: Any) -> bytes:
    """A node's record with a key and a block by their numbers."""
    values = {
        "instance": f"i{number}",
        "id": number,
        "key": b64encode(key(number)).decode(),
        "endpoint": f"192.0.2.{number % 250}:51820",
        "block": f"10.200.{at}.0/24",
        "version": "1",
    }
    return json.dumps({**values, **others}).encode()


def registry(**more: Any) -> Registry:
    return Registry("me", OWN, CIDR, 24, **more)


class Rows:
    """What the journal would have."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}

    def take(self, registry: Registry) -> None:
        while registry.pending:
            for id, row in registry.take(3).items():
                if row is None:
                    self.rows.pop(id, None)
                else:
                    assert row.id == id
                    self.rows[id] = row

    def peers(self) -> dict[bytes, Peer]:
        return {row.public_key: row for row in self.rows.values() if isinstance(row, Peer)}


def oracle(stored: dict[str, tuple[int, int, int]]) -> dict[bytes, tuple[str, list[str]]]:
    """By the key of the peer: its member and allowed IPs.  stored: created, key, block by name."""
    found: dict[bytes, tuple[str, list[str]]] = {}
    for name, (created, number, block) in stored.items():
        others = [(other, value) for other, value in stored.items() if other != name]
        if any(value[1] == number and (value[0], other) < (created, name) for other, value in others):
            continue
        taken = any(value[2] == block and (value[0], other) < (created, name) for other, value in others)
        found[key(number)] = (name, [] if taken else [f"10.200.{block}.0/24"])
    return found


operations = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.none() | st.tuples(st.integers(1, 5), st.integers(0, 4))), max_size=25
)


@settings(max_examples=200, deadline=None)
@given(operations, st.booleans())
def test_peers_are_those_that_all_records_together_make(
    steps: list[tuple[str, tuple[int, int] | None]], restart: bool
) -> None:
    stored: dict[str, tuple[int, int, int]] = {}
    found, rows = registry(), Rows()
    for revision, (name, put) in enumerate(steps, 1):
        if put is None:
            stored.pop(name, None)
            found.remove(NODE + name)
        else:
            created = stored[name][0] if name in stored else revision
            stored[name] = (created, *put)
            found.put(NODE + name, record(*put), created)
        if revision % 3 == 0:
            rows.take(found)
        if restart and revision % 7 == 0:
            rows.take(found)
            every = list(rows.rows.values())
            found = registry(
                members=[row for row in every if isinstance(row, Member)],
                peers=[row for row in every if isinstance(row, Peer)],
            )
    rows.take(found)
    shown = {each: (peer.member, list(map(str, peer.listed))) for each, peer in rows.peers().items()}
    assert shown == oracle(stored)


def filled(count: int) -> tuple[Registry, Rows]:
    found, rows = registry(), Rows()
    for number in range(count):
        found.put(f"{NODE}n{number}", record(number + 1, number), number + 1)
    rows.take(found)
    assert len(rows.peers()) == count
    return found, rows


@pytest.mark.parametrize("known, lacking, guarded", [(9, 9, False), (10, 5, False), (10, 6, True), (12, 12, True)])
def test_a_listing_that_lacks_most_nodes_removes_none(known: int, lacking: int, guarded: bool) -> None:
    found, rows = filled(known)
    found.complete([f"{NODE}n{number}" for number in range(lacking, known)], keep=False)
    rows.take(found)
    assert bool(found.withheld) == guarded
    assert len(rows.peers()) == (known if guarded else known - lacking)


def test_what_is_withheld_ends_by_return_by_removal_or_by_acceptance() -> None:
    found, rows = filled(4)
    found.put("s/name/n2", b'{"web": ["10.200.2.9"]}', 1)
    found.complete([], keep=True)
    rows.take(found)
    assert found.withheld == {"n0", "n1", "n2", "n3"}
    assert len(rows.peers()) == 4
    found.put(NODE + "n0", record(1, 0), 50)
    found.remove(NODE + "n1")
    assert found.withheld == {"n2", "n3"}
    assert found.accept() == ["n2", "n3"]
    rows.take(found)
    assert [peer.member for peer in rows.peers().values()] == ["n0"]
    assert not found.withheld
    assert not [row for row in rows.rows.values() if isinstance(row, MemberNames)]


def test_what_a_store_that_went_back_has_of_known_nodes_waits_until_they_put_it_anew() -> None:
    told, rows = registry(), Rows()
    told.put("s/node/a", record(1, 1, blocks=["10.200.11.0/24"], seq=7), 5)
    told.put("s/node/b", record(2, 2, seq=4), 6)
    told.put("s/name/a", b'{"web": ["10.200.1.9"]}', 5)
    told.put("s/name/a/1", b'{"more": ["10.200.1.9"]}', 5)
    told.put("s/name/b", b'{"db": ["10.200.2.9"]}', 6)
    rows.take(told)
    before = dict(rows.rows)
    # Of before a had its further block and its names, and c was removed, whose block is b's by now.
    told.put("s/node/a", record(1, 1, seq=6), 5, doubted=True)
    told.put("s/node/b", record(2, 2, seq=4), 6, doubted=True)
    told.put("s/node/c", record(3, 2, seq=9), 2, doubted=True)
    told.put("s/name/a", b"{}", 5, doubted=True)
    told.put("s/name/c", b'{"old": ["10.200.2.9"]}', 6, doubted=True)
    told.complete(["s/node/a", "s/node/b", "s/node/c", "s/name/a", "s/name/b", "s/name/c"], keep=True)
    rows.take(told)
    assert rows.rows == before
    assert (told.older, told.disputed, told.guarded) == ({"a"}, {"c"}, True)
    assert "older one" in told.faults["s/node/a"]
    told.put("s/node/a", record(1, 1, blocks=["10.200.12.0/24"], seq=8), 5)
    told.put("s/name/a", b'{"new": ["10.200.1.9"]}', 5)
    told.remove("s/node/c")
    rows.take(told)
    assert rows.peers()[key(1)].listed == (ip_network("10.200.1.0/24"), ip_network("10.200.12.0/24"))
    names = {row.part: set(row.names) for row in rows.rows.values() if isinstance(row, MemberNames)}
    assert names == {"a": {"new"}, "b": {"db"}}
    assert (told.older, told.guarded, told.faults) == (set(), False, {})


def test_what_somebody_else_claims_is_contested() -> None:
    told = registry()
    told.put("s/node/a", record(1, 1), 5)
    told.put("s/node/b", record(2, 2), 6)
    assert not told.is_contested("s/node/a")
    assert not told.is_contested("s/node/nobody")
    told.claim_for_ourselves([ip_network("10.200.1.0/24")])
    assert told.is_contested("s/node/a")
    told.put("s/node/c", record(3, 2), 7)
    assert told.is_contested("s/node/b")
    assert not told.is_contested("s/name/b")


@pytest.mark.parametrize("written", [2**40, 2**62, 2**64 - 1])
def test_a_number_at_the_end_of_its_range_is_nobodys_last_word(written: int) -> None:
    told, rows = registry(), Rows()
    told.put("s/node/a", record(1, 1, seq=7), 5)
    told.put("s/node/a", record(1, 1, seq=written, endpoint="192.0.2.9:1"), 5)
    told.put("s/node/a", record(1, 1, seq=8, endpoint="192.0.2.1:1"), 5)
    rows.take(told)
    assert rows.peers()[key(1)].endpoint == "192.0.2.1:1"
    assert (told.older, told.faults) == (set(), {})


def test_another_installation_of_a_known_node_is_disputed_only_in_a_store_that_went_back() -> None:
    told, rows = registry(), Rows()
    told.put("s/node/a", record(1, 1, seq=7), 5)
    told.put("s/node/a", record(2, 1, seq=9), 2, doubted=True)
    told.complete(["s/node/a"], keep=True)
    rows.take(told)
    assert (set(rows.peers()), told.disputed) == ({key(1)}, {"a"})
    assert told.accept() == []
    told.put("s/node/a", record(2, 1, seq=9), 2)
    told.put("s/node/a", record(3, 1), 3)  # of an overlayd that does not number its records
    rows.take(told)
    assert (set(rows.peers()), told.guarded) == ({key(3)}, False)


class Store:
    """What a store that may go back has of nodes: each its number, and its one name by that."""

    def __init__(self) -> None:
        self.seqs = dict.fromkeys("abc", 0)  # in the journals of these nodes
        self.nodes: dict[str, int] = {}
        self.saved: dict[str, int] = {}
        self.unheard: list[str] = []

    def put(self, name: str) -> None:
        self.seqs[name] += 1
        self.nodes[name] = self.seqs[name]
        self.unheard.append(name)

    def go_back(self) -> None:
        self.nodes = dict(self.saved)
        self.unheard = []

    def tell(self, registry: Registry, name: str, *, doubted: bool = False) -> None:
        at, seq = ord(name) - ord("a"), self.nodes[name]
        registry.put(NODE + name, record(at + 1, at, seq=seq, version=str(seq)), 1, doubted=doubted)
        registry.put(f"s/name/{name}", json.dumps({f"n{seq}": ["10.0.0.1"]}).encode(), 1, doubted=doubted)


store_steps = st.lists(st.sampled_from(["put a", "put b", "put c", "save", "go back", "list", "hear"]), max_size=40)


@settings(max_examples=300, deadline=None)
@given(store_steps, st.booleans())
def test_however_a_store_goes_back_the_newest_of_each_node_that_was_heard_is_known(
    steps: list[str], restart: bool
) -> None:
    store, reader, rows = Store(), registry(), Rows()
    heard: dict[str, int] = {}
    went_back = False
    for step in [*steps, "put a", "put b", "put c", "list"]:
        if step.startswith("put "):
            store.put(step[-1])
        elif step == "save":
            store.saved = dict(store.nodes)
        elif step == "go back":
            store.go_back()
            went_back = True
        elif step == "list":
            for name in store.nodes:
                store.tell(reader, name, doubted=went_back)
                heard[name] = max(heard.get(name, 0), store.nodes[name])
            reader.complete([f"{kind}{name}" for name in store.nodes for kind in (NODE, "s/name/")], keep=went_back)
            store.unheard, went_back = [], reader.guarded
        elif step == "hear" and not went_back:
            for name in store.unheard:
                store.tell(reader, name)
                heard[name] = max(heard.get(name, 0), store.nodes[name])
            store.unheard = []
        rows.take(reader)
        members = {row.name: row.seq for row in rows.rows.values() if isinstance(row, Member)}
        names = {row.part: set(row.names) for row in rows.rows.values() if isinstance(row, MemberNames)}
        assert members == heard
        assert names == {name: {f"n{seq}"} for name, seq in heard.items()}
        if restart:
            every = list(rows.rows.values())
            doubtful = reader.guarded
            reader = registry(
                members=[row for row in every if isinstance(row, Member)],
                names=[row for row in every if isinstance(row, MemberNames)],
                peers=[row for row in every if isinstance(row, Peer)],
            )
            went_back |= doubtful
    assert heard == store.nodes
    assert not reader.guarded
    assert not reader.older
    assert not reader.faults


def test_a_key_that_changed_leaves_in_the_same_change() -> None:
    found, _rows = filled(2)
    found.put(NODE + "n0", record(99, 0), 1)
    change = found.take()
    old, new = Peer(public_key=key(1)).id, Peer(public_key=key(99)).id
    assert change[old] is None
    peer = change[new]
    assert isinstance(peer, Peer)
    assert peer.listed == (ip_network("10.200.0.0/24"),)


def test_the_next_key_of_a_node_is_a_peer_without_allowed_ips_until_it_is_its_key() -> None:
    told, rows = registry(), Rows()
    soon = b64encode(key(9)).decode()
    told.put("s/node/a", record(1, 1, next_key=soon), 5)
    rows.take(told)
    block = ip_network("10.200.1.0/24")
    assert {peer.public_key: peer.listed for peer in rows.peers().values()} == {key(1): (block,), key(9): ()}
    assert {peer.member for peer in rows.peers().values()} == {"a"}
    again = registry(
        members=[row for row in rows.rows.values() if isinstance(row, Member)], peers=list(rows.peers().values())
    )
    assert not again.take()
    # Nobody else gets a key that was announced, and none that is another's can be announced.
    told.put("s/node/b", record(9, 2), 6)
    told.put("s/node/c", record(3, 3, next_key=b64encode(key(1)).decode()), 7)
    rows.take(told)
    assert rows.peers()[key(9)].member == "a"
    assert rows.peers()[key(3)].listed == (ip_network("10.200.3.0/24"),)
    assert told.faults.keys() == {"s/node/b", "s/node/c"}
    told.put("s/node/a", record(9, 1), 5)
    rows.take(told)
    assert (rows.peers()[key(1)].member, rows.peers()[key(1)].listed) == ("c", ())  # nobody else has it any more
    assert rows.peers()[key(9)].listed == (block,)
    assert told.faults.keys() == {"s/node/b"}


def test_a_node_that_turns_its_key_believes_those_that_have_neither() -> None:
    told, rows = registry(), Rows()
    told.put("s/node/a", b"", 1)
    told.put("s/node/b", record(2, 2), 2)
    rows.take(told)
    told.turn(key(2))
    rows.take(told)
    assert not rows.peers()
    assert "this node's own" in told.faults["s/node/b"]
    told.turn(OWN)
    rows.take(told)
    assert set(rows.peers()) == {key(2)}


def test_two_nodes_that_swap_their_keys() -> None:
    found, rows = filled(2)
    found.put(NODE + "n0", record(2, 0), 1)
    found.put(NODE + "n1", record(1, 1), 2)
    rows.take(found)
    assert {each: peer.member for each, peer in rows.peers().items()} == {key(2): "n0", key(1): "n1"}


@pytest.mark.parametrize(
    "value, told",
    [
        (b"no json", "malformed"),
        (b"[]", "Expected `object`"),
        (record(1, 1, key="AA=="), "key: 'AA==' is 1 bytes"),
        (record(1, 1, id=-1), "id"),
        (record(1, 1, block="10.200.1.7/24"), "host bits set"),
        (record(1, 1, endpoint="nowhere"), "is not host:port"),
        (record(1, 1, endpoint="h:70000"), "is not host:port"),
        (record(1, 1, candidates=[{"candidate_type": "host", "address": "x:1", "priority": 1}]), "is not ip:port"),
        (record(1, 1, candidates=[{"candidate_type": "host", "address": "1.2.3.4:1", "priority": 1}] * 17), "length"),
        (record(1, 1, blocks=[f"10.200.{number}.0/24" for number in range(16)]), "length"),
        (record(1, 1, key="A" * 43 + "="), "no handshake succeeds with it"),
        (record(1, 1, next_key="A" * 43 + "="), "no handshake succeeds with it"),
        (record(1, 1, endpoint="[fe80::1%lo]:5\nreplace_peers=true\nendpoint=[fe80::2]:5"), "is not host:port"),
        (record(1, 1, endpoint="[fe80::1%lo]:5"), "is not host:port"),
        (
            record(1, 1, candidates=[{"candidate_type": "host", "address": "[fe80::1%x\n]:1", "priority": 1}]),
            "not ip:port",
        ),
        (record(1, 1, block="fd00::%x\nprivate_key=00/64"), "has a zone"),
        (record(1, 1, blocks=["fd00::%x/64"]), "has a zone"),
        (record(1, 1, version="x" * 70000), "bytes, at most 65536"),
    ],
)
def test_a_record_that_makes_no_sense_is_named_and_takes_nothing_away(value: bytes, told: str) -> None:
    found, rows = filled(3)
    found.put(NODE + "n1", value, 2)
    rows.take(found)
    assert told in found.faults[NODE + "n1"]
    assert len(rows.peers()) == 3
    found.put(NODE + "n1", record(2, 1), 2)
    assert not found.faults


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]", "255.255.255.255"])
def test_an_endpoint_at_which_nobody_is_is_not_taken(address: str) -> None:
    found, rows = filled(3)
    found.put(NODE + "n1", record(2, 1, endpoint=f"{address}:51820"), 2)
    rows.take(found)
    assert "not taken" in found.faults[NODE + "n1"]
    assert [peer.endpoint for peer in rows.peers().values() if peer.member == "n1"] == [""]


def test_a_name_at_an_address_with_a_zone_is_no_record_and_a_mapped_address_is_the_one_it_maps() -> None:
    with pytest.raises(BadRecord, match="has a zone"):
        records.read_names("n1", json.dumps({"web": ["fe80::1%x\ny"]}).encode())
    read = records.read_names("n1", json.dumps({"web": ["::ffff:10.200.1.5"]}).encode())
    assert read.names == {"web": (ip_address("10.200.1.5"),)}


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "-a", "a" * 64, "ü"])
def test_names_that_no_node_has(name: str) -> None:
    with pytest.raises(BadRecord, match="no name of a node"):
        records.read_node(name, record(1, 1), 1)


def test_a_block_outside_the_cluster_or_of_another_size_is_routed_to_nobody() -> None:
    found, rows = registry(), Rows()
    found.put(NODE + "wide", record(1, 1, block="10.200.0.0/17"), 1)
    found.put(NODE + "out", record(2, 1, block="10.201.0.0/24"), 2)
    found.put(NODE + "all", record(3, 1, block="0.0.0.0/0"), 3)
    rows.take(found)
    assert [peer.listed for peer in rows.peers().values()] == [(), (), ()]
    assert all("is no /24 block of" in fault for fault in found.faults.values())


def test_nobody_takes_what_is_ours() -> None:
    found, rows = registry(), Rows()
    found.claim_for_ourselves([ip_network("10.200.7.0/24")])
    found.put(NODE + "thief", record(1, 7), 1)
    found.put(NODE + "double", record(1, 8, key=b64encode(OWN).decode()), 2)
    found.put(NODE + "inside", record(3, 9, endpoint="10.200.9.1:1"), 3)
    rows.take(found)
    peers = rows.peers()
    assert peers[key(1)].listed == ()
    assert OWN not in peers
    assert peers[key(3)].endpoint == ""
    assert "this node's own" in found.faults[NODE + "thief"]
    found.claim_for_ourselves([])
    rows.take(found)
    assert rows.peers()[key(1)].listed == (ip_network("10.200.7.0/24"),)


def test_keepalive_only_towards_and_from_nodes_behind_a_nat() -> None:
    found, rows = registry(), Rows()
    found.put(NODE + "open", record(1, 1), 1)
    found.put(NODE + "hidden", record(2, 2, nat=True), 2)
    rows.take(found)
    assert {peer.member: peer.keepalive for peer in rows.peers().values()} == {"open": 0, "hidden": 25}
    found.own_nat = True
    rows.take(found)
    assert {peer.member: peer.keepalive for peer in rows.peers().values()} == {"open": 25, "hidden": 25}


def test_a_record_keeps_what_a_newer_version_wrote_in_it() -> None:
    member = records.read_node("a", record(1, 1, future={"x": 1}), 1)
    again = json.loads(records.write_node(member, record(1, 1, future={"x": 1}, endpoint="192.0.2.9:1")))
    assert again["future"] == {"x": 1}
    assert again["endpoint"] == member.endpoint
    assert records.read_node("a", json.dumps(again).encode(), 1) == member


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,12}(\.[a-z]{1,9})?", fullmatch=True),
        st.lists(st.ip_addresses(v=4), min_size=1, max_size=4, unique=True),
        max_size=60,
    )
)
def test_names_are_told_in_entries_that_are_read_the_same(names: dict[str, list[Any]]) -> None:
    given = {name: tuple(addresses) for name, addresses in names.items()}
    read: dict[str, Any] = {}
    for entry, value in records.write_names("node", given).items():
        assert entry.startswith("s/name/node")
        read |= records.read_names(entry.removeprefix("s/name/"), value).names
    assert read == given


def test_many_names_are_split() -> None:
    names = {f"{'x' * 60}{number}": (ip_address("10.200.1.2"),) for number in range(1500)}
    written = records.write_names("node", names)
    assert len(written) > 3
    assert max(map(len, written.values())) < 40_000
    assert list(written)[:2] == ["s/name/node", "s/name/node/1"]


def test_more_names_than_a_node_may_serve_are_skipped() -> None:
    found = registry()
    found.put("s/name/a", json.dumps({f"n{number}": ["10.0.0.1"] for number in range(2001)}).encode(), 1)
    assert "2001 names, at most 2000" in found.faults["s/name/a"]
    found.put("s/name/a", b'{"Bad_Name!": ["10.0.0.1"]}', 1)
    assert "not a DNS name" in found.faults["s/name/a"]
