"""A router that maps a port for who asks: a node behind it is reached from outside, whatever kind of NAT that is."""

import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lab import Lab, Ping, netns
from lab.cluster import PORT, Member, join_by_candidates
from lab.nat_kinds import PUBLIC, behave, mapping_ports
from lab.natbox import INSIDE, NatBox
from lab.patience import until
from lab.processes import run

ROOT = Path(__file__).resolve().parents[2]
MINIUPNPD = shutil.which("miniupnpd") or shutil.which("miniupnpd", path=str(ROOT / "build/clients/miniupnpd/usr/sbin"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@contextmanager
def speaking_nat_pmp(box: NatBox, refusal: int = 0) -> Iterator[None]:
    """A router that knows NAT-PMP and no PCP, as older ones do, and sends the port that it maps to where it says."""
    run(["ip", "netns", "exec", box.netns, "nft", "insert rule ip filter input iifname inside udp dport 5351 accept"])
    with ExitStack() as stack:
        answering = stack.enter_context(
            netns.open_socket(Path("/run/netns") / box.netns, socket.AF_INET, socket.SOCK_DGRAM)
        )
        answering.bind((str(INSIDE.ip), 5351))
        answering.settimeout(0.1)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    request, client = answering.recvfrom(1100)
                except TimeoutError:
                    continue
                version, opcode = request[:2]
                if version:
                    answer = struct.pack(">BBHI", 0, opcode | 0x80, 1, 1)
                elif opcode == 0:
                    answer = struct.pack(">BBHI", 0, 0x80, refusal, 1) + box.address.packed
                else:
                    port, _, lifetime = struct.unpack_from(">HHI", request, 4)
                    rule = f"add rule ip nat prerouting iifname uplink udp dport {port} dnat to {client[0]}"
                    run(["ip", "netns", "exec", box.netns, "nft", rule])
                    answer = struct.pack(">BBHIHHI", 0, 0x81, refusal, 1, port, port, lifetime)
                answering.sendto(answer, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def is_reached(lab: Lab, alpha: Member, *way: str) -> None:
    """alpha, behind a symmetric NAT, from beta, which is behind one as well and knows alpha's candidates.

    way: a route that its NAT needs.
    """
    box = lab.nat("right", symmetric=True)
    behave(box, "symmetric", PORT)
    if way:
        run(["ip", "-n", box.netns, "route", "add", *way])
    beta = Member(lab, 2, "beta", behind=box)
    beta.start()
    beta.set_up({"stun_servers": ["none"]})
    containers, addresses = join_by_candidates(lab, alpha, beta)
    passing = Ping(containers[1], addresses[0])
    try:
        passing.wait_for(5)
    finally:
        passing.stop()


def start(lab: Lab) -> tuple[Member, NatBox]:
    box = lab.nat("left", symmetric=True)
    behave(box, "symmetric", PORT)
    alpha = Member(lab, 1, "alpha", behind=box)
    alpha.start()
    return alpha, box


def asked(alpha: Member) -> None:
    alpha.set_up({"stun_servers": ["none"], "port_mapping": True})


def is_mapped(alpha: Member, address: str) -> None:
    (seen,) = until(lambda: alpha.candidates("server-reflexive"))
    assert seen["address"] == f"{address}:{PORT}"
    assert alpha.findings() == []


@pytest.mark.skipif(MINIUPNPD is None, reason="miniupnpd is not here, and its package would serve the host's network")
@pytest.mark.parametrize("upnp", [False, True], ids=["PCP", "UPnP"])
def test_a_port_of_miniupnpd(lab: Lab, upnp: bool) -> None:
    alpha, box = start(lab)
    assert MINIUPNPD is not None
    with mapping_ports(box, MINIUPNPD, lab.directory, upnp=upnp):
        asked(alpha)
        is_mapped(alpha, PUBLIC)
        is_reached(lab, alpha, PUBLIC, "via", str(box.address))


def test_a_port_by_nat_pmp(lab: Lab) -> None:
    alpha, box = start(lab)
    with speaking_nat_pmp(box):
        asked(alpha)
        is_mapped(alpha, str(box.address))
        is_reached(lab, alpha)
    assert "the router sends" in alpha.node.log.read_text()


def test_why_there_is_none_is_told_and_nobody_is_asked_who_was_not_to_be(lab: Lab) -> None:
    alpha, box = start(lab)
    with speaking_nat_pmp(box, refusal=2):
        with lab.capture(alpha.node) as silent:
            alpha.set_up({"stun_servers": ["none"]})
            until(alpha.candidates)
        assert not [packet for packet in silent.packets() if packet.destination == INSIDE.ip]
        asked(alpha)
        (finding,) = until(alpha.findings)
        assert (finding["code"], finding["severity"]) == ("port-unmapped", "warning")
        assert f"the router at {INSIDE.ip}: " in finding["problem"] and "does not allow that" in finding["problem"]
        until(lambda: "no port mapping" in alpha.node.log.read_text(), alpha.node.log_tail)
        assert alpha.candidates("server-reflexive") == []
    alpha.set_up({"stun_servers": ["none"]})
    assert alpha.findings() == []
