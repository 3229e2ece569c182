"""Interfaces of containers that somebody moved into another network namespace, or gave another MAC."""

import json
from collections.abc import Iterator

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.frames import Refused
from lab.patience import until


@pytest.fixture(params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        yield Pair(lab, request.param)


def test_an_interface_that_somebody_moved_away(pair: Pair) -> None:
    alpha, lab = pair.alpha, pair.lab
    elsewhere, several = lab.container(), lab.container()
    alpha.set_up_service("app")
    alpha.request("attach_container", handle=several.interface("eth0"), service="web", join_global=False)
    alpha.request("attach_container", handle=several.interface("net1"), service="app", join_global=False)
    guest = {"platform": "guest_managed", "id": "vm1"}
    alpha.request("attach_container", handle=guest, service="web", join_global=False)
    assert moved(alpha) == [], "healthy ones are not told"
    for container, name in ((pair.web, "eth0"), (several, "net1")):
        container.run(["ip", "link", "set", name, "netns", str(elsewhere.pid)])
    assert moved(alpha) == [f"netns:c{several.pid}/net1", f"pid:{pair.web.pid}"]
    alpha.detach(pair.web)
    pair.web_address = alpha.attach(pair.web, "web")
    assert moved(alpha) == [f"netns:c{several.pid}/net1"]
    alpha.node.kill()
    alpha.start()
    assert moved(alpha) == [], "as the remedy says"
    assert "net1" in several.run(["ip", "link"])
    ping(pair.web, pair.db_address, 1)


def test_an_interface_that_has_another_mac(pair: Pair) -> None:
    """As CNI's `tuning` gives one: its port takes nothing from it."""
    alpha, web = pair.alpha, pair.web
    (before,) = json.loads(web.run(["ip", "-j", "link", "show", "eth0"]))
    web.run(["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"])
    (found,) = alpha.findings()
    assert (found["code"], found["object"]) == ("interface-mac", f"pid:{web.pid}")
    assert found["problem"].startswith("has the MAC 02:00:00:00:00:99 at the other end of ")
    assert found["problem"].endswith(f", whose port takes {before['address']} alone")
    remedy = found["remedy"].partition("(")[2].partition(")")[0].replace("INTERFACE", "eth0")
    web.run(remedy.split())
    assert alpha.findings() == []
    ping(web, pair.db_address, 1)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("into", ["another", "its own"])
def test_a_host_end_that_somebody_moved_away(pair: Pair, into: str, running: bool) -> None:
    """What is inside is ours, by its MAC, and leads nowhere: it is made anew."""
    alpha, elsewhere = pair.alpha, pair.lab.container() if into == "another" else pair.web
    if not running:
        alpha.node.stop()
    alpha.node.run(["ip", "link", "set", f"veth-{pair.web.pid}-s", "netns", str(elsewhere.pid)])
    if not running:
        alpha.start()
    until(lambda: f"veth-{pair.web.pid}-s" in alpha.node.run(["ip", "link"]), alpha.node.log_tail)
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))
    ping(pair.web, pair.db_address, 1)
    ping(pair.db, pair.web_address, 1)
    assert f"veth-{pair.web.pid}-s" not in elsewhere.run(["ip", "link"])


def test_a_host_end_that_is_used_elsewhere_is_let_be(pair: Pair) -> None:
    """As that of another overlayd in another network namespace, which was given a copy of the data directory."""
    alpha, elsewhere = pair.alpha, pair.lab.container()
    name = f"veth-{pair.web.pid}-s"
    alpha.node.stop()
    alpha.node.run(["ip", "link", "set", name, "netns", str(elsewhere.pid)])
    elsewhere.run(["ip", "link", "set", name, "up"])
    alpha.start()
    until(lambda: any(name in each["object"] for each in alpha.findings()), lambda: str(alpha.findings()))
    assert f"the namespace of process {pair.web.pid} already has an interface eth0" in alpha.node.log_tail()
    assert name in elsewhere.run(["ip", "link"])


def test_an_interface_in_the_way_that_is_not_ours_is_let_be(pair: Pair) -> None:
    alpha, lab = pair.alpha, pair.lab
    elsewhere, foreign = lab.container(), lab.container()
    foreign.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "out", "netns", str(elsewhere.pid)])
    with pytest.raises(Refused, match="already has an interface eth0"):
        alpha.attach(foreign, "web")
    assert "eth0" in foreign.run(["ip", "link"])


def moved(member: Member) -> list[str]:
    found = member.findings()
    assert all(each["code"] == "interface-moved" for each in found)
    return sorted(each["object"] for each in found)
