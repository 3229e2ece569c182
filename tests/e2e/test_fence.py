"""What is for the overlay goes through it or nowhere, whatever becomes of the device, the daemon and the rules."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address

import pytest
from lab import Container, Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, PORT, Member, Pair
from lab.patience import LIMIT, until
from lab.traffic import Ping

BEHIND = {4: "192.168.77.1", 6: "fd77::1"}  # a network behind a peer of a dedicated service


def _kill_wireguard(pair: Pair) -> None:
    for pid in pair.alpha.node.wireguard_pids():
        os.kill(pid, signal.SIGKILL)


def _run(command: str) -> Callable[[Pair], None]:
    def act(pair: Pair) -> None:
        device = pair.alpha.request("status")["interface"]
        pair.alpha.node.run(["sh", "-c", command.format(device=device, cluster=pair.alpha.cluster)])

    return act


def _end_daemon_and_device(pair: Pair) -> None:
    pair.alpha.node.kill()
    _kill_wireguard(pair)


def _end_all_and_flush(pair: Pair) -> None:
    _end_daemon_and_device(pair)
    pair.alpha.node.run(["nft", "flush", "ruleset"])


def _tear_down(pair: Pair) -> None:
    pair.alpha.request("teardown_global_overlay")


def _shut_down(pair: Pair) -> None:
    pair.alpha.request("shutdown")
    pair.alpha.node.wait()


MISHAPS: dict[str, Callable[[Pair], None]] = {
    "wireguard-go killed": _kill_wireguard,
    "device deleted": _run("ip link delete {device}"),
    "device down": _run("ip link set {device} down"),
    "route deleted": _run("ip route delete {cluster} dev {device}"),
    "address flushed": _run("ip address flush dev {device}"),
    "rules flushed and device deleted": _run("nft flush ruleset; ip link delete {device}"),
    "torn down": _tear_down,
    "daemon and wireguard-go killed": _end_daemon_and_device,
    "all of them gone": _end_all_and_flush,
    "shut down": _shut_down,
}
NO_DAEMON = ("daemon and wireguard-go killed", "all of them gone", "shut down")


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def fenced(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A pair; alpha's container is also in a dedicated service, with a network of the other site behind its peer."""
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        pair = Pair(lab, request.param)
        yield pair


@pytest.fixture(scope="module")
def vpn(fenced: Pair) -> tuple[Container, str]:
    """A container of a dedicated service, and an address outside of the cluster behind its peer."""
    behind = BEHIND[ip_address(fenced.web_address).version]
    fenced.beta.node.run(["ip", "address", "add", behind, "dev", "lo"])
    answers = [
        member.request("setup_service_overlay", service="vpn", mode="dedicated")
        for member in (fenced.alpha, fenced.beta)
    ]
    container = fenced.lab.container()
    fenced.alpha.attach(container, "vpn")
    for member, other, answer, allowed in (
        (fenced.alpha, fenced.beta, answers[1], behind),
        (fenced.beta, fenced.alpha, answers[0], answers[0]["subnet"]),
    ):
        member.request(
            "add_peer",
            public_key=answer["wg_public_key"],
            endpoint=other.node.endpoint(answer["wg_port"]),
            allowed_ips=allowed,
            persistent_keepalive_secs=0,
            scope={"scope": "service", "service": "vpn"},
        )
    return container, behind


def _restore(pair: Pair) -> None:
    pair.alpha.set_up_overlay()

    def is_reached() -> bool:
        with suppress(AssertionError):
            ping(pair.web, pair.db_address, 1, seconds=5)
            return True
        return False

    until(is_reached, pair.alpha.node.log_tail)


@pytest.mark.parametrize("mishap", MISHAPS)
def test_nothing_of_the_overlay_leaves_in_plain_text(fenced: Pair, vpn: tuple[Container, str], mishap: str) -> None:
    container, behind = vpn
    _restore(fenced)
    ping(container, behind, 1)
    tunnels = (PORT, PORT + 1)
    with fenced.lab.capture(fenced.alpha.node) as capture:
        senders = [Ping(fenced.web, fenced.db_address, 0.01), Ping(container, behind, 0.01)]
        for each in senders:
            each.wait_for(5)
        MISHAPS[mishap](fenced)
        time.sleep(0.7)
        for each in senders:
            each.stop()
    if mishap in NO_DAEMON:
        fenced.alpha.start()
    inside = {fenced.web_address, fenced.db_address, behind}
    plain = [each for each in capture.packets() if not any(each.is_wireguard(port) for port in tunnels)]
    leaked = [each for each in plain if {str(each.source), str(each.destination)} & inside]
    assert not leaked, f"{len(leaked)} packets, the first {leaked[0]}"


def test_a_dedicated_device_that_goes_takes_no_traffic_to_the_plain_uplink(
    fenced: Pair, vpn: tuple[Container, str]
) -> None:
    container, behind = vpn
    _restore(fenced)
    device = fenced.alpha.request("status")["dedicated_services"][0]["interface"]
    ping(container, behind, 1)
    with fenced.lab.capture(fenced.alpha.node) as capture:
        sender = Ping(container, behind, 0.005)
        sender.wait_for(5)
        fenced.alpha.node.run(["ip", "link", "delete", device])
        time.sleep(0.5)
        sender.stop()
    assert not [each for each in capture.packets() if behind in (str(each.source), str(each.destination))]


def _fences(member: Member) -> list[str]:
    family = "-6" if ip_address(member.cluster.split("/")[0]).version == 6 else "-4"
    text = member.node.run(["ip", family, "route", "show", "type", "unreachable", "proto", "111"])
    return sorted(line.split()[1] for line in text.splitlines())


def test_the_fence_stands_as_long_as_anybody_may_send_and_is_put_back(fenced: Pair, vpn: tuple[Container, str]) -> None:
    _restore(fenced)
    outside = "192.168.88.0/24" if ip_address(vpn[1]).version == 4 else "fd88::/64"
    fenced.alpha.request("add_allowed_ip", pubkey=fenced.beta.public_key, cidr=outside)
    standing = sorted([fenced.alpha.cluster, vpn[1], outside])
    assert _fences(fenced.alpha) == standing
    for family in ("-4", "-6"):
        fenced.alpha.node.run(["ip", family, "route", "flush", "type", "unreachable", "proto", "111"])
    until(lambda: _fences(fenced.alpha) == standing, fenced.alpha.node.log_tail)
    fenced.alpha.request("teardown_global_overlay")
    assert _fences(fenced.alpha) == standing
    with pytest.raises(OSError, match=r"No route to host|unreachable"):
        family = socket.AF_INET6 if ":" in fenced.db_address else socket.AF_INET
        with fenced.web.open_socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(LIMIT)
            client.connect((fenced.db_address, 9))  # the sender is told, and does not wait


def test_the_fence_goes_with_the_last_service_after_the_overlay(lab: Lab) -> None:
    member = Member(lab, 7, "lone")
    member.start()
    member.set_up()
    member.set_up_service("web")
    assert _fences(member) == [CLUSTER]
    member.request("teardown_global_overlay")
    assert _fences(member) == [CLUSTER]
    member.request("teardown_service_overlay", service="web")
    assert _fences(member) == []
