"""`overlayctl doctor` says what is wrong and what to do, changes nothing, and is content with a healthy node."""

import json
import os
import subprocess
from collections.abc import Iterator

import pytest
from lab import Lab
from lab.cluster import Member, besides_version
from lab.patience import until

FINDINGS = 4
KEY = "C" * 42 + "A="


def doctor(member: Member, *options: str) -> tuple[int, str, str]:
    """The exit code, what was printed, and what was complained about."""
    return member.node.try_overlayctl("doctor", *options)


@pytest.fixture(scope="module")
def examined() -> Iterator[Member]:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        assert doctor(member)[0] == 0, "a node that was asked for nothing"
        member.set_up()
        member.set_up_service("web")
        member.request("setup_service_overlay", service="own", mode="dedicated")
        for service in ("web", "own"):
            member.attach(lab.container(), service, join_global=True, isolation_network="n")
        yield member


@pytest.fixture
def healthy(examined: Member) -> Member:
    code, said, complaint = doctor(examined)
    assert (code, said.splitlines()[0], complaint) == (0, "all is as it should be", "")
    return examined


def test_a_peer_that_somebody_removed_from_the_device(healthy: Member) -> None:
    node = healthy.node
    healthy.request(
        "add_peer", public_key=KEY, endpoint="192.0.2.1:1", allowed_ips="10.200.9.0/24", persistent_keepalive_secs=0
    )
    interface = healthy.request("status")["interface"]

    def told() -> str:
        code, said, _ = doctor(healthy)
        return said if code == FINDINGS else ""

    # Again and again: the daemon looks every few seconds, and adds it again.
    again = f"while :; do wg set {interface} peer {KEY} remove; sleep 0.05; done"
    somebody = subprocess.Popen(node.command(["sh", "-c", again]))
    try:
        said = until(told)
    finally:
        somebody.kill()
        somebody.wait()
    assert f"peer {KEY[:8]} of {interface} is missing" in said
    node.stop()
    healthy.start()
    assert doctor(healthy)[0] == 0, "the remedy is one"
    healthy.request("remove_peer", pubkey=KEY)


def test_a_name_that_does_not_resolve(healthy: Member) -> None:
    healthy.request(
        "add_peer", public_key=KEY, endpoint="no.such.invalid:1", allowed_ips="", persistent_keepalive_secs=0
    )
    code, said, _ = doctor(healthy)
    assert code == FINDINGS
    assert "no.such.invalid:1 does not resolve" in said
    healthy.request("remove_peer", pubkey=KEY)


def test_a_firewall_in_the_way_as_json(healthy: Member) -> None:
    for command in ("add table ip walls", "add chain ip walls f { type filter hook forward priority 0; policy drop; }"):
        healthy.node.run(["nft", command])
    code, said, _ = doctor(healthy, "-o", "json")
    assert code == FINDINGS
    (finding,) = besides_version(json.loads(said))
    assert (finding["code"], finding["severity"]) == ("forward-blocked", "error")
    assert "table ip walls chain f" in finding["object"]
    assert "nft insert rule ip walls f" in finding["remedy"]
    healthy.node.run(["nft", "delete table ip walls"])


def test_what_the_sentinel_cannot_put_back(healthy: Member) -> None:
    box = healthy.lab.container()
    healthy.attach(box, "web")
    for command in ("link set eth0 down", "link set eth0 name mine", "link add eth0 type bridge"):
        box.run(["ip", *command.split()])
    healthy.node.run(["ip", "link", "del", f"veth-{box.pid}-s"])
    until(lambda: "cannot be put right" in healthy.node.log.read_text())
    code, said, _ = doctor(healthy)
    assert code == FINDINGS
    assert f"veth-{box.pid}-s is missing; clear the way: putting it right failed, create veth" in said
    assert "already has an interface eth0" in said
    healthy.detach(box)


def test_our_key_as_the_orchestrator_has_it(healthy: Member) -> None:
    healthy.request("set_local_wg_pubkey", pubkey=KEY)
    assert f"the orchestrator takes our public key for {KEY}" in doctor(healthy)[1]
    healthy.request("set_local_wg_pubkey", pubkey=healthy.request("status")["public_key"])


def test_without_a_daemon(healthy: Member) -> None:
    healthy.node.stop()
    code, said, complaint = doctor(healthy)
    assert (code, said) == (os.EX_UNAVAILABLE, "")
    assert "is overlayd running on this node" in complaint
    healthy.start()
