"""Addresses of the uplink that the kernel does without, and a way out of the wrong version of IP."""

from collections.abc import Iterator

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.patience import until


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Lab(ipv6=True) as lab:
        yield Pair(lab, CLUSTER6)


def told(member: Member) -> dict[str, str]:
    (found,) = until(
        lambda: [each for each in member.findings() if each["code"] == "uplink-address"], member.node.log_tail
    )
    assert isinstance(found, dict)
    return found


def test_one_that_is_deprecated_and_the_only_one(pair: Pair) -> None:
    alpha, outside = pair.alpha, str(pair.lab.outside_address.ip)
    address = f"{alpha.node.address}/64"
    alpha.node.run(["ip", "address", "change", address, "dev", "uplink", "preferred_lft", "0"])
    with pytest.raises(AssertionError):
        ping(pair.web, outside, 1, ["-W", "1", "-w", "1"])
    found = told(alpha)
    assert found["object"] == f"address {address} of uplink"
    alpha.node.run(["sh", "-ec", found["remedy"].partition(",")[0]])
    ping(pair.web, outside, 1)
    assert alpha.findings() == []


def test_a_deprecated_one_beside_one_that_is_used(pair: Pair) -> None:
    alpha = pair.alpha
    address = f"{alpha.node.address}/64"
    another = f"{pair.lab.underlay.network[90]}/64"
    alpha.node.run(["ip", "address", "add", another, "dev", "uplink"])
    alpha.node.run(["ip", "address", "change", address, "dev", "uplink", "preferred_lft", "0"])
    ping(pair.web, str(pair.lab.outside_address.ip), 1)
    assert alpha.findings() == []


@pytest.mark.parametrize("cluster", [CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def test_a_way_out_of_the_other_version_of_ip_alone(cluster: str) -> None:
    version, other = (6, 4) if cluster == CLUSTER6 else (4, 6)
    with Lab(ipv6=cluster == CLUSTER6) as lab:
        alpha, container = Member(lab, 1, "alpha", cluster), lab.container()
        alpha.start()
        alpha.node.write_sysctl("net/ipv6/conf/uplink/disable_ipv6", "0")
        address, router = ("192.0.2.77/24", "192.0.2.1") if other == 4 else ("2001:db8:7::77/64", "2001:db8:7::1")
        alpha.node.run(["ip", "address", "add", address, "dev", "uplink", *(["nodad"] if other == 6 else [])])
        alpha.node.run(["ip", f"-{other}", "route", "add", "default", "via", router, "dev", "uplink"])
        alpha.set_up()
        alpha.set_up_service("web")
        alpha.attach(container, "web")
        assert not any(each["code"] == "no-way-out" for each in alpha.findings())
        alpha.node.run(["ip", f"-{version}", "route", "del", "default"])
        (found,) = (each for each in alpha.findings() if each["code"] == "no-way-out")
        assert (found["severity"], found["problem"]) == ("warning", f"has no IPv{version} default route any more")
        alpha.node.kill()
        alpha.start()
        assert alpha.findings() == [], "one that never was is no loss"


def test_one_that_another_host_has_too(pair: Pair) -> None:
    alpha = pair.alpha
    alpha.node.write_sysctl("net/ipv6/conf/uplink/accept_dad", "1")
    taken = f"{pair.lab.underlay.ip}/64"
    alpha.node.run(["ip", "address", "add", taken, "dev", "uplink"])
    until(lambda: "dadfailed" in alpha.node.run(["ip", "-6", "address", "show", "dev", "uplink"]))
    assert not any(each["code"] == "uplink-address" for each in alpha.findings()), "it has another one"
    alpha.node.run(["ip", "address", "del", f"{alpha.node.address}/64", "dev", "uplink"])
    alpha.node.run(["sh", "-c", f"ip -6 route replace default via {pair.lab.underlay.ip} dev uplink || true"])
    found = told(alpha)
    assert (found["object"], "dadfailed" in found["problem"]) == (f"address {taken} of uplink", True)
