"""What is said of an uplink's parameters."""

import pytest
from msgspec.structs import replace

from overlayd.model.parameters import Carries, Uplink, narrow_findings, uplink_findings

FINE = Uplink("eth0", forwards=True, strict=False, alone=True, ipv6=True, has_ipv6=True)


@pytest.mark.parametrize(
    ("changed", "cluster", "underlay", "codes"),
    [
        ({}, 4, {4, 6}, []),
        ({"forwards": False}, 4, {4}, [("uplink-not-forwarding", "error")]),
        ({"forwards": False}, 6, {4, 6}, []),
        ({"strict": True}, 4, {4}, [("uplink-strict", "hint")]),
        ({"strict": True, "alone": False}, 4, {4}, [("uplink-strict", "warning")]),
        ({"ipv6": False}, 6, {4}, []),
        ({"ipv6": False}, 4, {6}, [("ipv6-disabled", "error")]),
        ({"ipv6": False, "has_ipv6": False}, 4, {4, 6}, [("ipv6-disabled", "error")]),
    ],
)
def test_findings(changed, cluster, underlay, codes):
    found = uplink_findings(replace(FINE, **changed), cluster=cluster, underlay=frozenset(underlay))
    assert [(each.code, each.severity) for each in found] == codes
    assert all("eth0" in each.line or not changed["has_ipv6"] for each in found)


@pytest.mark.parametrize(
    ("ways", "inside", "told"),
    [
        ([Carries("eth0", 1500, "the outside", 4)], 1440, []),
        ([Carries("eth0", 1500, "192.0.2.1", 4), Carries("eth0", 1500, "2001:db8::1", 6)], 1420, []),
        ([Carries("eth0", 1500, "2001:db8::1", 6)], 1440, ["link eth0 carries packets of 1500 bytes"]),
        ([Carries("eth0", 1300, "the outside", 4), Carries("eth0", 1300, "192.0.2.1", 4)], 1280, ["up to 1340"]),
        ([Carries("eth0", 1500, "a", 4), Carries("eth1", 1400, "b", 4)], 1440, ["to b by link eth1 carries"]),
        ([Carries("eth0", 0, "192.0.2.1", 4)], 1440, []),
    ],
)
def test_ways_that_are_too_narrow(ways, inside, told):
    found = narrow_findings(ways, inside)
    assert len(found) == len(told)
    assert all(words in each.line for words, each in zip(told, found, strict=True))
