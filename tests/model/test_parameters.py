"""What is said of an uplink's parameters."""

from dataclasses import replace

import pytest

from overlayd.model.parameters import Uplink, uplink_findings

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
