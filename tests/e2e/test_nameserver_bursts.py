"""Many queries of one socket at once: their answers leave as one message, which some device on the way takes apart."""

import os
import signal
import socket
from collections.abc import Iterator

import dns.message
import pytest
from lab import Lab
from lab.cluster import CLUSTER, CLUSTER6, Pair
from lab.patience import LIMIT
from lab.processes import stop

NAMES = ("web", "web", "a-longer-name-than-that")
QUERIES = 60  # less than a batch


@pytest.fixture(params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, request.param)


@pytest.mark.parametrize("where", ["behind the bridge", "behind the tunnel"])
def test_each_query_of_a_burst_is_answered(pair: Pair, where: str) -> None:
    """A and AAAA in turn, so that answers of several sizes lie beside each other."""
    container = pair.web if where == "behind the bridge" else pair.db
    family, address = (socket.AF_INET6, "AAAA") if ":" in pair.web_address else (socket.AF_INET, "A")
    gateway = pair.alpha.gateway(pair.web_address)
    for name in set(NAMES):
        pair.alpha.request("register_dns", name=name, ip=pair.web_address)
    assert pair.alpha.node.daemon is not None
    daemon = pair.alpha.node.daemon.pid
    questions = [(NAMES[id % len(NAMES)], ("A", "AAAA")[id % 2]) for id in range(QUERIES)]
    with container.open_socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(LIMIT)
        client.connect((gateway, 53))
        one_answered(client)
        stop(daemon)
        try:
            for id, (name, type) in enumerate(questions):
                client.send(dns.message.make_query(name, type, id=id).to_wire())
        finally:
            os.kill(daemon, signal.SIGCONT)
        answers = {answer.id: answer for answer in (dns.message.from_wire(client.recv(2000)) for _ in questions)}
    for id, (_, type) in enumerate(questions):
        expected = [pair.web_address] if type == address else []
        assert [str(record) for rrset in answers[id].answer for record in rrset] == expected
        assert answers[id].question == dns.message.make_query(*questions[id]).question


def one_answered(client: socket.socket) -> None:
    """The way is open: addresses are resolved, and the tunnel has shaken hands."""
    client.send(dns.message.make_query("web", "A", id=QUERIES).to_wire())
    client.recv(2000)
