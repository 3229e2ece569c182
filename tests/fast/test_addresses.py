"""The short reading of addresses and CIDRs beside the standard library's: never another value, and only seldom none."""

from ipaddress import ip_address, ip_network
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlayd._fast import addresses

ODD = st.text("0123456789abcdefx.:/ %+-_\u0663\0", max_size=50)
ADDRESSES = st.one_of(st.ip_addresses().map(str), ODD)
CIDRS = st.one_of(
    st.ip_addresses().map(str),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(-1, 1300)),
    st.builds(
        lambda ip, prefix: str(ip_network((ip, prefix % (ip.max_prefixlen + 1)), strict=False)),
        st.ip_addresses(),
        st.integers(0, 128),
    ),
    st.builds("{}/{}".format, st.ip_addresses(v=4), st.ip_addresses(v=4)),
    ODD,
)


def by_library(read, text):
    try:
        return read(text)
    except ValueError:
        return None


@given(ADDRESSES)
@example("1.2.3.4\0")
@example("01.2.3.4")
@example("fe80::1%eth0")
@example("\udc80")
@example("0000:0000:0000:0000:0000:ffff:255.255.255.255")
@example("0000:0000:0000:0000:0000:0000:255.255.255.2555")
def test_an_address_is_the_librarys_or_none(text):
    assert addresses.address(text) in (by_library(ip_address, text), None)


@given(CIDRS)
@example("10.0.0.0/-1")
@example("10.0.0.0/+8")
@example("10.0.0.0/")
@example("10.0.0.1/8")
@example("10.0.0.0/255.0.0.0")
@example("fd00::/129")
@example("0.0.0.0/99999999999")
def test_a_cidr_is_the_librarys_or_none(text):
    assert addresses.network(text) in (by_library(ip_network, text), None)


@given(st.ip_addresses(), st.integers(0, 128))
def test_what_is_usual_is_read(address, prefix):
    cidr = ip_network((address, prefix % (address.max_prefixlen + 1)), strict=False)
    for text in (str, lambda value: str(value).encode()):
        assert addresses.address(text(address)) == address
        assert addresses.network(text(address)) == ip_network(address)
        assert addresses.network(text(cidr)) == cidr


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError):
        addresses.address(7)
    with pytest.raises(TypeError):
        addresses.network(None)


NETWORKS = st.builds(
    lambda ip, prefix: ip_network((ip, prefix % (ip.max_prefixlen + 1)), strict=False),
    st.ip_addresses(),
    st.integers(0, 128),
)


@given(NETWORKS, NETWORKS)
def test_a_network_is_in_all_like_the_librarys(one, two):
    made, other = addresses.network(str(one)), addresses.network(str(two))
    assert isinstance(made, type(one))
    for left, right in ((made, one), (one, made), (made, made), (made.network_address, one.network_address)):
        assert left == right and hash(left) == hash(right) and str(left) == str(right)
    for left in (made, one):
        for right in (other, two):
            assert (left == right) is (one == two)
            assert (left.network_address == right.network_address) is (one.network_address == two.network_address)
            assert left.version != right.version or (left < right) is (one < two)
            assert left.version != right.version or left.subnet_of(right) is one.subnet_of(two)
    assert made != str(one) and made != one.network_address and made.network_address != int(one.network_address)
    assert vars(one).keys() - vars(made).keys() <= {"hosts"}
    for name in (
        "network_address",
        "netmask",
        "hostmask",
        "broadcast_address",
        "prefixlen",
        "num_addresses",
        "version",
    ):
        assert getattr(made, name) == getattr(one, name)
    assert made.network_address.packed == one.network_address.packed
    assert made.supernet() == one.supernet()
    assert list(islice(made.hosts(), 4)) == list(islice(one.hosts(), 4))


@given(NETWORKS, NETWORKS, st.integers(0, 128))
def test_one_is_inside_another_where_the_library_calls_it_a_subnet(one, two, prefix):
    around = one.supernet(new_prefix=min(prefix, one.prefixlen))
    for inner in (one, two, addresses.network(str(one))):
        for outer in (one, two, around, addresses.network(str(around))):
            expected = inner.version == outer.version and inner.subnet_of(outer)
            assert addresses.is_inside(inner, outer) is expected


@given(NETWORKS)
def test_its_place_and_back(network):
    packed, length = network.network_address.packed, network.prefixlen
    for each in (network, addresses.network(str(network))):
        assert addresses.place(each) == (packed, length)
    assert addresses.of_bytes(packed, length) == network
    assert type(addresses.of_bytes(packed, length)) is type(addresses.network(str(network)))


@pytest.mark.parametrize(
    ("data", "prefix"), [(b"", 0), (bytes(5), 0), (bytes(4), 33), (bytes(16), -1), (b"\n\0\0\1", 8), (b"\n\1\0\0", 12)]
)
def test_bytes_that_are_no_network_are_refused(data, prefix):
    with pytest.raises(ValueError, match="no network"):
        addresses.of_bytes(data, prefix)


def test_bytes_and_nothing_else_are_a_place():
    with pytest.raises(TypeError):
        addresses.of_bytes("10.0", 8)
