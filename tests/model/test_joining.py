"""Membership: from the first start to the leave, and what an orchestrator may still do."""

from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from overlayd.errors import Exhausted, RequestError
from overlayd.model import ipam, joining, membership, overlay, peers, services
from overlayd.model.cluster_records import Config
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Change, Member, MemberNames, Membership, Node, Peer, Record, decode, encode
from overlayd.model.state import Draft, State
from overlayd.model.zone import Zone

CIDR = ip_network("10.200.0.0/16")
CONFIG = Config(format=1, id="c1", cluster_cidr=str(CIDR), block_prefix=24)
KEY, OTHER = b"\1" * 32, b"\2" * 32


def decide(state: State, *steps: object) -> Draft:
    draft = Draft(state)
    for step in steps:
        step(draft)  # type: ignore[operator]
    state.apply(draft.rows)
    return draft


def member() -> State:
    """A node that has joined."""
    state = State([Node(private_key=b"\7" * 32, node_id=5)])
    decide(state, lambda draft: joining.begin(draft, "prod", "me", "i1", "m1"))
    decide(state, lambda draft: joining.learn(draft, CONFIG))
    decide(state, lambda draft: joining.hold(draft, [ip_network("10.200.4.0/24")]))
    setup(state, ip_network("10.200.4.0/25"))
    return state


def setup(state: State, slice: object) -> None:
    def do(draft: Draft) -> None:
        membership.require_own_range(draft, CIDR, slice)  # type: ignore[arg-type]
        overlay.setup_global(
            draft,
            deployment="d",
            instance_id="i",
            cluster=CIDR,
            slice=slice,
            wg_port=51820,
            nat=None,  # type: ignore[arg-type]
        )

    decide(state, do)


def news(*rows: object, gone: tuple[tuple[str, str], ...] = ()) -> Change:
    return {**{row.id: row for row in rows}, **dict.fromkeys(gone)}  # type: ignore[attr-defined]


def peer(key: bytes, block: str, name: str = "other") -> Peer:
    return Peer(public_key=key, endpoint="192.0.2.1:1", listed=(ip_network(block),), member=name, name=name)


def test_every_row_is_read_as_it_was_written() -> None:
    rows = [
        Membership(cluster="c", node="n", instance="i", cidr=CIDR, blocks=(CIDR,), witness=("s/a", 4, 9)),
        Member(name="a", instance="i", node_id=4, public_key=KEY, blocks=(CIDR,), created=3),
        MemberNames(part="a/1", names={"web": (ip_address("10.0.0.1"), ip_address("fd00::1"))}),
        peer(KEY, "10.200.5.0/24"),
    ]
    for row in rows:
        assert decode(row.id, encode(row)) == row


def test_a_data_directory_is_of_one_cluster_and_one_name_while_it_holds_a_block() -> None:
    state = member()
    with pytest.raises(RequestError, match="this node is in cluster prod, not test"):
        decide(state, lambda draft: joining.begin(draft, "test", "me", "i2", "m1"))
    with pytest.raises(RequestError, match="this node is me in cluster prod, not you"):
        decide(state, lambda draft: joining.begin(draft, "prod", "you", "i2", "m1"))
    decide(state, lambda draft: joining.begin(draft, "prod", "me", "i2", "m2"))
    assert state.table(Membership)[""].instance == "i1"  # for good
    decide(state, lambda draft: joining.hold(draft, []))
    decide(state, lambda draft: joining.begin(draft, "prod", "you", "i2", "m1"))
    assert state.table(Membership)[""].node == "you"


def test_services_get_their_subnets_from_the_blocks_and_from_nowhere_else() -> None:
    state = member()

    def set_up(name: str, subnet: str | None = None) -> str:
        wanted = ip_network(subnet) if subnet else None
        draft = Draft(state)
        made = services.setup_service(
            draft, name, subnet=wanted, dedicated_key=None, ranges=membership.service_ranges(draft)
        )
        state.apply(draft.rows)
        return str(made.subnet)

    assert membership.lacking(state) == ""
    assert {set_up("a"), set_up("b")} == {"10.200.4.128/26", "10.200.4.192/26"}
    assert membership.lacking(state) == "services"
    with pytest.raises(RequestError, match="claimed another block"):
        set_up("c")
    with pytest.raises(RequestError, match="not in this node's part"):
        set_up("c", "10.200.9.0/26")
    decide(state, lambda draft: joining.hold(draft, [ip_network("10.200.4.0/24"), ip_network("10.200.9.0/24")]))
    assert membership.lacking(state) == ""
    assert set_up("c").startswith("10.200.9.")
    assert membership.holders(state) == ["service a", "service b", "service c"]


