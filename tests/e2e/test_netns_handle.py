"""Containers that are attached by their network namespace, one interface at a time."""

import json
from typing import Any

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair


def links(place: Any) -> dict[str, dict[str, Any]]:
    """The links of a node or container by name, with their addresses."""
    return {each["ifname"]: each for each in json.loads(place.run(["ip", "-j", "-d", "address"]))}


def attach(member: Member, handle: dict[str, object], service: str = "web", **keys: Any) -> dict[str, Any]:
    return member.request("attach_container", **{"handle": handle, "service": service, "join_global": False, **keys})


def held(member: Member) -> dict[str, str]:
    """Who holds which address."""
    return {each["ip"]: each["holder"] for each in member.request("list", what="addresses").get("addresses", [])}


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def both(request: pytest.FixtureRequest) -> Any:
    with Lab() as lab:
        yield Pair(lab, request.param)


def test_what_is_answered_is_what_is_there(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    container = lab.container()
    answer = attach(alpha, container.interface("net0", "pod-1"))
    told = answer["interface"]
    inside, outside = links(container)["net0"], links(alpha.node)[told["host_name"]]
    assert told == {"name": "net0", "mac": inside["address"], "mtu": inside["mtu"], "host_name": told["host_name"]}
    assert outside["ifalias"] == 'overlayd netns ["","netns:pod-1/net0","net0"]'
    assert outside["ifname"].startswith("zl-c")
    assert len(outside["ifname"]) == 14
    address = next(each for each in inside["addr_info"] if each["local"] == answer["ip"])
    assert address["prefixlen"] == answer["prefix_len"]
    ping(container, both.db_address)
    ping(both.db, answer["ip"])
    assert attach(alpha, container.interface("net0", "pod-1")) == answer, "again is the same"
    (row,) = [each for each in alpha.request("list", what="containers")["containers"] if "pod-1" in each["handle"]]
    assert (row["handle"], row["link"], row["mac"]) == ("netns:pod-1/net0", told["host_name"], told["mac"])
    assert not alpha.findings()
    alpha.request("detach_container", handle=container.interface("net0", "pod-1"))
    assert "net0" not in links(container)
    assert answer["ip"] not in held(alpha)
    alpha.request("detach_container", handle=container.interface("net0", "pod-1"))
