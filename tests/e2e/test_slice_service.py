"""A service that has the node's slice: its containers have addresses that the whole cluster reaches by itself."""

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from lab import Lab, Ping, Refused, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.patience import until


@pytest.fixture(params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, request.param)


def give_slice(member: Member, name: str = "pods") -> dict[str, Any]:
    return member.request("setup_service_overlay", service=name, mode="auto", subnet=member.slice)


def enter(member: Member, handle: dict[str, object], **keys: Any) -> dict[str, Any]:
    keys = {"service": "pods", "join_global": False} | keys
    return member.request("attach_container", handle=handle, **keys)


def carried(member: Member, link: str) -> set[str]:
    (shown,) = json.loads(member.node.run(["ip", "-j", "address", "show", "dev", link]))
    return {f"{each['local']}/{each['prefixlen']}" for each in shown["addr_info"] if each["scope"] == "global"}


def test_nothing_is_announced_and_everybody_is_reached(pair: Pair) -> None:
    alpha, beta, lab = pair.alpha, pair.beta, pair.lab
    before = alpha.node.footprint()
    made = give_slice(alpha)
    give_slice(beta)
    assert made["subnet"] == alpha.slice
    node, slice = alpha.request("status")["node_ip"], ip_network(alpha.slice)
    assert made["gateway"] == node
    assert carried(alpha, made["name"]) == {f"{node}/{slice.prefixlen}"}
    assert carried(alpha, alpha.request("status")["interface"]) == {f"{node}/{slice.max_prefixlen}"}
    pods = [lab.container() for _ in range(3)]
    first = enter(alpha, pods[0].interface())
    second = enter(alpha, pods[1].handle, join_global=True)
    far = enter(beta, pods[2].interface(), default_route=False, join_global=True)
    assert ip_address(first["ip"]) in slice
    told = alpha.node.overlayctl("ip").splitlines()
    assert any(line.startswith("pods") and line.endswith("those of (node)") for line in told), told
    assert told[-1].startswith("3 of ") and told[-1].endswith(" addresses are held, in 2 pools"), told
    ping(pods[0], far["ip"])
    ping(pods[2], first["ip"])
    ping(pods[1], far["ip"])
    ping(pods[0], second["ip"])
    ping(pods[0], pair.db_address)
    ping(pair.web, first["ip"])
    ping(alpha.node, far["ip"])
    ping(beta.node, first["ip"])
    assert not alpha.findings()
    for member, pod in ((alpha, pods[0]), (alpha, pods[1]), (beta, pods[2])):
        member.request("detach_container", handle=pod.interface() if pod is not pods[1] else pod.handle)
    alpha.request("teardown_service_overlay", service="pods")
    assert alpha.node.footprint() == before
    ping(pair.web, pair.db_address)


def test_who_has_an_address_of_the_slice_without_being_on_its_bridge(pair: Pair) -> None:
    alpha, lab = pair.alpha, pair.lab
    give_slice(alpha)
    pod, joined = lab.container(), lab.container()
    enter(alpha, pod.interface())
    alpha.attach(joined, "web", join_global=True)
    (shown,) = json.loads(joined.run(["ip", "-j", "address", "show", "dev", "eth1"]))
    second = next(each["local"] for each in shown["addr_info"] if each["scope"] == "global")
    host = alpha.request(
        "attach_container", handle={"platform": "host_shared", "id": "h"}, service="web", join_global=False
    )["ip"]
    ping(pod, second)
    ping(joined, enter(alpha, lab.container().interface())["ip"])
    ping(pod, host)
    ping(pair.db, second)
    assert not alpha.findings()


def test_its_bridge_comes_back_and_a_restart_changes_nothing(pair: Pair) -> None:
    alpha, lab = pair.alpha, pair.lab
    made = give_slice(alpha)
    pod = lab.container()
    answer = enter(alpha, pod.interface())
    echoes = Ping(pair.db, answer["ip"])
    echoes.wait_for(3)
    before = alpha.node.footprint()
    alpha.node.kill()
    alpha.start()
    assert alpha.node.footprint() == before
    echoes.wait_for(3)
    assert echoes.stop() == []
    alpha.node.kill()
    alpha.node.run(["ip", "link", "delete", made["name"]])
    alpha.start()
    ping(pair.db, answer["ip"])
    device, version = alpha.request("status")["interface"], ["-6"] if ":" in alpha.cluster else []
    alpha.node.run(["ip", *version, "route", "flush", "proto", "111", "dev", device])
    until(lambda: f"{alpha.cluster} dev {device}" in alpha.node.run(["ip", *version, "route"]), "the way stays away")
    ping(pair.db, answer["ip"])
    assert give_slice(alpha) == made


def test_the_node_goes_on_while_a_service_takes_the_slice(pair: Pair) -> None:
    """The device gives its prefix away, and traffic between the nodes does not notice."""
    echoes = Ping(pair.db, pair.web_address)
    nodes = Ping(pair.beta.node, pair.alpha.request("status")["node_ip"])
    try:
        for each in (echoes, nodes):
            each.wait_for(5)
        give_slice(pair.alpha)
        for each in (echoes, nodes):
            each.wait_for(10)
        pair.alpha.request("teardown_service_overlay", service="pods")
        for each in (echoes, nodes):
            each.wait_for(10)
    finally:
        lost = [echoes.stop(), nodes.stop()]
    assert lost == [[], []]


def test_what_is_refused(pair: Pair) -> None:
    alpha = pair.alpha
    give_slice(alpha)
    with pytest.raises(Refused, match="which service pods has already: tear that one down first"):
        give_slice(alpha, "more")
    with pytest.raises(Refused, match="which has the slice"):
        other = "10.200.99.0/24" if "." in alpha.slice else "fd00:200:0:99::/64"
        alpha.request(
            "setup_global_overlay",
            deployment="lab",
            instance_id="alpha",
            cluster_cidr=alpha.cluster,
            slice_cidr=other,
            wg_port=51820,
        )
    alpha.request("teardown_service_overlay", service="pods")
    with pytest.raises(Refused, match="a dedicated service, whose device is its own, cannot have it"):
        alpha.request("setup_service_overlay", service="pods", mode="dedicated", subnet=alpha.slice)
