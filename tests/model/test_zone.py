"""Names from the state: after any changes the table answers as one made from the end's state alone."""

from ipaddress import ip_address, ip_network

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from oracles_nametable import Oracle, wire

from overlayd._fast.dnsquery import wire_name
from overlayd._fast.nametable import MAX_POINTERS
from overlayd.model import zone as zone_module
from overlayd.model.objects import GLOBAL, Netns
from overlayd.model.rows import Attachment, Isolation, Membership, Node, Overlay, Record, Service
from overlayd.model.state import State
from overlayd.model.subnets import first_usable
from overlayd.model.zone import DEFAULT, Zone, reverse_zones, served_address

ZONE = "overlay.local"
NODE = Node(private_key=bytes(32))
LABELS = ["web", "db", "overlay", "local"]
NAMES = st.lists(st.sampled_from(LABELS), min_size=1, max_size=3).map(".".join)
SETS = st.lists(
    st.sampled_from([ip_address(text) for text in ("10.200.1.5", "10.200.1.6", "192.0.2.1", "fd00::5")]),
    min_size=1,
    max_size=3,
    unique=True,
)


def record(name, *addresses):
    return Record(name=name, address=addresses[0], others=addresses[1:])


def overlay(cluster="10.200.0.0/16", **keys):
    return Overlay(deployment="d", instance_id="i", interface="zl-g", cluster=ip_network(cluster), wg_port=1, **keys)


def attachment(handle, domain):
    return Attachment(
        handle=handle, service="s", address=ip_address("10.200.1.9"), netns=Netns(1, 1, 1), dns_domain=domain
    )


CHANGES = st.lists(
    st.one_of(
        st.builds(lambda name, addresses: (record(name, *addresses), True), NAMES, SETS),
        st.builds(lambda name: (Record(name=name, address=ip_address("0.0.0.0")), False), NAMES),
        st.builds(
            lambda handle, domain, there: (attachment(handle, domain), there),
            st.sampled_from(["pid:1", "pid:2"]),
            st.sampled_from(["", ZONE, "web", "db.local"]),
            st.booleans(),
        ),
        st.builds(
            lambda cluster: (overlay(cluster), True), st.sampled_from(["10.200.0.0/16", "10.200.0.0/23", "fd00::/61"])
        ),
        st.builds(
            lambda zone, there: (Membership(cluster="c", node="n", instance="i", zone=zone), there),
            st.sampled_from(["", ZONE, "web", "db.local"]),
            st.booleans(),
        ),
    ),
    max_size=12,
)
ASKED = [
    dns.message.make_query(name, type, id=1).to_wire()
    for name in (
        *LABELS,
        *(f"{a}.{b}" for a in LABELS for b in LABELS),
        *(f"{a}.{ZONE}" for a in LABELS),
        *(
            ip_address(text).reverse_pointer
            for text in ("10.200.1.5", "10.200.1.6", "10.200.2.1", "192.0.2.1", "fd00::5")
        ),
        *("1.200.10.in-addr.arpa", "200.10.in-addr.arpa", "10.in-addr.arpa"),
    )
    for type in ("A", "AAAA", "PTR")
]


def name_of(text):
    return tuple(label.encode() for label in text.split("."))


def expected(state, query, zone=ZONE):
    """Slow and obvious, from the rows of the end alone."""
    oracle = Oracle()
    records = {name: record.addresses for name, record in state.table(Record).items()}
    whole = {name if "." in name else f"{name}.{zone}": addresses for name, addresses in records.items()}
    oracle.addresses = {
        name_of(name): tuple(address.packed for address in addresses) for name, addresses in (whole | records).items()
    }
    for name, address in [(name, address) for name, addresses in records.items() for address in addresses]:
        target = wire(name_of(name if "." in name else f"{name}.{zone}"))
        reverse = name_of(address.reverse_pointer)
        _, targets = oracle.pointers.get(reverse, (b"", ()))
        oracle.pointers[reverse] = address.packed, (*targets, target)
    domains = {row.dns_domain for row in state.table(Attachment).values()} - {""}
    overlay = state.get(Overlay)
    reverse_names = reverse_zones(overlay.cluster) if overlay else []
    oracle.zones = {name_of(each) for each in (zone, *domains, *reverse_names)}
    return oracle.respond(query, True)


def unordered(response):
    """The order of an address's names is that of registration, which the rows do not tell, and addresses take turns."""
    return response if response is None else (response[:12], sorted(response[12:]))


