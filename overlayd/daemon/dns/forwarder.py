"""Asking other servers for names that are not ours.

Owns: the queries in flight, a task and a socket each, and which server is asked next.  Must not know: who asked us, or
how (`daemon.dns.nameserver`); what is in a message (`proto.dns`).

Every query goes out from a socket of its own, so the kernel picks a random port for it, under a random id, and only
what comes from that server to that port under that id with that question is an answer: RFC 5452.
"""

import asyncio
import logging
import secrets
import socket
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from overlayd.daemon.dns.upstreams import Upstream
from overlayd.daemon.tasks import Spawn
from overlayd.errors import ProtocolError
from overlayd.proto import dns
from overlayd.proto.dns import Query

log = logging.getLogger(__name__)

# Our own constants.
IN_FLIGHT = 1024  # queries, a socket each
OF_CLIENT = 256  # of these, so that one container that asks for what nobody answers leaves room for the others
STARTED = 8  # queries that go out before the loop looks at its other work: 50 us each
TRY = 1.5  # seconds for an answer to a datagram; a server that is alive answers sooner, or has lost it
PATIENCE = 4.5  # seconds for all; C libraries ask again after 5


class _Waiting(NamedTuple):
    """A query that is yet to go out."""

    query: Query
    client: Hashable
    stream: bool
    deliver: Callable[[bytes], None]


class Forwarder:
    """servers: those to ask now, the first one first.  spawn: starts a task."""

    def __init__(self, servers: Callable[[], Sequence[Upstream]], spawn: Spawn) -> None:
        self._servers = servers
        self._spawn = spawn
        self._answered: Upstream | None = None  # the last one that did is asked first: one that is dead costs a TRY
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0  # those that wait included
        self._of_client: Counter[Hashable] = Counter()

    def forward(self, message: bytes, client: Hashable, deliver: Callable[[bytes], None], *, stream: bool) -> None:
        """Ask for a client, and `deliver` the response, to be sent as it is, once: an upstream's, or else SERVFAIL; b""
        for what is no query after all.

        client: whom to count it for.  stream: it came by TCP, so the response may be long.
        """
        try:
            query = dns.read_query(message)
        except ProtocolError as error:
            log.debug("not forwarded: %s", error)
            deliver(b"")
            return
        if self._in_flight >= IN_FLIGHT or self._of_client[client] >= OF_CLIENT:
            deliver(dns.failure(query, dns.OTHER, "too many queries wait for their answers"))
            return
        self._in_flight += 1
        self._of_client[client] += 1
        self._waiting.append(_Waiting(query, client, stream, deliver))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._send_some)

    def close(self) -> None:
        """Forget what is in flight."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    def _send_some(self) -> None:
        for _ in range(min(STARTED, len(self._waiting))):
            task = self._spawn(self._carry_out(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._send_some)

    async def _carry_out(self, waiting: _Waiting) -> None:
        try:
            response = await self._ask(waiting.query, waiting.stream)
        finally:
            self._in_flight -= 1
            self._of_client[waiting.client] -= 1
            if not self._of_client[waiting.client]:
                del self._of_client[waiting.client]
        waiting.deliver(response)

    async def _ask(self, query: Query, stream: bool) -> bytes:
        servers = list(self._servers())
        if not servers:
            return dns.failure(query, dns.OTHER, "this node knows no server to forward to")
        if self._answered in servers:
            servers.remove(self._answered)
            servers.insert(0, self._answered)
        try:
            async with asyncio.timeout(PATIENCE):
                response = await self._ask_in_turn(servers, query, stream)
        except TimeoutError:
            response = b""
        if response:
            return dns.for_client(response, query, stream=stream)
        return dns.failure(query, dns.NO_REACHABLE_AUTHORITY, f"no answer from {', '.join(map(str, servers))}")

    async def _ask_in_turn(self, servers: Sequence[Upstream], query: Query, stream: bool) -> bytes:
        """The first response that is more than a refusal, else a refusal, else b""."""
        refusal = b""
        while servers and not refusal:
            silent = []
            for server in servers:
                try:
                    response = await self._exchange(server, query, stream)
                except TimeoutError:
                    silent.append(server)  # the datagram may have been lost: once more
                except (OSError, ProtocolError, EOFError) as error:
                    log.debug("DNS upstream %s: %s", server, error)
                else:
                    if not dns.is_refusal(response):
                        self._answered = server
                        return response
                    refusal = response
            servers = silent
        return refusal

    async def _exchange(self, server: Upstream, query: Query, stream: bool) -> bytes:
        """One server's response, whole if the client came by TCP.  TimeoutError, OSError, ProtocolError, EOFError."""
        async with asyncio.timeout(TRY):
            response = await self._by_datagram(server, query)
        if stream and dns.is_truncated(response):
            async with asyncio.timeout(TRY):
                response = await self._by_stream(server, query)
        return response

    async def _by_datagram(self, server: Upstream, query: Query) -> bytes:
        loop = asyncio.get_running_loop()
        id = secrets.randbits(16)
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asking:
            asking.connect(tuple(server))  # hereafter the kernel drops what others send
            asking.send(dns.for_upstream(query, id))
            while True:
                response = await loop.sock_recv(asking, dns.MAX_MESSAGE)
                if dns.answers(response, query, id):
                    return response

    async def _by_stream(self, server: Upstream, query: Query) -> bytes:
        id = secrets.randbits(16)
        reader, writer = await asyncio.open_connection(*server)
        try:
            writer.write(dns.frame(dns.for_upstream(query, id)))
            response = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        finally:
            writer.close()
        if not dns.answers(response, query, id):
            raise ProtocolError("a response to another question")
        return response
