"""Attachments of a namespace's interfaces, by an id and the interface's name."""

from ipaddress import ip_address, ip_network

import pytest
from decisions import FACTS, SLICE, attach, change, dump, enter, ready, serve
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import AddressUnavailable, InvalidValue, RequestError
from overlayd.model import attachments, ipam, labels, records
from overlayd.model.layout import layout
from overlayd.model.names import _namespace_digits, is_host_end, namespace_veth_name, pid_of
from overlayd.model.objects import LONGEST_ALIAS, NetnsPath, Veth, label_of_veth, veth_alias
from overlayd.model.rows import Attachment, Lease, Record, decode, encode
from overlayd.model.state import NotYet, State


def veths(state: State) -> dict[str, Veth]:
    return {thing.name: thing for thing in layout(state, FACTS).values() if isinstance(thing, Veth)}


def test_one_namespace_has_as_many_as_it_likes() -> None:
    state = ready()
    serve(state, "api")
    first = enter(state, "a", "eth0")
    second = enter(state, "a", "net1", "api", default_route=False)
    third = enter(state, "b", "net2")
    assert [row.handle for row in (first, second, third)] == ["netns:a/eth0", "netns:a/net1", "netns:b/net2"]
    shown = {veth.interface: veth for veth in veths(state).values()}
    assert shown.keys() == {"eth0", "net1", "net2"}
    assert shown["net1"].routes == frozenset()
    assert shown["eth0"].routes == {ip_network("0.0.0.0/0")}
    assert attach(state, 71).handle == "pid:71", "a process in it may be attached as well"
    assert state.of_link(first.host_end()) == first
    assert decode(second.id, encode(second)) == second


def test_the_same_again_changes_nothing() -> None:
    state = ready()
    first = enter(state, "a")
    before = dump(state)
    assert enter(state, "a") == first
    assert dump(state) == before
    for other in ({"join_global": True}, {"default_route": False}, {"mac": b"\6\0\0\0\0\1"}, {"service": "api"}):
        with pytest.raises(RequestError):
            enter(state, "a", **other)
    with pytest.raises(RequestError, match="another network namespace that still lives"):
        enter(state, "a", cookie=2)
    assert dump(state) == before


def test_the_dead_make_room_for_the_next_under_their_id() -> None:
    state = ready()
    first = enter(state, "a")
    again = enter(state, "a", cookie=2, alive=False)
    assert again.address != first.address
    assert [row.address for row in state.table(Lease).values() if row.holder] == [again.address]
    same = enter(state, "a", cookie=2, alive=False, ip=again.address)
    assert same.address == again.address, "what it had itself is not in its way"


def test_an_address_of_ones_own() -> None:
    state = ready()
    free = enter(state, "probe").address
    taken = enter(state, "a").address
    change(state, lambda draft: attachments.detach(draft, state.table(Attachment)["netns:probe/eth0"]))
    with pytest.raises(AddressUnavailable, match="held by netns:a/eth0"):
        enter(state, "b", ip=taken)
    subnet = next(iter(state.pools("web"))).network
    for outside in (subnet[0], subnet[1], subnet[-1], ip_address("10.9.9.9"), ip_address("fd00::1")):
        with pytest.raises(AddressUnavailable):
            enter(state, "b", ip=outside)
    assert enter(state, "b", ip=free).address == free
    state.departing["lease", str(subnet[9])] = Lease(address=subnet[9], pool="web", holder="x")
    with pytest.raises(NotYet):
        change(state, lambda draft: ipam.claim(draft, "web", subnet[9], "c"))


@given(st.integers(0, 63), st.lists(st.tuples(st.booleans(), st.integers(2, 62)), max_size=30))
def test_a_claimed_address_has_one_holder(wanted: int, before: list[tuple[bool, int]]) -> None:
    """Against a dictionary: who asks for an address gets it when nobody has it, and nobody else does later."""
    state = ready()
    subnet = state.pools("web")[0].network
    holders: dict[int, str] = {}
    for number, (comes, offset) in enumerate([*before, (True, wanted)]):
        if not comes:
            if offset in holders:
                row = state.table(Attachment)[holders.pop(offset)]
                change(state, lambda draft, row=row: attachments.detach(draft, row))
            continue
        possible = offset not in holders and 2 <= offset <= 62
        try:
            row = enter(state, f"n{number}", ip=subnet[offset])
        except AddressUnavailable:
            assert not possible
            continue
        assert possible
        holders[offset] = row.handle
    assert {subnet[at]: holder for at, holder in holders.items()} == {
        lease.address: lease.holder for lease in state.table(Lease).values() if lease.holder
    }


