"""The host keeps its own networks: an overlay that would take them is refused, and what comes later is told."""

import json
from collections.abc import Iterator

import pytest
from lab import Lab, Refused, ping
from lab.cluster import Member, besides_version
from lab.lab import UNDERLAY
from lab.patience import until

GATEWAY = str(UNDERLAY.ip)
PEER = "p" * 42 + "0="


def findings(member: Member) -> list[dict[str, str]]:
    return besides_version(json.loads(member.node.try_overlayctl("doctor", "-o", "json")[1]))


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def lan(request: pytest.FixtureRequest) -> Iterator[tuple[Member, Member]]:
    """Two nodes on one LAN; the first one's daemon runs and has not been asked for anything."""
    with Lab(ipv6=request.param == 6) as lab:
        member, other = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
        member.start()
        yield member, other


def test_an_overlay_that_would_take_the_lan_is_refused(lan: tuple[Member, Member]) -> None:
    member, other = lan
    before = member.node.footprint()
    address = other.node.address
    within, wider = (25, 16) if address.version == 4 else (72, 48)
    for prefix in (within, 24 if address.version == 4 else 64, wider):
        with pytest.raises(Refused, match=r"(?s)would cut this host off.*"):
            member.request(
                "setup_global_overlay",
                deployment="lab",
                instance_id="a",
                cluster_cidr=f"{address}/{prefix}",
                slice_cidr=None,
                wg_port=51820,
            )
    assert member.node.footprint() == before
    ping(member.node, str(address))


@pytest.fixture(scope="module")
def serving() -> Iterator[Member]:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.node.run(["sh", "-c", "ip link add docker0 type bridge; ip addr add 10.200.64.1/18 dev docker0"])
        member.node.run(["ip", "link", "set", "docker0", "up"])
        member.start()
        member.set_up()
        yield member


def test_a_service_leaves_dockers_network_alone(serving: Member) -> None:
    (finding,) = findings(serving)
    assert (finding["code"], finding["severity"]) == ("network-overlap", "error")
    assert finding["object"] == "network 10.200.64.0/18 on docker0"
    until(lambda: "10.200.64.0/18 on docker0 overlaps" in serving.node.log.read_text(), serving.node.log_tail)
    container = serving.lab.container()
    serving.set_up_service("web")
    address = serving.attach(container, "web")
    assert not 64 <= int(address.split(".")[2]) < 128
    with pytest.raises(Refused, match="docker0"):
        serving.request("setup_service_overlay", service="exact", mode="auto", subnet="10.200.70.0/24")
    ping(container, "10.200.64.1")
    serving.detach(container)


@pytest.mark.parametrize("restarted", [False, True], ids=["live", "restarted"])
def test_a_network_that_comes_later_is_told_and_forgotten(serving: Member, restarted: bool) -> None:
    node = serving.node
    serving.request("add_peer", public_key=PEER, endpoint="", allowed_ips="10.200.2.0/24", persistent_keepalive_secs=0)
    node.run(["sh", "-c", "ip link add late type veth peer name late2; ip link set late up; ip link set late2 up"])
    node.run(["ip", "addr", "add", "10.200.2.77/24", "dev", "late"])
    if restarted:
        node.stop()
        serving.start()
    until(lambda: "network 10.200.2.0/24 on late overlaps the cluster CIDR" in node.log.read_text())
    found = {each["object"]: each for each in findings(serving)}
    assert found["network 10.200.2.0/24 on late"]["severity"] == "error"
    assert "allowed IP 10.200.2.0/24 of peer" in found["network 10.200.2.0/24 on late"]["symptom"]
    serving.set_up_overlay()  # an orchestrator that starts again asks for the same
    node.run(["ip", "link", "del", "late"])
    until(
        lambda: (
            "network 10.200.2.0/24 on late overlaps the cluster CIDR 10.200.0.0/16 no longer" in node.log.read_text()
        )
    )
    assert "network 10.200.2.0/24 on late" not in {each["object"] for each in findings(serving)}
    serving.request("remove_peer", pubkey=PEER)
    node.log.write_text("")


def test_a_route_of_a_person_within_the_cluster_is_told(serving: Member) -> None:
    node = serving.node
    node.run(["ip", "route", "add", "10.200.33.0/24", "via", GATEWAY])
    assert f"route 10.200.33.0/24 via {GATEWAY} on uplink" in {each["object"] for each in findings(serving)}
    assert "10.200.33.0/24" in node.run(["ip", "route"])
    node.run(["ip", "route", "del", "10.200.33.0/24"])


def test_an_allowed_ip_does_not_take_the_lan(serving: Member) -> None:
    node = serving.node
    before = node.footprint()["routes"]
    for cidr in (f"{node.address}/32", f"{node.address}/24", f"{node.address}/16", f"{GATEWAY}/32"):
        with pytest.raises(Refused, match="would cut this host off"):
            serving.request("add_peer", public_key=PEER, endpoint="", allowed_ips=cidr, persistent_keepalive_secs=0)
    assert node.footprint()["routes"] == before
