"""The real daemon's name server between clients and an upstream that both send damaged messages."""

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import dns.message
from lab import Lab
from lab.cluster import Member

SEED = 7
TIMES = int(os.environ.get("OVERLAYD_HOSTILE", "1"))  # `make hostile`
QUERIES = 1500 if TIMES == 1 else 3200 * TIMES  # in datagrams: with those of the streams 200,000
STREAMS = 75 if TIMES == 1 else 40 * TIMES  # connections
PIPELINED = 20  # queries in each
SERVER = ("10.200.1.1", 53)
NAMES = ("web", "www.example.org", "a.b.c.d", "x.overlay.local", "1.0.200.10.in-addr.arpa", ".")


def damaged(chance: random.Random, message: bytes) -> bytes:
    """Often as it is; else with other bytes, cut, or with more behind it."""
    bytes_ = bytearray(message)
    for _ in range(chance.choice([0, 0, 1, 2, 5])):
        bytes_[chance.randrange(len(bytes_))] = chance.randrange(256)
    if chance.random() < 0.1:
        del bytes_[chance.randrange(len(bytes_)) :]
    return bytes(bytes_) + chance.randbytes(chance.choice([0, 0, 0, 10, 1500]))


@contextmanager
def upstream(lab: Lab, chance: random.Random) -> Iterator[None]:
    """Answers every datagram with a damaged echo that says that it is a response, and hangs up on every connection."""
    with ExitStack() as stack:
        address = (str(lab.outside_address.ip), 53)
        datagrams = stack.enter_context(lab.open_outside(kind=socket.SOCK_DGRAM))
        datagrams.bind(address)
        listener = stack.enter_context(lab.open_outside())
        listener.bind(address)
        listener.listen()

        def serve_datagrams() -> None:
            while True:
                query, client = datagrams.recvfrom(2000)
                if query == b"end":
                    return
                flags = 0x80 | (0x02 if chance.random() < 0.4 else 0)  # a response, sometimes a truncated one
                datagrams.sendto(damaged(chance, query[:2] + bytes([query[2] | flags]) + query[3:]), client)

        def serve_streams() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        if query := connection.recv(2000):
                            connection.send(damaged(chance, query))

        threads = [threading.Thread(target=work) for work in (serve_datagrams, serve_streams)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            with lab.open_outside(kind=socket.SOCK_DGRAM) as last:
                last.sendto(b"end", address)
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_damage_from_both_sides_ends_nothing() -> None:
    chance = random.Random(SEED)
    with Lab() as lab, upstream(lab, random.Random(SEED)):
        member = Member(lab, 1, "alpha")
        member.start("--dns-node-address", "--dns-upstream", str(lab.outside_address.ip))
        member.set_up()
        member.request("register_dns", name="web", ip="10.200.1.9")
        with member.node.open_socket(kind=socket.SOCK_DGRAM) as client:
            for number in range(QUERIES):
                edns = chance.choice([-1, 0])
                query = dns.message.make_query(chance.choice(NAMES), chance.choice(["A", "ANY", "PTR"]), use_edns=edns)
                message = damaged(chance, query.to_wire())
                client.sendto(message, SERVER)
                if number % (QUERIES // STREAMS) == 0:
                    with member.node.open_socket() as stream, suppress(OSError):
                        stream.settimeout(0.2)
                        stream.connect(SERVER)
                        stream.send(damaged(chance, (len(message).to_bytes(2, "big") + message) * PIPELINED))
                        stream.recv(chance.choice([1, 4000]))
        for option in ("+notcp", "+tcp"):
            assert member.node.run(["dig", "+short", option, f"@{SERVER[0]}", "web"]) == "10.200.1.9\n"
        log = member.node.log.read_text()
        assert "error" not in log and "Traceback" not in log, log
        assert member.node.stop() == 0