@settings(max_examples=40, deadline=None)
@given(CHANGES, st.sampled_from(["", ZONE]))
def test_following_changes_comes_to_what_the_rows_say(changes, given):
    """With the zone that the node was given, or else that of its cluster."""
    state = State([NODE])
    zone = Zone(state, given)
    for row, there in changes:
        change = {row.id: row if there else None}
        state.apply(change)
        zone.follow(change)
    member = state.get(Membership)
    name = given or (member.zone if member is not None else "") or DEFAULT
    assert zone.name == Zone(state, given).name == name
    for query in ASKED:
        response = unordered(expected(state, query, name))
        assert unordered(zone.table.respond(query, True)) == response
        assert unordered(Zone(state, given).table.respond(query, True)) == response


def answers(state, name, type="A", zone=ZONE):
    """The records' data, NXDOMAIN, or "forward"."""
    response = Zone(state, zone).table.respond(dns.message.make_query(name, type).to_wire(), True)
    if response is None:
        return "forward"
    message = dns.message.from_wire(response)
    return [str(data) for rrset in message.answer for data in rrset] if message.rcode() == 0 else "NXDOMAIN"


def test_one_label_is_a_name_of_the_zone_too():
    web, db = ip_address("10.200.1.5"), ip_address("10.200.1.6")
    state = State([NODE, Record(name="web", address=web), Record(name="db.example.com", address=db)])
    assert answers(state, "web") == answers(state, "web.overlay.local") == ["10.200.1.5"]
    assert answers(state, web.reverse_pointer, "PTR") == ["web.overlay.local."]
    assert answers(state, "db.example.com") == ["10.200.1.6"]
    assert answers(state, db.reverse_pointer, "PTR") == ["db.example.com."]
    assert answers(state, "db") == answers(state, "db.overlay.local") == "NXDOMAIN"
    assert answers(state, "example.com") == "forward"


NETWORK = "blue"


def test_one_more_name_costs_the_same_however_many_its_address_has(monkeypatch):
    """As that of a load balancer: what the answer has no room for is not written each time."""
    state = State([Node(private_key=bytes(32)), overlay()])
    written = []
    monkeypatch.setattr(zone_module, "wire_name", lambda name: (written.append(name), wire_name(name))[1])
    zone = Zone(state)
    for number in range(3 * MAX_POINTERS):
        written.clear()
        row = record(f"n{number:03}", ip_address("10.200.0.9"))
        state.apply({row.id: row})
        zone.follow({row.id: row})
        assert len(written) <= MAX_POINTERS + 3
    assert len(written) >= MAX_POINTERS
    state.apply({row.id: None})
    zone.follow({row.id: None})


def test_names_of_members_are_for_members_and_the_node():
    member = attachment("pid:1", "")
    blue = replace(member, isolation_network=NETWORK, global_address=ip_address("10.200.1.10"))
    other = replace(attachment("pid:2", ""), address=ip_address("10.200.1.11"))
    state = State([NODE, overlay(), Service(name="s", subnet=ip_network("10.200.1.8/29"), bridge="b"), other])
    zone = Zone(state, ZONE)

    def change(*rows):
        changed = {row.id: row for row in rows}
        state.apply(changed)
        zone.follow(changed)

    def knows(name, type="A"):
        """Of the member's first and second address, the other container, the gateway, the node, and a stranger."""
        query = dns.message.make_query(name, type).to_wire()
        clients = ["10.200.1.9", "10.200.1.10", "10.200.1.11", "10.200.1.9", "10.200.0.1", "10.200.9.9"]
        clients[3] = str(first_usable(state.table(Service)["s"].subnet))
        said = [zone.table.respond(query, True, ip_address(client).packed) for client in clients]
        return [response is not None and bool(dns.message.from_wire(response).answer) for response in said]

    change(blue, Isolation(name=NETWORK, number=3), record("web", blue.address), record("global", blue.global_address))
    change(record("plain", other.address))
    for fresh in (False, True):
        zone = Zone(state, ZONE) if fresh else zone
        for name, type in (("web", "A"), ("global", "A"), (blue.address.reverse_pointer, "PTR")):
            assert knows(name, type) == [True, True, False, True, True, False]
        assert knows("plain") == [True] * 6
    change(member)
    assert knows("web") == [True] * 6


def test_what_was_registered_whole_comes_first():
    state = State(
        [
            NODE,
            Record(name="web", address=ip_address("10.200.1.5")),
            Record(name="web.overlay.local", address=ip_address("fd00::1")),
        ]
    )
    assert answers(state, "web") == ["10.200.1.5"]
    assert answers(state, "web.overlay.local") == []
    assert answers(state, "web.overlay.local", "AAAA") == ["fd00::1"]


