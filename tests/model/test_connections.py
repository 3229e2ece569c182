"""Connections judged as the rules judge the packets that begin them."""

from ipaddress import ip_address, ip_network

import pytest

from overlayd.model import set_members
from overlayd.model.connections import Ends, Rules

# a1 and a2 are in one network, b in another, p in none; e1 is an edge peer that may reach p and the outside, e2 may
# reach nothing; r is a remote address, no the node's own, ou is outside, and up is the node's address there.
NAMES = {
    4: {
        "a1": "10.200.1.2",
        "a2": "10.200.1.3",
        "b": "10.200.2.2",
        "p": "10.200.2.3",
        "r": "10.200.77.7",
        "e1": "10.200.99.1",
        "e2": "10.200.99.2",
        "no": "10.200.0.1",
        "ou": "192.0.2.9",
        "up": "192.0.2.1",
    }
}
NAMES[6] = {
    name: text.replace("10.200.", "fd00:200::").replace("192.0.", "2001:db8::").replace(".", ":")
    for name, text in NAMES[4].items()
}
CLUSTERS = {4: "10.200.0.0/16", 6: "fd00:200::/64"}


def rules(version: int) -> Rules:
    address = {name: ip_address(text) for name, text in NAMES[version].items()}
    granted = [ip_network(address["p"]), ip_network(address["ou"])]
    return Rules(
        [
            *set_members.cluster(ip_network(CLUSTERS[version])),
            *set_members.node(address["no"]),
            *set_members.member(address["a1"], 1, "veth-1-s"),
            *set_members.member(address["a2"], 1),
            *set_members.member(address["b"], 2),
            *set_members.port("veth-1-s", bytes(6), [address["a1"]]),
            *set_members.edge(address["e1"], granted),
            *set_members.edge(address["e2"], []),
        ]
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("connection", "kept"),
    [
        ("a1 a2", True),
        ("a1 b", False),
        ("a1 p", False),
        ("a1 r", False),
        ("a1 no", True),
        ("p a1", False),
        ("r a1", False),
        ("ou a1", False),
        ("no a1", True),
        ("p r", True),
        ("r p", True),
        ("ou p", True),
        ("e1 p", True),
        ("e1 no", False),
        ("e2 p", False),
        ("ou up", True),
        # what leaves the overlay has to be translated
        ("p ou", False),
        ("p ou as up", True),
        ("a1 ou as up", True),
        ("e1 ou as up", True),
        ("e2 ou as up", False),
        # a published port leads to who answers
        ("ou up by p", True),
        ("ou up by a1", False),
    ],
)
def test_what_may_go_on(version: int, connection: str, kept: bool) -> None:
    source, to, *more = connection.split()
    translated = dict(zip(more[::2], more[1::2], strict=True))
    names = (source, to, translated.get("by", to), translated.get("as", source))
    ends = Ends(*(ip_address(NAMES[version][name]).packed for name in names))
    assert rules(version).break_off(ends) is not kept


def test_without_a_cluster_nothing_is_judged() -> None:
    assert Rules([]).clusters == []
