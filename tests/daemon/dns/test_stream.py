"""The TCP side of the name server, over real connections on loopback."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network

import dns.message
import pytest
from lab.patience import LIMIT
from upstream_server import serving

from overlayd._fast.dnscache import Cache
from overlayd._fast.dnsquery import wire_name
from overlayd._fast.nametable import NameTable
from overlayd.daemon.dns import exchange
from overlayd.daemon.dns import stream as module
from overlayd.daemon.dns.forwarder import Forwarder
from overlayd.daemon.dns.stream import Streams
from overlayd.proto.dns import frame


@asynccontextmanager
async def listening(servers=list, admitted="127.0.0.0/8"):
    table = NameTable()
    table.set_addresses(wire_name("web"), (bytes([10, 200, 1, 5]),))
    cache = Cache(10, 100_000)
    forwarder = Forwarder(servers, cache)
    streams = Streams(table, cache, forwarder)
    streams.admitted = ip_network(admitted)
    server = await asyncio.get_running_loop().create_server(streams.connect, "127.0.0.1", 0)
    streams.port = server.sockets[0].getsockname()[1]
    try:
        yield streams
    finally:
        server.close()
        streams.close()
        forwarder.close()


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, *names, id=0):
        """Queries for names, with ids that count up."""
        for number, name in enumerate(names):
            self.writer.write(frame(dns.message.make_query(name, "A", id=id + number).to_wire()))

    async def receive(self):
        size = int.from_bytes(await self.reader.readexactly(2), "big")
        return dns.message.from_wire(await self.reader.readexactly(size))

    async def closed(self):
        """Whether the server hangs up, within the patience of a test."""
        async with asyncio.timeout(LIMIT):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


@asynccontextmanager
async def connected(streams, source="127.0.0.1"):
    reader, writer = await asyncio.open_connection("127.0.0.1", streams.port, local_addr=(source, 0))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def test_many_questions_at_once_are_answered_in_their_order():
    async with listening() as streams, connected(streams) as client:
        client.send(*["web", "nope"] * 500)
        for number in range(1000):
            response = await client.receive()
            assert (response.id, len(response.answer)) == (number, 1 - number % 2)


async def test_a_byte_at_a_time():
    async with listening() as streams, connected(streams) as client:
        for byte in frame(dns.message.make_query("web", "A", id=7).to_wire()):
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.receive()).id == 7


async def test_ours_do_not_wait_for_what_an_upstream_knows():
    async with serving() as upstream, listening(lambda: [upstream.upstream]) as streams, connected(streams) as client:
        client.send("www.example.org", "web")
        assert [(await client.receive()).id for _ in range(2)] == [1, 0]


async def test_who_asks_no_more_is_still_answered_and_then_let_go():
    async with serving() as upstream, listening(lambda: [upstream.upstream]) as streams, connected(streams) as client:
        client.send("www.example.org", "web")
        client.writer.write_eof()
        assert {(await client.receive()).id, (await client.receive()).id} == {0, 1}
        assert await client.closed()


async def test_what_deserves_no_answer_gets_none():
    async with listening() as streams, connected(streams) as client:
        response = dns.message.make_response(dns.message.make_query("web", "A")).to_wire()
        client.writer.write(frame(b"") + frame(b"short") + frame(response) + frame(b"\xff" * 65535))
        client.send("web", id=9)
        assert (await client.receive()).id == 9


async def test_an_idle_connection_is_closed(monkeypatch):
    monkeypatch.setattr(module, "IDLE", 0.2)
    async with listening() as streams, connected(streams) as idle, connected(streams) as incomplete:
        incomplete.writer.write(b"\0\x20abc")
        idle.send("web")
        assert (await idle.receive()).answer
        assert await idle.closed() and await incomplete.closed()
        assert not streams.connections


async def test_only_the_cluster_may_connect():
    async with listening(admitted="10.200.0.0/16") as streams, connected(streams) as client:
        assert await client.closed()
        streams.admitted = None
        async with connected(streams) as another:
            assert await another.closed()


async def test_too_many_connections_of_few_clients_leave_room_for_others(monkeypatch):
    """Five addresses that hold all places lose their oldest ones; who asks keeps his."""
    monkeypatch.setattr(module, "CONNECTIONS", 10)
    async with listening() as streams, AsyncExitStack() as stack:
        greedy = [
            await stack.enter_async_context(connected(streams, f"127.0.0.{2 + number % 5}")) for number in range(10)
        ]
        greedy[0].send("web")
        assert (await greedy[0].receive()).answer
        async with connected(streams, "127.0.0.9") as newcomer:
            newcomer.send("web")
            assert (await newcomer.receive()).answer
            assert await greedy[5].closed(), "the oldest of the first client that has most"
            for each in (greedy[0], newcomer):
                each.send("web")
                assert (await each.receive()).answer
            async with connected(streams, "127.0.0.9") as another:
                another.send("web")
                assert (await another.receive()).answer
                newcomer.send("web")
                assert (await newcomer.receive()).answer


async def test_who_does_not_read_is_not_read(monkeypatch):
    """What it may send is bounded, and others are answered meanwhile."""
    async with listening() as streams, connected(streams) as deaf, connected(streams) as other:
        sent = 0
        flood = frame(dns.message.make_query("web", "A").to_wire()) * 1000
        with pytest.raises(TimeoutError):
            while True:
                deaf.writer.write(flood)
                sent += len(flood)
                async with asyncio.timeout(0.5):
                    await deaf.writer.drain()
        assert sent < 64 * 1024 * 1024
        (held,) = (each for each in streams.connections if each._received)
        assert len(held._received) < 1024 * 1024
        other.send("web")
        assert (await other.receive()).answer
        deaf.writer.transport.abort()


async def test_queries_in_flight_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "IN_FLIGHT", 2)
    monkeypatch.setattr(exchange, "PATIENCE", 0.3)
    async with (
        serving(lambda asked: []) as upstream,
        listening(lambda: [upstream.upstream]) as streams,
        connected(streams) as client,
    ):
        client.send("a.example", "b.example", "web")
        answers = [(await client.receive()).rcode() for _ in range(3)]
        assert answers in ([2, 2, 0], [2, 0, 2]), "the third is not looked at before one is answered"


async def test_connections_to_an_address_that_goes_are_closed():
    async with listening() as streams, connected(streams) as client:
        client.send("web")
        assert (await client.receive()).answer
        streams.close("127.0.0.2")
        assert len(streams.connections) == 1
        streams.close("127.0.0.1")
        assert await client.closed()
