"""Routes of the host that are not ours outlive everything that we do."""

import json
from collections.abc import Iterator

import pytest
from lab import Lab, Refused, ping
from lab.cluster import Member, Pair

SITE = "192.168.77.0/24"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab)


def foreign_routes(member: Member) -> list[str]:
    """All of both families that do not carry our protocol, but for those that come with our links."""
    shown = [
        route
        for family in ("-4", "-6")
        for route in json.loads(member.node.run(["ip", family, "-j", "-d", "route", "show", "table", "all"]) or "[]")
        if str(route.get("protocol")) != "111"
    ]
    ours = ("zl-", "veth-")
    return sorted(json.dumps(route, sort_keys=True) for route in shown if not route.get("dev", "").startswith(ours))


@pytest.mark.parametrize("metric", ["0", "100", "5000"])
@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_a_route_to_the_same_destination_stays_whatever_its_metric(nodes: Pair, metric: str, mode: str) -> None:
    alpha, beta = nodes.alpha, nodes.beta
    scope = {}
    if mode == "dedicated":
        alpha.request("setup_service_overlay", service="own", mode="dedicated")
        scope = {"scope": {"scope": "service", "service": "own"}}
    alpha.node.run(["ip", "route", "add", SITE, "via", str(beta.node.address), "metric", metric])
    before = foreign_routes(alpha)
    key = "z" * 42 + "0="
    peer = {"public_key": key, "endpoint": "192.0.2.9:5", "persistent_keepalive_secs": 0, **scope}
    with pytest.raises(Refused, match=rf"{SITE}.*via {beta.node.address} dev uplink"):
        alpha.request("add_peer", allowed_ips=SITE, **peer)
    assert key not in alpha.node.run(["wg", "show", "all"]), "a refused request leaves nothing behind"
    alpha.request("add_peer", allowed_ips="10.200.99.0/24", **peer)
    with pytest.raises(Refused, match=SITE):
        alpha.request("add_allowed_ip", pubkey=key, cidr=SITE, **scope)
    alpha.request("remove_peer", pubkey=key, **scope)
    assert foreign_routes(alpha) == before
    alpha.node.run(["ip", "route", "del", SITE])


def test_a_route_that_came_while_the_daemon_was_down_is_told_and_stays(nodes: Pair) -> None:
    alpha, beta = nodes.alpha, nodes.beta
    alpha.request("add_allowed_ip", pubkey=beta.public_key, cidr=SITE)
    alpha.node.kill()
    alpha.node.run(["ip", "route", "del", SITE])
    alpha.node.run(["ip", "route", "add", SITE, "via", str(beta.node.address)])
    before = foreign_routes(alpha)
    alpha.start()
    assert "the host has a route of its own to it" in alpha.node.log_tail()
    ping(nodes.web, nodes.db_address)
    assert foreign_routes(alpha) == before
    alpha.request("remove_allowed_ip", pubkey=beta.public_key, cidr=SITE)
    assert foreign_routes(alpha) == before
    alpha.node.run(["ip", "route", "del", SITE])


def test_nothing_is_lost_after_a_teardown(nodes: Pair) -> None:
    alpha, beta = nodes.alpha, nodes.beta
    for route in ("192.168.0.0/16", "192.168.77.128/25", "10.0.0.0/8"):
        alpha.node.run(["ip", "route", "add", route, "via", str(beta.node.address)])
    before = foreign_routes(alpha)
    alpha.request("add_allowed_ip", pubkey=beta.public_key, cidr=SITE)
    alpha.request("teardown_global_overlay")
    assert foreign_routes(alpha) == before
    alpha.set_up_overlay()
    alpha.node.stop()
    code, said = alpha.node.try_daemon(alpha.node.daemon_argv("--teardown"))
    assert code == 0, said
    assert foreign_routes(alpha) == before
