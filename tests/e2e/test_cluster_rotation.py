"""Another key for a node of a cluster while its tunnels live, and when its daemon dies at every step of that."""

from collections.abc import Iterator

import pytest
from lab import CommandFailed, Lab, Ping, Refused, ping
from lab.etcd import Etcd
from lab.patience import FACTOR, until
from lab.sites import Site, serve, sites

INTERVAL = 0.02
# Seconds of packets one way: what we send until a peer has moved our allowed IPs, on a busy machine.  A tunnel that
# begins anew by a handshake that nobody answers loses five.
TOLERATED = 4.0 * FACTOR


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Site]]:
    with Lab() as lab, Etcd(lab) as etcd:
        made = sites(lab, etcd, ["alpha", "beta", "gamma"])
        serve(made)
        yield made


def keys_of(site: Site) -> set[str]:
    """The keys of the peers of a node's device."""
    return {line.split()[0] for line in site.device_peers()}


def rotate(site: Site, after: int = 1) -> str:
    """The new key, once it is used."""
    old = site.status["public_key"]
    site.node.overlayctl("rotate-key", "--after", f"{after}s")
    until(lambda: site.status["public_key"] != old, site.node.log_tail)
    return str(site.status["public_key"])


def test_tunnels_live_on_with_another_key(nodes: list[Site]) -> None:
    alpha, beta, gamma = nodes
    old = alpha.status["public_key"]
    pings = [Ping(alpha.container, beta.address, INTERVAL), Ping(gamma.container, alpha.address, INTERVAL)]
    for each in pings:
        each.wait_for(10)
    alpha.node.overlayctl("rotate-key", "--after", "8s")
    # Both keys during the turn: the next one has no allowed IPs yet.
    until(lambda: len(keys_of(beta)) == 3, beta.device_peers)
    assert alpha.status["public_key"] == old
    assert "the next key is told" in alpha.part["rotation"]
    (waiting,) = [line for line in beta.device_peers() if "(none)" in line]
    until(lambda: alpha.status["public_key"] != old, alpha.node.log_tail)
    new = alpha.status["public_key"]
    assert waiting.split()[0] == new
    for site in (beta, gamma):
        until(lambda site=site: keys_of(site) == {new, *_others(site, nodes, alpha)}, site.device_peers)
        assert not [line for line in site.device_peers() if "(none)" in line]
    for each in pings:
        each.wait_for(40)
        lost = each.stop()
        assert len(lost) * INTERVAL <= TOLERATED, lost
    agrees(alpha)


def agrees(site: Site) -> None:
    """Its turn is over, of which the others may hear before it knows."""
    until(lambda: "rotation" not in site.part, lambda: site.part)
    agree = "the store, the journal and the device agree\n"
    until(lambda: site.node.try_overlayctl("cluster", "check")[1] == agree, site.node.log_tail)


def _others(site: Site, nodes: list[Site], turned: Site) -> set[str]:
    return {each.status["public_key"] for each in nodes if each not in (site, turned)}


def test_keys_that_follow_each_other_at_once(nodes: list[Site]) -> None:
    alpha, beta, _ = nodes
    for _ in range(10):
        rotate(alpha, after=0)
    until(lambda: alpha.status["public_key"] in keys_of(beta), beta.device_peers)
    until(lambda: len(keys_of(beta)) == 2, beta.device_peers)
    until(lambda: _reaches(alpha, beta), "no tunnel")


def test_a_key_that_others_know_from_elsewhere_is_not_rotated_by_chance(nodes: list[Site]) -> None:
    beta = nodes[1]
    beta.request("mint_edge_peer", name="laptop", ttl_secs=3600, allow=["web"])
    with pytest.raises(Refused, match="this node's key is known to edge peer laptop"):
        beta.request("rotate_key")
    beta.request("revoke_edge_peer", name="laptop")


def test_a_key_waits_while_etcd_is_away(nodes: list[Site]) -> None:
    alpha, beta, _ = nodes
    old = beta.status["public_key"]
    running = Ping(beta.container, alpha.address)
    beta.etcd.kill()
    beta.state("disconnected")
    beta.node.overlayctl("rotate-key", "--after", "0s")
    until(lambda: "not told yet" in beta.part.get("rotation", ""), lambda: beta.part)
    assert beta.status["public_key"] == old
    running.wait_for(20)
    assert running.stop() == []
    beta.etcd.start()
    until(lambda: beta.status["public_key"] != old, beta.node.log_tail)
    until(lambda: beta.status["public_key"] in keys_of(alpha), alpha.device_peers)
    until(lambda: _reaches(beta, alpha), "no tunnel")


@pytest.mark.parametrize("point", ["key-prepared", "key-told", "key-turned", "configure"])
def test_a_daemon_that_dies_during_a_rotation_ends_it_at_the_next_start(
    nodes: list[Site], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, beta, gamma = nodes
    gamma.node.stop()
    name = "wireguard:configure" if point == "configure" else f"cluster:{point}"
    with monkeypatch.context() as patch:
        patch.setenv("OVERLAYD_FAULT", f"{name}:1")
        gamma.start()
    gamma.state("connected")
    old = gamma.status["public_key"]
    try:
        gamma.node.overlayctl("rotate-key", "--after", "0s")
    except CommandFailed:
        assert point == "key-prepared"
    gamma.node.wait()
    ping(beta.container, alpha.address, count=2)
    gamma.start()
    if point in ("key-prepared", "key-told"):  # it waits anew, until all have surely heard of it
        assert gamma.status["public_key"] == old
        gamma.node.overlayctl("rotate-key", "--after", "0s")
    until(lambda: gamma.status["public_key"] != old, gamma.node.log_tail)
    for site in (alpha, beta):
        until(lambda site=site: gamma.status["public_key"] in keys_of(site), site.device_peers)
        until(lambda site=site: len(keys_of(site)) == 2, site.device_peers)
        until(lambda site=site: _reaches(site, gamma), "no tunnel")
    agrees(gamma)


def _reaches(one: Site, other: Site) -> bool:
    try:
        ping(one.container, other.address, count=2, seconds=5)
    except AssertionError:
        return False
    return True