def test_names_come_and_go_with_it() -> None:
    state = ready()
    row = enter(state, "a", names=("db", "db.shop"))
    assert state.names_of(row.address) == ("db", "db.shop")
    change(state, lambda draft: records.register(draft, "other", row.address))
    change(state, lambda draft: attachments.detach(draft, row))
    assert not state.table(Record)


@pytest.mark.parametrize("mac", [b"\1\0\0\0\0\1", bytes(6), b"\2\x6f\0\0\0\1", b"\xfe\0\0\0\0\1", b"\2\0"])
def test_macs_that_are_none_or_ours(mac: bytes) -> None:
    with pytest.raises(InvalidValue):
        enter(ready(), "a", mac=mac)


def test_two_macs_on_one_bridge_differ_where_it_counts() -> None:
    state = ready()
    serve(state, "api")
    enter(state, "a", mac=b"\2\0\0\0\0\1")
    with pytest.raises(InvalidValue, match="netns:a/eth0"):
        enter(state, "b", mac=b"\6\0\0\0\0\1")
    enter(state, "b", service="api", mac=b"\2\0\0\0\0\1")


def test_two_links_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty bits of a hash may meet: then the later one is told, and takes nobody's link."""
    monkeypatch.setattr("overlayd.model.names.siphash13", lambda _data: 7)
    _namespace_digits.cache_clear()
    try:
        state = ready()
        enter(state, "a")
        with pytest.raises(RequestError, match=r"its link would be zl-c0000000000, which is that of netns:a/eth0"):
            enter(state, "b")
    finally:
        _namespace_digits.cache_clear()


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=15))
def test_names_of_links(id: str, interface: str) -> None:
    names = [namespace_veth_name(id, interface, leg) for leg in ("s", "g")]
    assert len(set(names)) == 2
    for name in names:
        assert len(name) == 14
        assert is_host_end(name)
        assert not pid_of(name)


@given(st.text(max_size=80), st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=15))
def test_a_link_says_whose_it_is(network: str, id: str, interface: str) -> None:
    row = Attachment(
        handle=attachments.namespace(id, interface),
        service="web",
        address=ip_address("10.0.0.1"),
        file=NetnsPath("/x", 1, 2, 3),
        interface=interface,
        network=network,
    )
    label = labels.container(row)
    for aside in (False, True):
        alias = veth_alias(label, aside=aside)
        assert len(alias.encode(errors="surrogatepass")) <= LONGEST_ALIAS
        assert label_of_veth(alias) == label
    told = labels.parse_container(label)
    if label:
        assert told is not None
        assert (told.handle, told.interface) == (row.handle, interface)
        assert told.network in (network, "")
    else:
        assert told is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '["","pid:1","eth0"]', '["","netns:a/eth0","eth1"]', '[1,"netns:a/b","b"]']
)
def test_labels_that_nobody_wrote(text: str) -> None:
    assert labels.parse_container(text) is None


@pytest.mark.parametrize("name", ["", "lo", "a/b", "a b", "a:b", ".", "..", "sixteen-bytes-xx", "a%d", "a\x07"])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(RequestError):
        attachments.require_interface(name)


def test_a_second_interface_for_the_global_overlay() -> None:
    state = ready()
    row = enter(state, "a", "eth0", join_global=True)
    with pytest.raises(RequestError, match="attach netns:b/net1 without join_global"):
        enter(state, "b", "net1", join_global=True)
    serve(state, "pods", subnet=SLICE)
    with pytest.raises(RequestError, match="a/eth0, in the same network namespace, has joined the global overlay"):
        enter(state, "b", "net1", "pods", join_global=True)
    enter(state, "b", "fifteen-bytes-x", cookie=2, join_global=True)
    shown = {veth.interface: name for name, veth in veths(state).items()}
    assert shown.keys() == {"eth0", "eth0-g", "fifteen-bytes-x", "fifteen-bytes-g"}
    assert shown["eth0-g"] == row.host_end("g")


def test_a_route_to_the_cluster_is_had_once_as_well() -> None:
    """Answers of an interface without it would leave by the other one, which does not pass their address."""
    state = ready()
    serve(state, "pods", subnet=SLICE)
    row = enter(state, "a", "eth0", "pods", join_global=True)
    for service in ("web", "pods"):
        with pytest.raises(RequestError, match=f"has joined the global overlay with {row.address}"):
            enter(state, "b", "net1", service, join_global=True)
        enter(state, "b", f"{service}0", service)
