"""Upstream servers that behave badly.

Owns: what each of them does with a query, and its sockets.  Must not know: who asks.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zone

from lab.cluster import Member
from lab.processes import run

ADDRESS = "192.0.2.80"  # of every name
Behaviour = Callable[[dns.message.Message, bool, int], list[tuple[float, bytes]]]
Fill = Callable[[dns.message.Message, dns.message.Message], None]


def _one_address(response: dns.message.Message, query: dns.message.Message) -> None:
    if query.question[0].rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(query.question[0].name, 0, "IN", "A", ADDRESS))


class SignedZone:
    """A zone of these names, signed as DNSSEC has it.  anchor: the file with its key, for who validates."""

    def __init__(self, directory: Path, origin: str, names: list[str]) -> None:
        keys = run(["dnssec-keygen", "-q", "-K", directory, "-a", "ECDSAP256SHA256", "-f", "KSK", origin]).strip()
        self.anchor = directory / f"{keys}.key"
        unsigned, signed = directory / "zone", directory / "zone.signed"
        records = [f"{origin}. 60 IN SOA ns.{origin}. admin.{origin}. 1 2 3 4 60", f"{origin}. 60 IN NS ns.{origin}."]
        records += [f"{name}. 60 IN A {ADDRESS}" for name in (f"ns.{origin}", *names)]
        unsigned.write_text("\n".join([*records, self.anchor.read_text()]))
        run(["dnssec-signzone", "-z", "-K", directory, "-d", directory, "-o", origin, "-f", signed, unsigned])
        self._origin = dns.name.from_text(origin)
        self._zone = dns.zone.from_file(str(signed), self._origin, relativize=False)

    def fill(self, response: dns.message.Message, query: dns.message.Message) -> None:
        """Put into a response what the zone says."""
        name, type = query.question[0].name, query.question[0].rdtype
        if not name.is_subdomain(self._origin):
            response.set_rcode(dns.rcode.NXDOMAIN)
            return
        wanted = bool(query.ednsflags & dns.flags.DO)
        if self._put(response.answer, name, type, wanted):
            return
        self._put(response.authority, self._origin, dns.rdatatype.SOA, wanted)
        if wanted:
            self._put(response.authority, name, dns.rdatatype.NSEC, wanted)

    def _put(
        self, section: list[dns.rrset.RRset], name: dns.name.Name, type: dns.rdatatype.RdataType, signed: bool
    ) -> bool:
        found = self._zone.get_rrset(name, type)
        if found is None:
            return False
        section.append(found)
        if signed and (signature := self._zone.get_rrset(name, dns.rdatatype.RRSIG, type)) is not None:
            section.append(signature)
        return True


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
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, struct.error):
            while True:
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


def cases(fill: Fill = _one_address) -> dict[str, Case]:
    """The behaviours, of servers that know what `fill` puts into a response."""

    def answer(query: dns.message.Message, *, code: int = 0, id: int | None = None, cut: bool = False) -> bytes:
        response = dns.message.make_response(query, recursion_available=True)
        response.set_rcode(dns.rcode.Rcode(code))
        if cut:
            response.flags |= dns.flags.TC
        elif code == 0:
            fill(response, query)
        response.id = query.id if id is None else id
        return response.to_wire()

    def good(query: dns.message.Message, stream: bool, before: int) -> list[tuple[float, bytes]]:
        return [(0.0, answer(query))]

    return {
        "slow": Case(lambda query, stream, before: [(2.0, answer(query))]),
        "dead": Case(lambda query, stream, before: [], good),
        "lossy": Case(lambda query, stream, before: [] if before % 5 == 0 else good(query, stream, before)),
        "truncating": Case(lambda query, stream, before: [(0.0, answer(query, cut=not stream))]),
        "broken domain": Case(lambda query, stream, before: [(0.0, answer(query, code=dns.rcode.SERVFAIL))], good),
        "wrong id": Case(lambda query, stream, before: [(0.0, answer(query, id=query.id ^ 1)), (0.1, answer(query))]),
        "no EDNS": Case(
            lambda query, stream, before: [(0.0, answer(query, code=dns.rcode.FORMERR if query.edns == 0 else 0))]
        ),
        "connections only": Case(
            lambda query, stream, before: good(query, stream, before) if stream else [], None, True
        ),
    }
