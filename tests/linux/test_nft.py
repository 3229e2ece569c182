"""The binding against the kernel's nftables, each test in a namespace of its own."""

import threading
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from errno import ENOENT
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from lab.patience import LIMIT
from throwaway import Namespace

from overlayd.errors import MechanismError
from overlayd.linux import setelem
from overlayd.linux.nft import Nft
from overlayd.model import set_members
from overlayd.model.objects import Element, Step


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def nft(space: Namespace) -> Iterator[Nft]:
    with space.entered():
        nft = Nft()
    nft.ensure()
    yield nft
    nft.close()


def every_kind() -> list[Element]:
    """Elements of every set, with the spellings that nftables is known to change."""
    return [
        *set_members.cluster(ip_network("10.200.0.0/16")),
        *set_members.cluster(ip_network("fd00:200::/32")),
        *set_members.node(ip_address("10.200.0.1")),
        *set_members.node(ip_address("fd00:200::1")),
        *set_members.member(ip_address("10.200.0.5"), 1, "veth-71-s"),
        *set_members.member(ip_address("10.200.0.6"), 0x5_0000, "veth-72-s"),
        *set_members.member(ip_address("::ffff:10.200.0.5"), set_members.MAX_NETWORK, "veth-73-s"),
        *set_members.member(ip_address("fd00:200::5"), 0x1234_5678),
        *set_members.edge(ip_address("10.200.9.9"), [ip_network("0.0.0.0/0")]),
        *set_members.edge(ip_address("10.200.9.8"), [ip_network("10.200.0.5/32"), ip_network("10.201.0.0/17")]),
        *set_members.edge(ip_address("fd00:200::99"), [ip_network("::/0")]),
        *set_members.edge(ip_address("fd00:200::98"), [ip_network("fd00:201::/64"), ip_network("fd00:202::1/128")]),
    ]


def create(elements: Iterable[Element]) -> list[Step]:
    return [Step(None, element) for element in elements]


def delete(elements: Iterable[Element]) -> list[Step]:
    return [Step(element, None) for element in elements]


def by_key(elements: Iterable[Element]) -> dict[Hashable, Element]:
    return {element.key: element for element in elements}


def test_what_was_applied_is_observed(nft: Nft) -> None:
    nft.apply(create(every_kind()))
    assert nft.observe() == by_key(every_kind())
    nft.apply(delete(every_kind()))
    assert nft.observe() == {}


def test_ensure_again_duplicates_no_rule_and_loses_no_element(nft: Nft, space: Namespace) -> None:
    nft.apply(create(every_kind()))
    before = space.nft("list ruleset")
    nft.ensure()
    assert space.nft("list ruleset") == before


def test_a_flushed_ruleset_is_rebuilt(nft: Nft, space: Namespace) -> None:
    nft.apply(create(every_kind()))
    have, text = nft.observe(), space.nft("list ruleset")
    space.nft("flush ruleset")
    assert not nft.intact()
    assert nft.observe() == {}
    nft.ensure()
    nft.apply(create(have.values()))
    assert nft.intact()
    assert nft.observe() == have
    assert space.nft("list ruleset") == text


def test_tables_of_another_version_are_replaced(space: Namespace) -> None:
    space.nft("add table inet overlayd; add set inet overlayd node4 { type ether_addr; }")
    with space.entered(), closing(Nft()) as nft:
        nft.ensure()
        nft.apply(create(every_kind()))
        assert nft.observe() == by_key(every_kind())


@pytest.mark.parametrize(
    "damage",
    [
        "delete table bridge overlayd",
        "flush chain inet overlayd edge",
        "insert rule inet overlayd forward accept",
        "add chain inet overlayd forward { policy drop; }",
    ],
)
def test_damage_to_the_rules_is_noticed_and_mended(nft: Nft, space: Namespace, damage: str) -> None:
    assert nft.intact()
    space.nft(damage)
    assert not nft.intact()
    nft.ensure()
    assert nft.intact()
    assert "policy drop" not in space.nft("list ruleset")


def test_elements_and_other_tables_are_no_damage(nft: Nft, space: Namespace) -> None:
    nft.apply(create(every_kind()))
    space.nft("add table inet other")
    assert nft.intact()


def test_apply_is_idempotent_when_the_kernel_is_ahead_or_behind(nft: Nft) -> None:
    elements = every_kind()
    nft.apply(create(elements))
    nft.apply(create(elements))
    assert nft.observe() == by_key(elements)
    nft.apply(delete(elements[:7]))
    nft.apply(delete(elements))
    assert nft.observe() == {}


def test_a_map_entry_changes_its_value_whatever_the_kernel_holds(nft: Nft) -> None:
    one, two, three = (set_members.member(ip_address("10.200.0.5"), number)[0] for number in (1, 2, 3))
    nft.apply([Step(None, one)])
    nft.apply([Step(one, two)])
    assert nft.observe() == by_key([two])
    nft.apply([Step(None, three)])  # believed absent
    assert nft.observe() == by_key([three])
    nft.apply([Step(one, two)])  # believed to be another
    assert nft.observe() == by_key([two])
    nft.apply([Step(one, None)])
    assert nft.observe() == {}


def test_a_grant_gives_way_to_one_that_overlaps_it(nft: Nft) -> None:
    address = ip_address("10.200.9.9")
    narrow, wide = (set_members.edge(address, [ip_network(text)])[1] for text in ("10.1.0.0/16", "10.0.0.0/8"))
    nft.apply([Step(None, narrow)])
    nft.apply([Step(narrow, None), Step(None, wide)])
    assert nft.observe() == by_key([wide])


