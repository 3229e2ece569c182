"""Whom a node tells its side of a way, and what that may cost."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from lab import Lab, netns
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.patience import LIMIT, until

from overlayd import keys
from overlayd.proto import inquiry
from overlayd.proto.inquiry import PORT, Answer, Question

QUIET = 1.0  # seconds in which an answer that nobody gives does not come


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, request.param)


def address(member: Member) -> str:
    return str(member.request("status")["node_ip"])


def question(pair: Pair, id: int = 1, **other: Any) -> Question:
    subnet = pair.alpha.subnet_of(pair.web_address)
    return Question(
        id,
        "",
        keys.parse(pair.alpha.public_key),
        keys.parse(pair.beta.public_key),
        ip_address(pair.web_address),
        ip_network(subnet),
        ip_address(pair.db_address),
    )._replace(**other)


class Asking:
    """A socket on alpha, or in a container of it."""

    def __init__(self, pair: Pair, own: str, port: int, namespace: Any = None) -> None:
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        self.socket = netns.open_socket(namespace or pair.alpha.node.namespace, family, socket.SOCK_DGRAM)
        self.socket.bind((own, port))
        self.to = (address(pair.beta), PORT)

    def send(self, datagram: bytes) -> None:
        self.socket.sendto(datagram, self.to)

    def answer(self, seconds: float = QUIET) -> Answer | None:
        self.socket.settimeout(seconds)
        try:
            answer = inquiry.decode(self.socket.recv(4096))
        except TimeoutError:
            return None
        assert isinstance(answer, Answer)
        return answer

    def asked(self, question: Question) -> Answer:
        """The answer, asked for until it comes; a second one to an earlier question may come before."""
        answers: list[Answer] = []

        def comes() -> bool:
            self.send(inquiry.encode(question))
            while (found := self.answer()) is not None and found.id != question.id:
                pass
            answers.extend([found] if found is not None else [])
            return found is not None

        until(comes)
        return answers[0]


def test_a_peer_is_told(pair: Pair) -> None:
    asking = Asking(pair, address(pair.alpha), 700)
    with asking.socket:
        answer = asking.asked(question(pair, 77))
        assert answer.id == 77
        assert [each.state for each in answer.hops] == ["ok"] * len(answer.hops)
        said = " ".join(f"{each.where} {each.what}" for each in answer.hops)
        assert f"eth0 of pid:{pair.db.pid} is up, with {pair.db_address}" in said
        assert "lives: last handshake" in said
        # Of a service that is not there, and with keys that nobody has.
        other = asking.asked(question(pair, 78, scope="nowhere"))
        assert (other.id, other.hops[0].state) == (78, "broken")
        wrong = asking.asked(question(pair, 79, asker=bytes(32)))
        assert "lack AAAA" in wrong.hops[0].what


def test_nobody_else_is_told(pair: Pair) -> None:
    """Not a program of an unprivileged user, not a container, not who asks the node itself; and no nonsense."""
    datagram = inquiry.encode(question(pair))
    own = address(pair.alpha)
    for asking in (Asking(pair, own, 7000), Asking(pair, pair.web_address, 701, pair.web.namespace)):
        with asking.socket:
            asking.send(datagram)
            assert asking.answer() is None
    at_home = Asking(pair, own, 702)
    with at_home.socket:
        at_home.to = (own, PORT)
        at_home.send(datagram)
        assert at_home.answer() is None
        at_home.to = (address(pair.beta), PORT)
        for nonsense in (
            b"",
            b"\xff" * 60,
            b"{}",
            datagram[:-1],
            b" " * 1400,
            inquiry.encode_answer(Answer(id=1, hops=())),
        ):
            at_home.send(nonsense)
        assert at_home.answer() is None
        assert at_home.asked(question(pair)).hops


def test_a_peer_that_asks_too_often_is_passed_over(pair: Pair) -> None:
    asking = Asking(pair, address(pair.alpha), 703)
    with asking.socket:
        asking.asked(question(pair))  # the session lives
        until(lambda: asking.answer() is None)
        for id in range(200):
            asking.send(inquiry.encode(question(pair, id)))
        answers = int(asking.answer(LIMIT) is not None)
        while asking.answer() is not None:
            answers += 1
    assert 1 <= answers < 20


def test_a_question_is_passed_on_once_and_to_nodes_only() -> None:
    with Lab() as lab:
        pair = Pair(lab)
        gamma = Member(lab, 3, "gamma")
        gamma.start()
        gamma.set_up()
        for each in (pair.alpha, pair.beta):
            each.introduce(gamma)
            gamma.introduce(each)
        asking = Asking(pair, address(pair.alpha), 704)
        beta = ip_address(address(pair.beta))
        with asking.socket:
            asking.to = (address(gamma), PORT)
            answer = asking.asked(question(pair, 5, to=beta))
            assert answer.id == 5
            assert any("last handshake" in each.what or "no handshake" in each.what for each in answer.hops)
            until(lambda: asking.answer() is None)
            asking.send(inquiry.encode(question(pair, 6, to=ip_address(pair.db_address))))
            assert asking.answer() is None
        sockets = gamma.node.run(["ss", "-Hlnu", f"sport = :{PORT}"])
        assert sockets.split()[3] == f"{address(gamma)}:{PORT}", "it listens nowhere else"
