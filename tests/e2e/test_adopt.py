"""The state of a node is lost, and `overlayd --adopt` makes it anew of what the host still carries."""

import shutil
from collections.abc import Iterator

import pytest
from lab import Lab, Ping, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def lose_state(member: Member) -> None:
    member.node.kill()
    shutil.rmtree(member.node.data_dir)


def adopt(member: Member) -> list[str]:
    """Start with --adopt; what that says could not be kept."""
    mark = len(member.node.log.read_text()) if member.node.log.exists() else 0
    member.start("--adopt")
    said = member.node.log.read_text()[mark:].splitlines()
    assert sum("daemon.start: adopted " in line for line in said) == 1, said
    return [line.partition("not adopted: ")[2] for line in said if "not adopted: " in line]


@pytest.mark.parametrize("cluster", [CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def test_containers_live_through_the_loss_of_the_state(lab: Lab, cluster: str) -> None:
    pair = Pair(lab, cluster)
    alpha = pair.alpha
    both = lab.container()
    alone = alpha.attach(both, "web", join_global=True)
    before, status = alpha.node.footprint(), alpha.request("status")
    echoes = Ping(pair.db, pair.web_address)
    try:
        echoes.wait_for(10)
        lose_state(alpha)
        code, said = alpha.node.try_daemon(alpha.node.daemon_argv())
        assert code and "overlayd --adopt" in said
        lost = adopt(alpha)
        assert alpha.node.footprint() == before
        assert not [line for line in lost if "pid:" in line or "slice" in line or "key" in line], lost
        after = alpha.request("status")
        for key in ("public_key", "interface", "node_ip", "overlay_cidr", "slice_cidr", "service_count", "peer_count"):
            assert after[key] == status[key], key
        # What an orchestrator repeats changes nothing.
        alpha.set_up()
        assert alpha.set_up_service("web") == pair.bridges[0]
        assert alpha.attach(pair.web, "web") == pair.web_address
        assert alpha.attach(both, "web", join_global=True) == alone
        alpha.introduce(pair.beta)
        assert alpha.node.footprint() == before
        third = lab.container()
        assert alpha.attach(third, "web") not in (alone, pair.web_address)
        ping(third, pair.db_address)
        echoes.wait_for(10)
    finally:
        assert echoes.stop() == []


def test_an_overlay_that_an_older_version_made(lab: Lab) -> None:
    """Its device does not say who set it up: until that is said again the slice is a guess, and no address moves."""
    pair = Pair(lab)
    alpha, status = pair.alpha, pair.alpha.request("status")
    lose_state(alpha)
    alpha.node.run(["ip", "link", "set", status["interface"], "alias", "overlayd device "])
    lost = adopt(alpha)
    assert sum("slice is 10.200.1.0/24" in line for line in lost) == 1, lost
    assert alpha.request("status")["node_ip"] == status["node_ip"]
    ping(pair.web, pair.db_address)
    alpha.set_up()
    assert alpha.attach(pair.web, "web") == pair.web_address
    ping(pair.web, pair.db_address)


def test_a_service_of_its_own_device_is_adopted_with_its_peers(lab: Lab) -> None:
    alpha = Member(lab, 1, "alpha")
    alpha.start()
    alpha.set_up({"enabled": False})
    service = alpha.request("setup_service_overlay", service="own", mode="dedicated")
    scope = {"scope": "service", "service": "own"}
    peer = {"public_key": "A" * 43 + "=", "endpoint": "192.0.2.7:51820", "persistent_keepalive_secs": 25}
    alpha.request("add_peer", **peer, allowed_ips="10.200.9.0/24", scope=scope)
    container = lab.container()
    address = alpha.attach(container, "own")
    before = alpha.node.footprint()
    lose_state(alpha)
    adopt(alpha)
    assert alpha.node.footprint() == before
    assert alpha.request("setup_service_overlay", service="own", mode="dedicated") == service
    (found,) = alpha.request("status")["dedicated_services"]
    assert (found["public_key"], found["peer_count"]) == (service["wg_public_key"], 1)
    assert alpha.attach(container, "own") == address


def test_a_container_that_died_meanwhile_gives_its_address_back(lab: Lab) -> None:
    alpha = Member(lab, 1, "alpha")
    alpha.start()
    alpha.set_up({"enabled": False})
    alpha.set_up_service("web")
    dead, living = lab.container(), lab.container()
    alpha.attach(dead, "web")
    kept = alpha.attach(living, "web", isolation_network="red")
    lose_state(alpha)
    dead.kill()
    lost = adopt(alpha)
    assert sum("isolation network" in line for line in lost) == 1
    assert alpha.attach(living, "web", isolation_network="red") == kept
    third = lab.container()
    assert alpha.attach(third, "web") != kept
    ping(living, alpha.gateway(kept))
    assert f"veth-{dead.pid}-s" not in alpha.node.run(["ip", "link"])


def test_without_its_device_a_node_has_a_new_key_and_the_same_containers(lab: Lab) -> None:
    alpha = Member(lab, 1, "alpha")
    alpha.start("--wireguard", "userspace")
    status = alpha.set_up({"enabled": False})
    alpha.set_up_service("web")
    container = lab.container()
    address = alpha.attach(container, "web", join_global=True)
    lose_state(alpha)
    alpha.node.run(["ip", "link", "delete", status["interface"]])
    lost = adopt(alpha)
    assert sum("key" in line for line in lost) == 1
    ping(container, alpha.gateway(address))
    assert alpha.set_up({"enabled": False})["public_key"] != status["public_key"]
    assert alpha.set_up_service("web")
    assert alpha.attach(container, "web", join_global=True) == address


def test_a_state_that_knows_its_overlay_is_not_made_anew(lab: Lab) -> None:
    alpha = Member(lab, 1, "alpha")
    alpha.start()
    alpha.set_up({"enabled": False})
    before = alpha.node.footprint()
    alpha.node.stop()
    alpha.start("--adopt")
    assert "nothing to adopt: the journal knows" in alpha.node.log.read_text()
    assert alpha.node.footprint() == before
