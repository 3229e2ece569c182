"""Many queries from one socket, over real sockets on loopback."""

import errno
import socket

import dns.message
import pytest
from lab.patience import LIMIT

from overlayd._fast.dnsforward import Query
from overlayd.linux.asking import LONGEST, Asking, random16


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request):
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((request.param, 0))
        server.settimeout(LIMIT)
        yield server


@pytest.fixture
def client(server):
    with socket.socket(server.family, socket.SOCK_DGRAM) as client:
        client.connect(server.getsockname()[:2])
        yield client


def query(name):
    return Query(dns.message.make_query(name, "A", use_edns=0).to_wire())


def answer(asked, name=None):
    response = dns.message.make_response(dns.message.from_wire(asked) if name is None else name)
    return response.to_wire()


def test_each_answer_comes_to_whom_it_is_for(server, client):
    asking = Asking(client.fileno())
    ids = {name: asking.ask(query(name), name, edns=True) for name in ("a.example", "b.example", "c.example")}
    assert len(asking) == 3 == len(set(ids.values())) and asking.owners() == list(ids)
    asked = [server.recv(2000) for _ in ids]
    assert [int.from_bytes(each[:2], "big") for each in asked] == list(ids.values())
    for each in reversed(asked):
        server.sendto(answer(each), client.getsockname())
    answers, late, failure = asking.receive()
    assert not late and not failure and [owner for owner, _ in answers] == ["c.example", "b.example", "a.example"]
    for (owner, response), each in zip(answers, reversed(asked), strict=True):
        assert response == answer(each)
        asking.forget(ids[owner])
    assert len(asking) == 0
    server.sendto(answer(asked[0]), client.getsockname())
    assert asking.receive() == ([], True, 0), "nobody waits for it any more"
    assert asking.receive() == ([], False, 0)
    asking.forget(ids["a.example"])


def test_what_answers_nothing_is_dropped(server, client):
    asking = Asking(client.fileno())
    asking.ask(query("a.example"), "a", edns=False)
    asked = server.recv(2000)
    other = dns.message.make_query("b.example", "A", id=int.from_bytes(asked[:2], "big"))
    wrong_id = bytes([asked[0] ^ 1]) + answer(asked)[1:]
    for noise in (b"", b"x", asked, bytes([asked[0] ^ 1]) + asked[1:], answer(b"", other), answer(asked)[:20]):
        server.sendto(noise, client.getsockname())
    with socket.socket(server.family, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(answer(asked), client.getsockname())
    assert asking.receive() == ([], False, 0) and len(asking) == 1
    server.sendto(wrong_id, client.getsockname())
    assert asking.receive() == ([], True, 0) and len(asking) == 1


def test_no_more_than_a_batch_is_taken_at_once(server, client):
    asking = Asking(client.fileno())
    asking.ask(query("a.example"), "a", edns=True)
    asked = server.recv(2000)
    for _ in range(LONGEST + 1):
        server.sendto(answer(asked), client.getsockname())
    assert [len(asking.receive()[0]) for _ in range(3)] == [LONGEST, 1, 0]


def test_ids_are_all_different_and_there_are_as_many_as_wait(server, client):
    asking = Asking(client.fileno())
    one = query("a.example")
    assert len({asking.ask(one, None, edns=True) for _ in range(3000)}) == 3000 == len(asking)


def test_a_server_that_is_not_there_is_told(server, client):
    asking = Asking(client.fileno())
    server.close()
    asking.ask(query("a.example"), "a", edns=True)
    answers, _, failure = asking.receive()
    assert not answers and failure == errno.ECONNREFUSED and asking.owners() == ["a"]
    client.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError):
        asking.ask(query("b.example"), "b", edns=True)
    assert len(asking) == 1


def test_random_numbers_are_spread():
    drawn = [random16() for _ in range(20_000)]
    assert max(drawn) < 65536
    for bit in range(16):
        assert 9_000 < sum(each >> bit & 1 for each in drawn) < 11_000