def test_a_name_that_does_not_fit_the_zone_stays_as_it_is():
    state = State([NODE, Record(name="w" * 63, address=ip_address("10.200.1.5"))])
    zone = ".".join(["z" * 62] * 3)
    assert answers(state, "w" * 63, zone=zone) == ["10.200.1.5"]
    assert answers(state, "5.1.200.10.in-addr.arpa", "PTR", zone=zone) == [f"{'w' * 63}.{zone}."]
    assert answers(state, "5.1.200.10.in-addr.arpa", "PTR", zone=f"y.{zone}") == [f"{'w' * 63}."]


def test_the_domain_of_an_attachment_is_a_zone_while_there_is_one():
    state = State([NODE, attachment("pid:1", "cluster.example"), attachment("pid:2", "cluster.example")])
    zone = Zone(state, ZONE)
    query = dns.message.make_query("nobody.cluster.example", "A").to_wire()
    for handle, forwarded in (("pid:1", False), ("pid:2", True)):
        change = {("attachment", handle): None}
        state.apply(change)
        zone.follow(change)
        assert (zone.table.respond(query, False) is None) == forwarded


def test_names_that_nobody_outside_has_are_not_looked_for_there():
    state = State([NODE, record("known.onion", ip_address("10.200.1.5")), attachment("pid:1", "invalid")])
    assert answers(state, "www.invalid", "A") == answers(state, "x.onion", "AAAA") == "NXDOMAIN"
    assert answers(state, "known.onion", "A") == ["10.200.1.5"]
    assert answers(state, "_dns.resolver.arpa", "SVCB") == [] and answers(state, "x.resolver.arpa", "A") == "NXDOMAIN"
    zone = Zone(state, ZONE)
    state.apply({("attachment", "pid:1"): None})
    zone.follow({("attachment", "pid:1"): None})
    assert zone.table.respond(dns.message.make_query("www.invalid", "A").to_wire(), False) is not None


def test_reverse_names_of_the_cluster_stay_here():
    state = State([NODE, overlay("10.200.0.0/15")])
    assert answers(state, "9.9.201.10.in-addr.arpa", "PTR") == "NXDOMAIN"
    assert answers(state, "9.9.202.10.in-addr.arpa", "PTR") == "forward"
    assert answers(state, "10.in-addr.arpa", "PTR") == "forward"
    assert answers(state, "1.0.0.127.in-addr.arpa", "PTR") == ["localhost."]
    assert answers(state, ip_address("::1").reverse_pointer, "PTR") == ["localhost."]
    assert answers(state, "2.0.0.127.in-addr.arpa", "PTR") == "forward"


@pytest.mark.parametrize(
    ("network", "zones"),
    [
        ("10.200.0.0/16", ["200.10.in-addr.arpa"]),
        ("10.200.0.0/15", ["200.10.in-addr.arpa", "201.10.in-addr.arpa"]),
        ("10.0.0.4/31", ["4.0.0.10.in-addr.arpa", "5.0.0.10.in-addr.arpa"]),
        ("0.0.0.0/0", ["in-addr.arpa"]),
        ("fd00::/8", ["d.f.ip6.arpa"]),
        ("fd00::/7", ["c.f.ip6.arpa", "d.f.ip6.arpa"]),
        ("::/0", ["ip6.arpa"]),
    ],
)
def test_reverse_zones(network, zones):
    assert list(reverse_zones(ip_network(network, strict=False))) == zones


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_an_address_is_below_a_reverse_zone_if_and_only_if_it_is_in_the_network(base, prefix, other):
    network = ip_network((base, prefix), strict=False)
    name = ip_address(other).reverse_pointer
    assert any(name == zone or name.endswith(f".{zone}") for zone in reverse_zones(network)) == (
        ip_address(other) in network
    )


def test_where_it_is_served():
    service = Service(name="web", subnet=ip_network("10.200.74.16/28"), bridge="b")
    gateway, node = ip_address("10.200.74.17"), ip_address("10.200.1.1")
    slice = ip_network("10.200.1.0/24")
    up = State([NODE, overlay(slice=slice), service])
    down = State([NODE, overlay(slice=slice, up=False), service])
    assert served_address(State([NODE]), GLOBAL, devices=True) is None
    assert served_address(up, GLOBAL, devices=True) == node
    assert served_address(up, GLOBAL, devices=False) is None
    assert served_address(down, GLOBAL, devices=True) is None
    assert served_address(down, "web", devices=False) == gateway
    assert served_address(up, "db", devices=True) is None