def test_a_further_block_is_for_addresses_and_services_whichever_takes_a_part_of_it_first() -> None:
    state = member()
    decide(state, lambda draft: joining.hold(draft, [ip_network("10.200.4.0/24")]))

    def allocate() -> str:
        draft = Draft(state)
        address = ipam.allocate_ip(draft, "")
        state.apply(draft.rows)
        return str(address)

    first = [allocate() for _ in range(125)]
    assert (first[0], first[-1]) == ("10.200.4.2", "10.200.4.126")
    assert membership.lacking(state) == "addresses"
    with pytest.raises(Exhausted, match="claimed another block"):
        allocate()
    decide(state, lambda draft: joining.hold(draft, [ip_network("10.200.4.0/24"), ip_network("10.200.9.0/24")]))
    assert membership.lacking(state) == ""
    assert allocate() == "10.200.9.1"

    def set_up(name: str) -> Network:
        draft = Draft(state)
        ranges = membership.service_ranges(draft)
        made = services.setup_service(draft, name, subnet=None, dedicated_key=None, ranges=ranges)
        state.apply(draft.rows)
        return made.subnet

    subnets = [set_up(name) for name in "abcde"]
    assert ip_network("10.200.9.0/26") not in subnets
    with pytest.raises(RequestError, match="no free subnet"):
        set_up("f")
    assert [allocate() for _ in range(62)][-1] == "10.200.9.63"
    assert membership.lacking(state) == "addresses and services"
    decide(state, lambda draft: ipam.release(draft, ip_address("10.200.9.7"), ipam.REQUEST))
    assert membership.lacking(state) == "services"
    assert allocate() == "10.200.9.7"
    assert str(state.own_networks().covering(ip_address("10.200.9.200").packed, 32)[0][2]) == "this node's own block"


def test_a_setup_with_another_range_is_refused_and_with_ours_it_is_not() -> None:
    state = member()
    with pytest.raises(RequestError, match=r"slice comes from cluster prod \(10.200.4.0/25 of 10.200.0.0/16\)"):
        setup(state, ip_network("10.200.5.0/25"))
    setup(state, ip_network("10.200.4.0/25"))


def test_news_become_peers_that_an_orchestrator_may_add_to_and_not_remove() -> None:
    state = member()
    decide(state, lambda draft: joining.follow(draft, news(peer(KEY, "10.200.5.0/24")), 7, ("s/a", 7, 1)))
    assert state.table(Membership)[""].revision == 7
    with pytest.raises(RequestError, match="is node other of cluster prod"):
        membership.require_foreign(Draft(state), GLOBAL, KEY, "pubkey")
    membership.require_foreign(Draft(state), GLOBAL, OTHER, "pubkey")
    extra = ip_network("192.168.7.0/24")
    decide(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEY, extra))
    decide(state, lambda draft: joining.follow(draft, news(peer(KEY, "10.200.6.0/24")), None, None))
    kept = state.peers(GLOBAL)[KEY]
    assert (kept.listed, kept.added) == ((ip_network("10.200.6.0/24"),), (extra,))
    assert state.table(Membership)[""].revision == 7
    decide(state, lambda draft: joining.follow(draft, {}, 0, ("s/a", 7, 1), "h2"))
    known = state.table(Membership)[""]
    assert (known.revision, known.witness, known.history) == (0, None, "h2")  # in doubt: the next start lists


def test_what_is_put_has_a_higher_number_than_what_was_told_before() -> None:
    state = member()
    decide(state, lambda draft: joining.raise_seq(draft, 0, 1000))
    assert state.table(Membership)[""].seq == 1000
    decide(state, lambda draft: joining.raise_seq(draft, 1000, 50))  # the clock went back
    assert state.table(Membership)[""].seq == 1001
    decide(state, lambda draft: joining.raise_seq(draft, 1007, 1002))  # the journal went back
    assert state.table(Membership)[""].seq == 1008
    decide(state, lambda draft: joining.raise_seq(draft, 3, 2000))  # and the store as well
    assert state.table(Membership)[""].seq == 2000


