"""Queries in batches, over real sockets on loopback."""

import random
import select
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager

import dns.message
import dns.rrset
import pytest
from lab.patience import LIMIT

from overlayd._fast.dnscache import Answer, Cache, key_of
from overlayd._fast.dnsquery import MAX_DATAGRAM, wire_name
from overlayd._fast.nametable import NameTable
from overlayd.linux.datagrams import BATCH, Datagrams

SOL_UDP, UDP_GRO = 17, 104  # linux/udp.h
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@contextmanager
def bound(family=socket.AF_INET, address=None):
    with socket.socket(family, socket.SOCK_DGRAM) as opened:
        opened.bind((address or LOOPBACK[family], 0))
        opened.settimeout(LIMIT)
        yield opened


@pytest.fixture
def table():
    table = NameTable()
    table.set_addresses(wire_name("web"), (bytes([10, 200, 1, 5]),))
    return table


@pytest.fixture
def cache():
    return Cache(10, 10_000)


@pytest.fixture
def datagrams(table, cache):
    datagrams = Datagrams(table, cache, lambda: None)
    datagrams.admit(bytes([127, 0, 0, 0]), 8)
    return datagrams


@contextmanager
def watched(*sockets):
    with select.epoll() as ready:
        for each in sockets:
            ready.register(each, select.EPOLLIN)
        yield ready.fileno()


def served(datagrams, server, now=0.0):
    """One batch of one socket."""
    with watched(server) as ready:
        return datagrams.serve(ready, now, 0.0)


def query(name, id=0):
    return dns.message.make_query(name, "A", id=id).to_wire()


@pytest.mark.parametrize("family", LOOPBACK, ids=["ipv4", "ipv6"])
def test_ours_are_answered_and_others_handed_on(datagrams, family):
    if family == socket.AF_INET6:
        datagrams.admit(bytes(15) + b"\1", 128)
    with bound(family) as server, bound(family) as client:
        for id, name in enumerate(["web", "www.example.org", "nope"]):
            client.sendto(query(name, id), server.getsockname())
        client.sendto(b"noise", server.getsockname())
        ((descriptor, other, sender),) = served(datagrams, server)
        assert descriptor == server.fileno()
        assert other == query("www.example.org", 1)
        answers = [dns.message.from_wire(client.recv(2000)) for _ in range(2)]
        assert [(answer.id, answer.rcode()) for answer in answers] == [(0, 0), (2, 3)]
        datagrams.send(server.fileno(), b"later", sender)
        data, (address, port, *_) = client.recvfrom(2000)
        assert (data, (address, port)) == (b"later", server.getsockname()[:2])


@pytest.mark.parametrize("family", LOOPBACK, ids=["ipv4", "ipv6"])
def test_what_the_cache_has_is_answered_and_asked_for_anew_near_its_end(datagrams, cache, family):
    if family == socket.AF_INET6:
        datagrams.admit(bytes(15) + b"\1", 128)
    response = dns.message.make_response(dns.message.make_query("www.example.org", "A"))
    response.answer.append(dns.rrset.from_text("www.example.org.", 100, "IN", "A", "192.0.2.80"))
    cache.put(key_of(query("www.example.org")), Answer(response.to_wire()), 0.0)
    with bound(family) as server, bound(family) as client:
        for now, ttl, others in ((0.0, 100, []), (95.0, 5, [(query("www.example.org", 1), b"")]), (96.0, 4, [])):
            client.sendto(query("www.example.org", 1), server.getsockname())
            assert [tuple(rest) for _, *rest in served(datagrams, server, now)] == others
            assert dns.message.from_wire(client.recv(2000)).answer[0].ttl == ttl
        client.sendto(query("www.example.org", 1), server.getsockname())
        assert len(served(datagrams, server, 100.0)) == 1


def test_nothing_there_is_nothing_done(datagrams):
    with bound() as server:
        assert served(datagrams, server) == []


def test_a_batch_is_bounded(datagrams):
    with bound() as server, bound() as client:
        for id in range(BATCH + 3):
            client.sendto(query("www.example.org", id), server.getsockname())
        assert len(served(datagrams, server)) == BATCH
        rest = served(datagrams, server)
        assert [int.from_bytes(message[:2], "big") for _, message, _ in rest] == [BATCH, BATCH + 1, BATCH + 2]


def ids(others):
    return [int.from_bytes(message[:2], "big") for _, message, _ in others]


