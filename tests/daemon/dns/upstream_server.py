"""An upstream DNS server on loopback that answers as a test wants it to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from overlayd.daemon.dns.upstreams import Upstream

Answer = Callable[[bytes], Any]


def answer(query: bytes, *, id: int | None = None, code: int = 0, truncated: bool = False) -> bytes:
    """One address for whatever is asked."""
    message = dns.message.from_wire(query)
    response = dns.message.make_response(message)
    if not truncated and code == 0:
        response.answer.append(dns.rrset.from_text(message.question[0].name, 60, "IN", "A", "192.0.2.80"))
    response.set_rcode(code)
    if id is not None:
        response.id = id
    if truncated:
        response.flags |= dns.flags.TC
    return response.to_wire()


class Server(asyncio.DatagramProtocol):
    """by_datagram: the datagrams sent for a query, or what sends them, given the server and the client.  by_stream: the
    bytes sent, length included, before it hangs up.
    """

    def __init__(self, by_datagram: Answer, by_stream: Answer) -> None:
        self.by_datagram, self.by_stream = by_datagram, by_stream
        self.asked: list[tuple[bytes, int]] = []  # queries, and the port they came from
        self.streams = 0
        self.upstream: Upstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.asked.append((data, address[1]))
        said = self.by_datagram(data)
        if callable(said):
            said(self, address)
            return
        for datagram in said:
            self.transport.sendto(datagram, address)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams += 1
        with suppress(asyncio.IncompleteReadError):  # who connects may think better of it
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            for part in self.by_stream(query):
                writer.write(part)
        writer.close()


@asynccontextmanager
async def serving(
    by_datagram: Answer = lambda query: [answer(query)], by_stream: Answer = lambda query: [], *, port: int = 0
) -> AsyncIterator[Server]:
    """A server on a port, by default one of its own, UDP and TCP."""
    server = Server(by_datagram, by_stream)
    streams = await asyncio.start_server(server.connected, "127.0.0.1", port)
    port = streams.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", port)
    )
    server.upstream = Upstream("127.0.0.1", port)
    try:
        yield server
    finally:
        transport.close()
        streams.close()


def refusing(asked: bytes) -> list[bytes]:
    """Answers of a server that refuses."""
    return [answer(asked, code=dns.rcode.REFUSED)]


def slow(seconds: float) -> Answer:
    """Answers of a server that takes its time."""

    def later(asked: bytes) -> Callable[[Server, tuple[str, int]], None]:
        def send(server: Server, client: tuple[str, int]) -> None:
            asyncio.get_running_loop().call_later(seconds, server.transport.sendto, answer(asked), client)

        return send

    return later
