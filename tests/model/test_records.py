"""Names and their sets of addresses: registered one by one, and gone with the holder of the address."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd._fast.nametable import MAX_ADDRESSES
from overlayd.errors import RequestError
from overlayd.model import ipam, records
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Lease, Node, Record, decode, encode
from overlayd.model.state import Draft, State

NODE = Node(private_key=bytes(32))
A, B, SIX = (ip_address(text) for text in ("10.200.1.5", "10.200.1.6", "fd00::5"))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["register", "register", "unregister", "unregister one", "withdraw"]),
        st.sampled_from(["web", "db"]),
        st.sampled_from([A, B, SIX]),
    ),
    max_size=20,
)


@given(STEPS)
def test_against_a_dictionary_of_lists(steps):
    state, names = State([NODE]), {}
    for action, name, address in steps:
        draft = Draft(state)
        if action == "register":
            records.register(draft, name, address)
            if address not in names.setdefault(name, []):
                names[name].append(address)
        elif action == "unregister":
            records.unregister(draft, name)
            names.pop(name, None)
        elif action == "unregister one":
            records.unregister(draft, name, address)
            names[name] = [each for each in names.get(name, []) if each != address]
        else:
            records.withdraw(draft, address)
            names = {each: [a for a in addresses if a != address] for each, addresses in names.items()}
        names = {each: addresses for each, addresses in names.items() if addresses}
        inverse = state.apply(draft.rows)
        state.apply(inverse)
        state.apply(draft.rows)
        assert {row.name: list(row.addresses) for row in state.table(Record).values()} == names
        for each in (A, B, SIX):
            assert sorted(state.names_of(each)) == sorted(name for name in names if each in names[name])


def test_a_name_has_so_many_addresses_and_no_more():
    addresses = [ip_address(0x0AC80000 + number) for number in range(MAX_ADDRESSES)]
    state = State([NODE, Record(name="web", address=addresses[0], others=tuple(addresses[1:]))])
    draft = Draft(state)
    records.register(draft, "web", addresses[7])
    assert not draft.rows
    with pytest.raises(RequestError, match="web has 512 addresses"):
        records.register(draft, "web", SIX)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "255.255.255.255", "224.0.0.251", "ff02::fb"])
def test_a_name_stands_for_no_address_that_nobody_has(address):
    with pytest.raises(RequestError, match=r"^request\.ip: .*nobody is reached by it"):
        records.register(Draft(State([NODE])), "web", ip_address(address))


def test_an_address_that_is_released_leaves_every_name():
    lease = Lease(address=A, pool=GLOBAL, holder="pid:1")
    state = State([NODE, lease, Record(name="web", address=A, others=(B,)), Record(name="only", address=A)])
    draft = Draft(state)
    assert not ipam.release(draft, A, "pid:2") and not draft.rows, "another one's"
    assert ipam.release(draft, A, "pid:1")
    assert draft.rows["record", "web"] == Record(name="web", address=B) and draft.rows["record", "only"] is None


def test_a_row_of_an_earlier_overlayd_is_a_name_with_one_address_and_ours_is_one_for_it():
    row = decode(("record", "web"), b'{"name":"web","address":"10.200.1.5"}')
    assert row == Record(name="web", address=A) and encode(row) == b'{"name":"web","address":"10.200.1.5"}'
    both = Record(name="web", address=A, others=(SIX,))
    assert encode(both) == b'{"name":"web","address":"10.200.1.5","others":["fd00::5"]}'
    assert decode(("record", "web"), encode(both)) == both