def test_all_that_waits_is_served_in_one_go(datagrams):
    with bound() as first, bound() as second, bound() as client, watched(first, second) as ready:
        for id in range(BATCH + 3):
            for server in (first, second):
                client.sendto(query("web", id), server.getsockname())
        assert datagrams.serve(ready, time.monotonic(), LIMIT) == []
        answered = [int.from_bytes(client.recv(2000)[:2], "big") for _ in range(2 * (BATCH + 3))]
        assert sorted(answered) == sorted([*range(BATCH + 3)] * 2)


def test_a_socket_with_many_queries_leaves_the_others_their_turns(datagrams):
    with bound() as first, bound() as second, bound() as client, watched(first, second) as ready:
        for id in range(BATCH + 1):
            client.sendto(query("web", id), first.getsockname())
        client.sendto(query("web", BATCH + 1), second.getsockname())
        for _ in range(2):
            datagrams.serve(ready, time.monotonic(), 0.0)  # one batch
        answered = [int.from_bytes(client.recv(2000)[:2], "big") for _ in range(BATCH + 1)]
        assert answered == [*range(BATCH), BATCH + 1]


def test_what_is_to_be_forwarded_does_not_wait_for_what_comes_behind_it(datagrams):
    with bound() as server, bound() as client, watched(server) as ready:
        for id in range(BATCH + 1):
            client.sendto(query("www.example.org" if id in (0, BATCH) else "web", id), server.getsockname())
        assert ids(datagrams.serve(ready, time.monotonic(), LIMIT)) == [0]
        assert ids(datagrams.serve(ready, time.monotonic(), LIMIT)) == [BATCH]
        assert datagrams.serve(ready, time.monotonic(), LIMIT) == []


def test_a_query_that_is_too_long_is_none(datagrams):
    with bound() as server, bound() as client:
        for size in (MAX_DATAGRAM + 1, MAX_DATAGRAM):
            client.sendto(query("web", size).ljust(size, b"\0"), server.getsockname())
        served(datagrams, server)
        assert int.from_bytes(client.recv(2000)[:2], "big") == MAX_DATAGRAM


@pytest.mark.parametrize("family", LOOPBACK, ids=["ipv4", "ipv6"])
def test_each_socket_gets_its_own_answers_whatever_their_sizes(datagrams, table, family):
    if family == socket.AF_INET6:
        datagrams.admit(bytes(15) + b"\1", 128)
    chance = random.Random(5)
    names = ["a" * size for size in (1, 2, 2, 30, 31, 63)]
    for name in names:
        table.set_addresses(wire_name(name), (bytes([10, 200, 1, len(name)]),))
    with ExitStack() as stack:
        server = stack.enter_context(bound(family))
        clients = {stack.enter_context(bound(family)): [] for _ in range(4)}
        for id in range(BATCH):
            client = chance.choice(list(clients))
            message = query(chance.choice(names), id)
            clients[client].append(table.respond(message, False))
            client.sendto(message, server.getsockname())
        assert served(datagrams, server) == []
        for client, answers in clients.items():
            assert answers
            assert sorted(client.recv(2000) for _ in answers) == sorted(answers)
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(2000)


def test_answers_to_one_socket_leave_as_one_message(datagrams, table):
    with bound() as server, bound() as client:
        client.setsockopt(SOL_UDP, UDP_GRO, 1)  # what the kernel would take apart stays whole
        messages = [query("web", id) for id in range(BATCH)]
        for message in messages:
            client.sendto(message, server.getsockname())
        served(datagrams, server)
        answer = len(table.respond(messages[0], False))
        assert len(client.recv(65535)) == BATCH * answer


def test_answers_of_two_sizes_to_one_socket_leave_as_two_messages(datagrams, table):
    table.set_addresses(wire_name("longer"), (bytes([10, 200, 1, 6]),))
    messages = [query(name, id) for id, name in enumerate(["web", "longer"] * 8)]
    with bound() as server, bound() as client:
        client.setsockopt(SOL_UDP, UDP_GRO, 1)
        for message in messages:
            client.sendto(message, server.getsockname())
        served(datagrams, server)
        for which in (0, 1):
            assert client.recv(65535) == b"".join(table.respond(each, False) for each in messages[which::2])


