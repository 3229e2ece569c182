"""The codec of set elements against nft(8), which reads and lists the same sets."""

import socket
from collections.abc import Hashable, Iterator
from errno import EEXIST, ENOENT
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from throwaway import Namespace

from overlayd.errors import MechanismError
from overlayd.linux import setelem
from overlayd.linux.netlink import NETLINK_NETFILTER, Netlink, connected
from overlayd.model import ruleset, set_changes, set_members
from overlayd.model.objects import Element, Step


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.nft(ruleset.fixed())
        yield namespace


@pytest.fixture(scope="module")
def netlink(space: Namespace) -> Iterator[socket.socket]:
    with space.entered(), connected(NETLINK_NETFILTER) as netlink:
        yield netlink


def transact(netlink: socket.socket, *steps: Step) -> None:
    setelem.transact(netlink, set_changes.changes(steps))


def command(verb: str, element: Element) -> str:
    """What does to `element`, in nft syntax."""
    text = f"{element.member} : {element.value}" if element.value else element.member
    return f"{verb} element {element.family} overlayd {element.set} {{ {text} }}\n"


addresses = st.builds(IPv4Address, st.integers(1, 2**32 - 1)) | st.builds(IPv6Address, st.integers(1, 2**128 - 1))
networks = st.builds(
    lambda value, length: IPv4Network((value, length), strict=False), st.integers(1, 2**32 - 1), st.integers(1, 32)
) | st.builds(
    lambda value, length: IPv6Network((value, length), strict=False), st.integers(1, 2**128 - 1), st.integers(1, 128)
)
members = st.builds(
    set_members.member,
    addresses,
    st.integers(1, set_members.MAX_NETWORK),
    st.from_regex(r"veth-[0-9]{1,7}-[sg]", fullmatch=True),
)
everything = st.one_of(
    members,
    networks.map(set_members.cluster),
    addresses.map(set_members.node),
    st.integers(1, 65535).map(set_members.tunnel),
    st.builds(set_members.edge, addresses, st.lists(networks, max_size=3)),
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(elements=everything)
def test_elements_are_those_that_nft_would_make(
    space: Namespace, netlink: socket.socket, elements: list[Element]
) -> None:
    empty = space.nft("list ruleset")
    transact(netlink, *(Step(None, element) for element in elements))
    ours = space.nft("list ruleset")
    space.nft("".join(command("delete", element) for element in elements))
    assert space.nft("list ruleset") == empty
    space.nft("".join(command("add", element) for element in elements))
    assert space.nft("list ruleset") == ours
    transact(netlink, *(Step(element, None) for element in elements))
    assert space.nft("list ruleset") == empty


everywhere = st.one_of(
    everything,
    st.builds(set_members.leg, st.from_regex(r"veth-[0-9]{1,7}-g", fullmatch=True), st.lists(addresses, max_size=2)),
    st.builds(
        set_members.port, st.just("veth-7-s"), st.binary(min_size=6, max_size=6), st.lists(addresses, max_size=2)
    ),
    st.builds(set_members.host, st.just([4]), st.just([4, 6])),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(elements=everywhere)
def test_what_is_listed_is_what_was_added(space: Namespace, netlink: socket.socket, elements: list[Element]) -> None:
    wanted = {element.key: element for element in elements}
    transact(netlink, *(Step(None, element) for element in wanted.values()))
    with space.entered():
        assert every_element() == wanted
    transact(netlink, *(Step(element, None) for element in wanted.values()))
    with space.entered():
        assert every_element() == {}


def every_element() -> dict[Hashable, Element]:
    with Netlink(NETLINK_NETFILTER) as lister:
        return {each.key: each for family, name in ruleset.SETS for each in setelem.listed(lister, family, name)}


@pytest.mark.parametrize(
    ("set", "added", "members"),
    [
        ("node4", '10.200.0.9 comment "mine"', {"10.200.0.9"}),
        ("cluster4", "10.0.0.1-10.0.0.9", {"10.0.0.1-10.0.0.9"}),
        ("cluster4", "0.0.0.0/8, 1.0.0.0/8, 3.0.0.0/8", {"0.0.0.0/8", "1.0.0.0/8", "3.0.0.0/8"}),  # neighbours
        ("cluster4", "10.0.0.0/8, 255.255.255.255", {"10.0.0.0/8", "255.255.255.255"}),
        ("cluster6", "fd00::1-fd00::5, ff00::/8", {"fd00::1-fd00::5", "ff00::/8"}),
        ("grant4", "10.0.0.1-10.0.0.9 . 10.1.0.0/16", {"10.0.0.1-10.0.0.9 . 10.1.0.0/16"}),
    ],
)
def test_what_others_put_into_our_sets_is_listed(space: Namespace, set: str, added: str, members: object) -> None:
    space.nft(f"add element inet overlayd {set} {{ {added} }}")
    with space.entered():
        found = every_element()
    assert {each.member for each in found.values()} == members
    space.nft(f"flush set inet overlayd {set}")


def test_sets_of_another_version_are_listed_without_what_has_another_form() -> None:
    with Namespace() as old:
        old.nft("add table inet overlayd; add set inet overlayd member4 { type ipv4_addr; }")
        old.nft("add element inet overlayd member4 { 10.0.0.1 }; add table bridge overlayd")
        with old.entered():
            assert every_element() == {}
    with Namespace() as empty, empty.entered():
        assert every_element() == {}


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "128.0.0.0/1"])
def test_an_interval_up_to_the_last_address(space: Namespace, netlink: socket.socket, cidr: str) -> None:
    (element,) = set_members.cluster(IPv4Network(cidr))
    transact(netlink, Step(None, element))
    assert "elements = {" in space.nft("list set inet overlayd cluster4")
    transact(netlink, Step(element, None))
    assert "elements = {" not in space.nft("list set inet overlayd cluster4")


def test_failures_name_the_set_and_leave_nothing(space: Namespace, netlink: socket.socket) -> None:
    empty = space.nft("list ruleset")
    fine, absent = (set_members.node(IPv4Address(text))[0] for text in ("10.200.0.1", "10.200.0.2"))
    with pytest.raises(MechanismError) as caught:
        transact(netlink, Step(None, fine), Step(absent, None))
    assert (caught.value.operation, caught.value.object) == ("delete from", "inet overlayd node4")
    assert (caught.value.errno, caught.value.detail) == (ENOENT, "10.200.0.2")
    one, two = (set_members.member(IPv4Address("10.200.0.5"), number)[0] for number in (1, 2))
    with pytest.raises(MechanismError) as caught:
        transact(netlink, Step(None, fine), Step(None, one), Step(None, two))
    assert (caught.value.operation, caught.value.errno) == ("add to", EEXIST)
    assert space.nft("list ruleset") == empty
    for step in (Step(None, fine), Step(fine, None)):  # no answer of a failure is left in the socket
        transact(netlink, step)


def test_nothing_to_do_sends_nothing(netlink: socket.socket) -> None:
    transact(netlink)
    netlink.setblocking(False)
    with pytest.raises(BlockingIOError):
        netlink.recv(1)
    netlink.setblocking(True)
