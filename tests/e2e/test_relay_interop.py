"""Our TURN client against coturn, coturn's programs against our relay, and what our relay does not let through."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from lab import Lab, Node
from lab.patience import LIMIT
from lab.turn import CREDENTIAL, PORT, USERNAME, TurnSocket, coturn, our_relay

from overlayd.proto.stun_client import Binding
from overlayd.proto.turn import Failed, Received, Refused


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.node("relay")
        lab.node("nodes")
        lab.node("peer")
        yield lab


@pytest.fixture
def relay(lab: Lab) -> Node:
    return lab.nodes[0]


@pytest.fixture
def nodes(lab: Lab) -> Node:
    """Where TURN clients run."""
    return lab.nodes[1]


@pytest.fixture
def peer(lab: Lab) -> Iterator[socket.socket]:
    """A host that does not know of relays."""
    with lab.nodes[2].open_socket(kind=socket.SOCK_DGRAM) as opened:
        opened.bind((str(lab.nodes[2].address), 51820))
        opened.settimeout(LIMIT)
        yield opened


Server = Callable[[Node, Path], AbstractContextManager[object]]


def turn(nodes: Node, relay: Node, credential: str = CREDENTIAL) -> TurnSocket:
    return TurnSocket(nodes.open_socket(kind=socket.SOCK_DGRAM), (str(relay.address), PORT), credential)


def converse(one: TurnSocket, relay: Node, peer: socket.socket) -> None:
    """A hundred datagrams each way."""
    relayed = one.allocate()
    assert relayed[0] == relay.address
    there = (ip_address(peer.getsockname()[0]), 51820)
    for number in range(100):
        one.send(there, b"ping %d" % number)
        one.run(lambda: True)
        if number == 0:
            one.run(lambda: one.client._peers[there].bound)
        data, source = peer.recvfrom(2000)
        assert (data, source) == (b"ping %d" % number, (str(relayed[0]), relayed[1]))
        peer.sendto(b"pong %d" % number, source)
        assert one.received(number + 1)[number] == Received(there, b"pong %d" % number)


@pytest.mark.parametrize("server", [coturn, our_relay])
def test_our_client(lab: Lab, peer: socket.socket, tmp_path: Path, server: Server) -> None:
    relay, nodes, _ = lab.nodes
    with server(relay, tmp_path), turn(nodes, relay) as one, turn(nodes, relay, "wrong") as wrong:
        converse(one, relay, peer)
        one.release()
        wrong.run(lambda: bool(wrong.events))
        [failed] = wrong.events
        assert isinstance(failed, Failed)
        assert failed.failure.code == 401
        # The same port again, as after a restart without a release.
        with TurnSocket(one.socket, one.server) as again:
            first = again.allocate()
            with TurnSocket(again.socket, again.server) as restarted:
                assert restarted.allocate() != first


def test_a_nonce_of_coturn_goes_stale(relay: Node, nodes: Node, peer: socket.socket, tmp_path: Path) -> None:
    with coturn(relay, tmp_path, "--stale-nonce=1"), turn(nodes, relay) as one:
        one.allocate()
        time.sleep(2.1)
        one.send((ip_address(peer.getsockname()[0]), 51820), b"hello")
        one.run(lambda: one.client._peers != {} and all(known.bound for known in one.client._peers.values()))
        one.flush()
        assert peer.recvfrom(2000)[0] == b"hello"


def test_our_stun_client_asks_coturn(relay: Node, nodes: Node, tmp_path: Path) -> None:
    with coturn(relay, tmp_path), nodes.open_socket(kind=socket.SOCK_DGRAM) as opened:
        opened.bind((str(nodes.address), 0))
        opened.settimeout(LIMIT)
        binding = Binding(os.urandom(12), 0.0)
        for datagram in binding.datagrams_to_send(0.0):
            opened.sendto(datagram, (str(relay.address), PORT))
        assert binding.datagram_received(opened.recv(2000))
        assert binding.outcome == (nodes.address, opened.getsockname()[1])


def test_coturns_stun_client_asks_us(relay: Node, nodes: Node, tmp_path: Path) -> None:
    with our_relay(relay, tmp_path):
        said = nodes.run(["turnutils_stunclient", "-p", str(PORT), str(relay.address)])
    assert re.search(rf"UDP reflexive addr: {re.escape(str(nodes.address))}:\d+", said), said


def test_coturns_client_uses_us(lab: Lab, tmp_path: Path) -> None:
    """By channels, by indications, to another client of the relay, with requests too many, and padded: all at once."""
    relay, nodes, peer = lab.nodes
    argv = ["turnutils_uclient", "-u", USERNAME, "-w", CREDENTIAL, "-c", "-z", "5", "-n", "50", "-l", "1200"]
    with our_relay(relay, tmp_path), ExitStack() as stack:

        def start(node: Node, *command: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                node.command(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            return process

        start(peer, "turnutils_peer", "-L", str(peer.address), "-p", "3480")
        clients = {
            option: start(nodes, *argv, *option.split(), "-e", str(peer.address), str(relay.address))
            for option in ("", "-s", "-y", "-G", "-D")
        }
        for option, client in clients.items():
            said = client.communicate(timeout=LIMIT)[0]
            assert client.returncode == 0, (option, said)
            assert "Total lost packets 0 (0.000000%), total send dropped 0" in said, (option, said)
            [sent, received] = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", said)[-1]
            assert int(received) == int(sent) >= 50, (option, said)


def test_coturns_client_without_the_credential_gets_nothing(lab: Lab, tmp_path: Path) -> None:
    relay, nodes, peer = lab.nodes
    with our_relay(relay, tmp_path):
        argv = ["turnutils_uclient", "-u", USERNAME, "-w", "wrong", "-c", "-n", "1", "-e", str(peer.address)]
        command = nodes.command([*argv, str(relay.address)])
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode != 0
    assert "Cannot complete Allocation" in done.stdout + done.stderr


def test_nothing_of_the_relays_host_can_be_reached(lab: Lab, relay: Node, nodes: Node, tmp_path: Path) -> None:
    """The classic hole: a service on the relay's host that trusts its neighbours, and the overlay behind it."""
    relay.run(["ip", "address", "add", "10.77.0.1/24", "dev", "lo"])
    forbidden = [
        "127.0.0.1",
        "10.77.0.1",
        "10.77.0.255",
        "169.254.169.254",
        "224.0.0.1",
        "10.200.0.9",
        "255.255.255.255",
    ]
    with our_relay(relay, tmp_path, refused=["10.200.0.0/16"]), turn(nodes, relay) as one:
        one.allocate()
        for text in forbidden:
            one.events.clear()
            one.send((ip_address(text), 53), b"?")
            one.run(lambda: bool(one.events))
            [refused] = one.events
            assert isinstance(refused, Refused)
            assert refused.failure.code == 403
        one.events.clear()
        with relay.open_socket(kind=socket.SOCK_DGRAM) as service:
            service.bind((str(relay.address), 53))
            service.settimeout(0.3)
            one.send((relay.address, 53), b"?")
            time.sleep(0.1)
            one.run(lambda: True)
            with pytest.raises(TimeoutError):
                service.recv(100)
