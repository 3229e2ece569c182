"""Upstream servers that behave badly, with a dnsmasq in overlayd's place: what it answers, overlayd does too."""

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from lab import Lab
from lab.cluster import Member
from lab.patience import until
from lab.processes import CommandFailed, environment

FIRST, SECOND = "127.0.0.21", "127.0.0.22"
PORT = 5353  # dnsmasq's
NAMES = [f"n{number}.example.org" for number in range(10)]
Behaviour = Callable[[dns.message.Message, bool, int], list[tuple[float, bytes]]]


def answer(query: dns.message.Message, *, code: int = 0, id: int | None = None, cut: bool = False) -> bytes:
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(code))
    if cut:
        response.flags |= dns.flags.TC
    elif code == 0 and query.question[0].rdtype == 1:
        response.answer.append(dns.rrset.from_text(query.question[0].name, 0, "IN", "A", "192.0.2.80"))
    response.id = query.id if id is None else id
    return response.to_wire()


class Upstream:
    """Its behaviour gives what is sent for a query, each after so many seconds.  It is told whether the query came by a
    connection, and how many came before.
    """

    def __init__(self, member: Member, address: str, behave: Behaviour) -> None:
        self._behave = behave
        self._seen = 0
        self._udp = member.node.open_socket(kind=socket.SOCK_DGRAM)
        self._tcp = member.node.open_socket()
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in (self._udp, self._tcp):
            each.bind((address, 53))
        self._tcp.listen()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()

    def _said(self, data: bytes, stream: bool) -> list[tuple[float, bytes]]:
        query = dns.message.from_wire(data, ignore_trailing=True)
        if str(query.question[0].name).endswith(".test."):
            return []  # a mark
        self._seen += 1
        return self._behave(query, stream, self._seen - 1)

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while data_and_client := self._udp.recvfrom(2000):
                data, client = data_and_client
                for seconds, message in self._said(data, False) if data else []:
                    threading.Timer(seconds, self._send, (message, client)).start()

    def _send(self, message: bytes, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(message, client)

    def _streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                with connection, contextlib.suppress(OSError, struct.error):
                    (size,) = struct.unpack(">H", connection.recv(2, socket.MSG_WAITALL))
                    for _, message in self._said(connection.recv(size, socket.MSG_WAITALL), True):
                        connection.sendall(struct.pack(">H", len(message)) + message)

    def close(self) -> None:
        for each in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)


class Case(NamedTuple):
    first: Behaviour
    second: Behaviour | None = None
    stream: bool = False  # the client comes by a connection


def good(query: dns.message.Message, stream: bool, before: int) -> list[tuple[float, bytes]]:
    return [(0.0, answer(query))]


CASES = {
    "slow": Case(lambda query, stream, before: [(2.0, answer(query))]),
    "dead": Case(lambda query, stream, before: [], good),
    "lossy": Case(lambda query, stream, before: [] if before % 5 == 0 else good(query, stream, before)),
    "truncating": Case(lambda query, stream, before: [(0.0, answer(query, cut=not stream))]),
    "broken domain": Case(lambda query, stream, before: [(0.0, answer(query, code=dns.rcode.SERVFAIL))], good),
    "wrong id": Case(lambda query, stream, before: [(0.0, answer(query, id=query.id ^ 1)), (0.1, answer(query))]),
    "no EDNS": Case(
        lambda query, stream, before: [(0.0, answer(query, code=dns.rcode.FORMERR if query.edns == 0 else 0))]
    ),
    "connections only": Case(lambda query, stream, before: good(query, stream, before) if stream else [], None, True),
}


@pytest.fixture(scope="module")
def member() -> Iterator[Member]:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        member.set_up_service("web")
        yield member


def resolves(member: Member, server: str, name: str, *options: str) -> bool:
    try:
        return "192.0.2.80" in member.node.run(["dig", "+short", "+tries=2", "+time=5", *options, f"@{server}", name])
    except CommandFailed:
        return False


@pytest.mark.parametrize("edns", ["+edns=0", "+noedns"])
@pytest.mark.parametrize("case", CASES)
def test_what_dnsmasq_resolves_overlayd_resolves(member: Member, case: str, edns: str) -> None:
    behaviour = CASES[case]
    servers = [FIRST, SECOND] if behaviour.second else [FIRST]
    gateway = gateway_of(member)
    member.node.resolv_conf.write_text("".join(f"nameserver {server}\n" for server in servers))
    upstreams = [
        Upstream(member, server, behave)
        for server, behave in zip(servers, (behaviour.first, behaviour.second), strict=False)
        if behave is not None
    ]
    options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
    ]
    options += [f"--port={PORT}", f"--listen-address={gateway}", "--bind-interfaces", "--cache-size=0"]
    argv = ["dnsmasq", *options, *(f"--server={server}" for server in servers)]
    dnsmasq = subprocess.Popen(member.node.command(argv), env=environment(member.node.prefix))
    try:
        until(lambda: f":{PORT}" in member.node.run(["ss", "-Hlnu"]))
        way = [edns, "+tcp" if behaviour.stream else "+notcp"]
        for name in NAMES if case == "lossy" else NAMES[:2]:
            theirs = resolves(member, gateway, name, "-p", str(PORT), *way)
            assert resolves(member, gateway, name, *way) or not theirs
            assert resolves(member, gateway, name, *way), "and in any case here"
    finally:
        dnsmasq.kill()
        dnsmasq.wait()
        for upstream in upstreams:
            upstream.close()


def gateway_of(member: Member) -> str:
    """Where the one service's name server is."""
    shown = member.node.run(["ss", "-Hlnu", "sport = :53"]).splitlines()
    return next(
        address for address in (line.split()[3].rsplit(":", 1)[0] for line in shown) if address.startswith("10.")
    )
