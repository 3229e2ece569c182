"""Routes of the form that nearly all of ours have are read in one go, as every other."""

import socket
from ipaddress import IPv4Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.linux import route_messages
from overlayd.linux import rtnetlink as rt
from overlayd.linux.plain_route import parse_route
from overlayd.model.objects import ROUTE_PROTOCOL
from overlayd.proto.netlink import attribute, u32

NETWORKS = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)


def body(network, table, last, *, reverse: bool = False, kind: int = rt.RTN_UNICAST) -> memoryview:
    head = bytes([socket.AF_INET, network.prefixlen, 0, 0, rt.RT_TABLE_MAIN, ROUTE_PROTOCOL, 0, kind]) + bytes(4)
    attributes = [u32(rt.RTA_TABLE, table), attribute(rt.RTA_DST, network.network_address.packed), last]
    return memoryview(head + b"".join(reversed(attributes) if reverse else attributes))


@given(NETWORKS, st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from([rt.RTA_OIF, rt.RTA_PRIORITY]))
def test_in_this_order_or_in_another_it_is_the_same_route(network, table, number, kind) -> None:
    told = [body(network, table, u32(kind, number), reverse=reverse) for reverse in (False, True)]
    plain, general = map(parse_route, told)
    assert plain == route_messages.parse_route(told[0])
    assert plain is not None
    assert plain == general
    assert plain.destination == network
    assert plain.table == table
    assert plain.hops == (((number, 0),) if kind == rt.RTA_OIF else ())
    assert plain.metric == (number if kind == rt.RTA_PRIORITY else 0)


@given(st.binary(min_size=8, max_size=8), st.sampled_from([0, 8, 16]))
def test_what_only_is_as_long_is_read_as_every_other(value, at) -> None:
    network = ip_network("10.9.0.0/24")
    changed = bytearray(body(network, 254, u32(rt.RTA_OIF, 7)))
    changed[12 + at + 2 : 12 + at + 8] = bytes([value[0], 0]) + value[2:6]
    outcomes = []
    for parse in (parse_route, route_messages.parse_route):
        try:
            outcomes.append(parse(memoryview(changed)))
        except (ProtocolError, ValueError, KeyError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