def test_sockets_with_one_port_are_told_apart(datagrams, table):
    with bound(address="0.0.0.0") as server, bound() as first, ExitStack() as stack:
        clients = [first]
        for last in (2, 3, 4):
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.bind((f"127.0.0.{last}", first.getsockname()[1]))
            other.settimeout(LIMIT)
            clients.append(other)
        messages = [query("web", id) for id in range(16)]
        for at, message in enumerate(messages):
            clients[at % 4].setsockopt(SOL_UDP, UDP_GRO, 1)
            clients[at % 4].sendto(message, ("127.0.0.1", server.getsockname()[1]))
        served(datagrams, server)
        for at, client in enumerate(clients):
            assert client.recv(65535) == b"".join(table.respond(each, False) for each in messages[at::4])


def test_what_the_kernel_does_not_take_apart_is_sent_singly(host, datagrams, table):
    subprocess.run(["ip", "link", "set", "lo", "mtu", "600", "up"], check=True)
    table.set_addresses(wire_name("many"), tuple(bytes([10, 200, 2, last]) for last in range(60)))
    with bound() as server, bound() as client:
        for id in range(3):
            message = dns.message.make_query("many", "A", id=id, use_edns=0, payload=MAX_DATAGRAM)
            client.sendto(message.to_wire(), server.getsockname())
        served(datagrams, server)
        answers = [dns.message.from_wire(client.recv(2000)) for _ in range(3)]
        assert [(answer.id, len(answer.answer[0])) for answer in answers] == [(id, 60) for id in range(3)]


def test_the_servers_may_be_others_before_the_cache_is_asked(table, cache):
    asked = []
    datagrams = Datagrams(table, cache, lambda: asked.append(len(cache)))
    datagrams.admit(bytes([127, 0, 0, 0]), 8)
    with bound() as server, bound() as client:
        for names, times in ((["web", "nope"], 0), (["www.example.org", "web", "www.example.net"], 1)):
            for name in names:
                client.sendto(query(name), server.getsockname())
            served(datagrams, server)
            assert len(asked) == times


def test_one_that_cannot_be_reached_does_not_cost_the_others_their_answers(datagrams):
    with bound() as server, bound() as client, bound() as gone:
        gone.connect(server.getsockname())
        gone.send(query("web", 1))
        client.sendto(query("web", 2), server.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as broken:
            broken.bind(("127.0.0.1", 0))
            datagrams.send(server.fileno(), b"x", b"\2\0" + bytes(14))  # port 0: refused by the kernel
        gone.close()
        served(datagrams, server)
        assert client.recv(2000)[:2] == b"\0\2"


@pytest.mark.parametrize(
    ("network", "prefix", "admitted"),
    [
        ("127.0.0.1", 32, ["127.0.0.1"]),
        ("127.0.0.0", 31, ["127.0.0.1"]),
        ("127.0.0.2", 31, ["127.0.0.2", "127.0.0.3"]),
        ("127.0.0.128", 9, ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.1.0.1"]),
        ("127.1.0.0", 16, ["127.1.0.1"]),
        ("0.0.0.0", 0, ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.1.0.1", "127.128.0.1"]),
    ],
)
def test_who_may_ask(datagrams, network, prefix, admitted):
    datagrams.admit(socket.inet_aton(network), prefix)
    asking = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.1.0.1", "127.128.0.1"]
    with bound() as server:
        for id, address in enumerate(asking):
            with bound(address=address) as client:
                client.sendto(query("www.example.org", id), server.getsockname())
        taken = [int.from_bytes(message[:2], "big") for _, message, _ in served(datagrams, server)]
    assert [asking[id] for id in taken] == admitted


def test_before_it_is_told_who_may_ask_nobody_may(table):
    with bound() as server, bound() as client:
        client.sendto(query("www.example.org"), server.getsockname())
        assert served(Datagrams(table, Cache(1, 1000), lambda: None), server) == []


def test_a_family_is_never_taken_for_the_other(datagrams):
    datagrams.admit(bytes(4), 0)
    with bound(socket.AF_INET6) as server, bound(socket.AF_INET6) as client:
        client.sendto(query("www.example.org"), server.getsockname())
        assert served(datagrams, server) == []


@pytest.mark.parametrize(("network", "prefix"), [(b"", 0), (bytes(4), 33), (bytes(16), 129), (bytes(4), -1)])
def test_what_is_no_network(datagrams, network, prefix):
    with pytest.raises(ValueError):
        datagrams.admit(network, prefix)


def test_a_socket_that_is_none(datagrams):
    with pytest.raises(OSError):
        datagrams.serve(-1, 0.0, 0.0)