def test_numbers_begin_again_behind_one_that_no_node_puts() -> None:
    state = member()
    decide(state, lambda draft: joining.raise_seq(draft, 2**40, 1000))
    assert state.table(Membership)[""].seq == 1000
    decide(state, lambda draft: joining.raise_seq(draft, 2**40 - 1, 1000))
    assert state.table(Membership)[""].seq == 1001


@pytest.mark.parametrize(
    "change",
    [{"cluster_cidr": "10.99.0.0/16"}, {"block_prefix": 26}, {"service_share": 0}],
    ids=lambda change: next(iter(change)),
)
def test_the_numbering_of_a_cluster_does_not_change_under_blocks_that_are_held(change: dict[str, object]) -> None:
    state = member()
    other = replace(CONFIG, zone="corp.example", **change)
    known = state.table(Membership)[""]
    assert joining.renumbered(known, CONFIG) == ""
    assert f"{next(iter(change.values()))}" in joining.renumbered(known, other)
    decide(state, lambda draft: joining.learn(draft, other))
    learned = state.table(Membership)[""]
    assert (learned.cidr, learned.block_prefix, learned.service_share, learned.zone) == (CIDR, 24, 1, "corp.example")
    decide(state, lambda draft: joining.hold(draft, []))
    decide(state, lambda draft: joining.learn(draft, other))
    assert joining.renumbered(state.table(Membership)[""], other) == ""
    assert str(state.table(Membership)[""].cidr) == other.cluster_cidr


def test_a_new_key_takes_the_block_of_the_old_one_in_one_change() -> None:
    state = member()
    decide(state, lambda draft: joining.follow(draft, news(peer(KEY, "10.200.5.0/24")), 1, None))
    change = news(peer(OTHER, "10.200.5.0/24"), gone=(peer(KEY, "10.200.5.0/24").id,))
    decide(state, lambda draft: joining.follow(draft, change, 2, None))
    assert list(state.peers(GLOBAL)) == [OTHER]
    block = ip_network("10.200.5.0/24")
    assert state.allowed_ips(GLOBAL).exact(block.network_address.packed, 24) == OTHER


def test_a_block_is_taken_from_a_peer_of_an_orchestrator_and_that_is_told() -> None:
    state = member()
    block = ip_network("10.200.5.0/24")
    row = Peer(public_key=OTHER, listed=(block,))
    state.apply({row.id: row})
    told: list[str] = []
    decide(state, lambda draft: told.extend(joining.follow(draft, news(peer(KEY, str(block))), 1, None)))
    assert len(told) == 1
    assert "moved from peer" in told[0]
    assert state.peers(GLOBAL)[OTHER].listed == ()


def test_leaving_keeps_what_an_orchestrator_gave() -> None:
    state = member()
    foreign = Peer(public_key=OTHER)
    state.apply({foreign.id: foreign})
    names = MemberNames(part="other", names={"web": (ip_address("10.200.5.9"),)})
    row = Member(name="other", instance="i", node_id=1, public_key=KEY, blocks=(), created=1)
    decide(state, lambda draft: joining.follow(draft, news(peer(KEY, "10.200.5.0/24"), names, row), 1, None))
    decide(state, joining.forget)
    assert list(state.peers(GLOBAL)) == [OTHER]
    assert not state.table(Membership)
    assert not state.table(Member)
    assert not state.table(MemberNames)
    assert membership.service_ranges(Draft(state)) is None


def test_a_name_has_the_addresses_of_all_nodes_that_tell_it() -> None:
    state = member()
    zone = Zone(state, "overlay.local")

    def tell(*rows: object, gone: tuple[tuple[str, str], ...] = ()) -> None:
        change = news(*rows, gone=gone)
        state.apply(change)
        zone.follow(change)

    def shown(name: str) -> list[str]:
        return sorted(map(str, dict(zone.names()).get(name, ())))

    one, two, own = (ip_address(f"10.200.{each}.9") for each in (5, 6, 4))
    tell(MemberNames(part="a", names={"web": (one,), "db": (one,)}))
    tell(MemberNames(part="b", names={"web": (two,)}))
    assert shown("web") == [str(one), str(two)]
    tell(Record(name="web", address=own))
    assert shown("web") == [str(own), str(one), str(two)]
    tell(gone=((MemberNames.table, "a"),))
    assert (shown("web"), shown("db")) == ([str(own), str(two)], [])
    tell(gone=((Record.table, "web"),))
    assert shown("web") == [str(two)]
    tell(MemberNames(part="b", names={}))
    assert shown("web") == []