def test_what_others_put_into_our_sets_is_seen_and_can_be_deleted(nft: Nft, space: Namespace) -> None:
    space.nft(
        """
        add element inet overlayd cluster4 { 10.9.0.1-10.9.0.6 }
        add element inet overlayd node4 { 10.9.0.1 comment "mine" }
        add element inet overlayd network4 { 10.9.0.2 comment "mine" : 1:2 }
        add element inet overlayd grant4 { 10.9.0.1 . 10.9.0.1-10.9.0.6 }
        add element inet overlayd grant4 { 10.9.0.2-10.9.0.4 . 10.9.0.0/24 comment "mine" }
        add set inet overlayd leftover { type ipv4_addr; elements = { 10.9.0.3 }; }
        """
    )
    found = nft.observe()
    assert {(element.set, element.member, element.value) for element in found.values()} == {
        ("cluster4", "10.9.0.1-10.9.0.6", ""),
        ("node4", "10.9.0.1", ""),
        ("network4", "10.9.0.2", "1:2"),
        ("grant4", "10.9.0.1 . 10.9.0.1-10.9.0.6", ""),
        ("grant4", "10.9.0.2-10.9.0.4 . 10.9.0.0/24", ""),
    }
    nft.apply(delete(found.values()))
    assert nft.observe() == {}


@pytest.mark.parametrize("family", ["inet", "bridge"])
def test_a_chain_of_somebody_else_in_our_tables_goes(nft: Nft, space: Namespace, family: str) -> None:
    """A flush of the table would leave its policy."""
    space.nft(f"add chain {family} overlayd mine {{ type filter hook forward priority 10; policy drop; }}")
    assert not nft.intact()
    member = set_members.cluster(ip_network("10.200.0.0/16"))
    nft.ensure(member)
    assert nft.intact()
    assert nft.observe() == by_key(member)
    assert "mine" not in space.nft(f"list table {family} overlayd")


def test_a_transaction_is_all_or_nothing(nft: Nft, space: Namespace) -> None:
    space.nft("delete table bridge overlayd")
    with pytest.raises(MechanismError) as caught:
        nft.apply(create(set_members.member(ip_address("10.200.0.5"), 1, "veth-71-s")))
    assert caught.value.errno == ENOENT
    assert caught.value.object == "bridge overlayd network"
    space.nft("add table bridge overlayd")
    assert nft.observe() == {}


def test_a_syntax_error_has_no_errno(nft: Nft) -> None:
    with pytest.raises(MechanismError, match="syntax error") as caught:
        nft.run("add add add")
    assert caught.value.errno == 0


def test_without_tables(nft: Nft) -> None:
    nft.teardown()
    nft.teardown()
    assert not nft.intact()
    assert nft.observe() == {}
    nft.apply(delete(every_kind()))
    with pytest.raises(MechanismError) as caught:
        nft.apply(create(every_kind()))
    assert caught.value.errno == ENOENT


def test_teardown_spares_other_tables(nft: Nft, space: Namespace) -> None:
    space.nft("add table ip overlayd; add table inet other")
    nft.teardown()
    assert space.nft("list tables").split("\n") == ["table ip overlayd", "table inet other", ""]


def test_ten_thousand_elements_in_one_transaction(nft: Nft) -> None:
    first = int(IPv4Address("10.200.0.0"))
    elements = [
        element
        for offset in range(5_000)
        for element in set_members.member(IPv4Address(first + offset), offset // 10 + 1)
    ]
    assert len(elements) == 10_000
    nft.apply(create(elements))
    assert nft.observe() == by_key(elements)
    nft.apply(delete(elements))
    assert nft.observe() == {}


def test_many_threads_on_one_instance(nft: Nft) -> None:
    failures: list[BaseException] = []

    def work(third: int) -> None:
        try:
            for last in range(1, 40):
                elements = set_members.member(ip_address(f"10.200.{third}.{last}"), third + 1)
                nft.apply(create(elements))
                if last % 2:
                    nft.apply(delete(elements))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(third,)) for third in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(nft.observe()) == 8 * 19 * 2


def test_two_instances_in_two_threads(space: Namespace) -> None:
    """The library frees its names of interfaces after every call, for the whole process."""
    space.ip(*(f"link add up{number} type veth peer name down{number}" for number in range(8)))
    rules = "".join(f"iif up{number} counter accept\n" for number in range(8))
    space.nft(f"table inet other {{ chain forward {{ type filter hook forward priority 0;\n{rules}}}\n}}")
    with space.entered():
        instances = [Nft(), Nft()]
    threads = [threading.Thread(target=lambda nft=nft: [nft.chains() for _ in range(500)]) for nft in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for nft in instances:
        nft.close()


def test_a_listing_holds_up_no_change(nft: Nft, monkeypatch: pytest.MonkeyPatch) -> None:
    listing, changed = threading.Event(), threading.Event()

    def listed(*_: object) -> list[Element]:
        listing.set()
        assert changed.wait(LIMIT)
        return []

    monkeypatch.setattr(setelem, "listed", listed)
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(nft.observe)
        assert listing.wait(LIMIT)
        nft.apply([Step(None, every_kind()[0])])
        changed.set()
        assert found.result() == {}
