"""One question to the upstream servers.

Owns: its sockets, which server is asked when, and which servers have been silent of late.  Must not know: who asked us,
or what is kept (`daemon.dns.forwarder`); what is in a message (`proto.dns`).

Every question goes out from sockets of its own, one a server, so the kernel picks a random port for each, under a
random id; and only what comes from that server to that port under that id with that question is an answer: RFC 5452.

The servers are asked in their order, each question from the first one on, as resolv.conf(5) has it: the first may know
names that the others do not.  A server that has been asked is listened to until the end, so that a slow one's answer
counts.  One that refuses (SERVFAIL, REFUSED) is passed over for this question alone.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from overlayd._fast.dnscache import Answer
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.errors import ProtocolError
from overlayd.proto import dns
from overlayd.proto.dns import Query

log = logging.getLogger(__name__)

# Our own constants, in seconds but for MISSED.
AGAIN = 0.75  # until a datagram is sent once more, since it may have been lost
TRY = 1.5  # until the next server is asked as well
PATIENCE = 4.5  # for all; C libraries ask again after 5
SILENT = 5.0  # for which a server that does not answer is asked last
MISSED = 3  # questions in a row that it has not answered


class Silence:
    """Which servers have not answered of late: they are asked last, so that a dead one does not cost each question a
    TRY.  One question in SILENT seconds tries whether they are back.
    """

    def __init__(self) -> None:
        self._missed: dict[Upstream, int] = {}
        self._until: dict[Upstream, float] = {}

    def heard(self, server: Upstream) -> None:
        self._missed.pop(server, None)
        self._until.pop(server, None)

    def missed(self, server: Upstream, now: float) -> None:
        """It has not answered a question in time."""
        self._missed[server] = self._missed.get(server, 0) + 1
        if self._missed[server] == MISSED:
            log.debug("DNS upstream %s does not answer", server)
            self._until[server] = now + SILENT

    def is_silent(self, server: Upstream) -> bool:
        return server in self._until

    def ordered(self, servers: Sequence[Upstream], now: float) -> list[Upstream]:
        """The servers in the order in which this question is for them."""
        last = []
        for server in servers:
            until = self._until.get(server)
            if until is not None and now < until:
                last.append(server)
            elif until is not None:
                self._until[server] = now + SILENT  # this question tries it, the next ones wait for what comes of it
        return [server for server in servers if server not in last] + last


async def ask(query: Query, servers: Sequence[Upstream], silence: Silence, *, stream: bool) -> Answer | None:
    """The first answer that is more than a refusal, else a refusal, else None.

    What is truncated is fetched whole by a connection: it may well fit what the client takes, and there are C libraries
    that never ask by a connection themselves.  stream: truncated is not enough; else it is when that takes too long.
    """
    exchange = _Exchange(query, silence, stream=stream)
    try:
        return await exchange.run(servers)
    finally:
        exchange.close()


class _Exchange:
    def __init__(self, query: Query, silence: Silence, *, stream: bool) -> None:
        self._query = query
        self._silence = silence
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[Upstream, tuple[socket.socket, int]] = {}  # with the id
        self._streams: dict[Upstream, asyncio.Task[None]] = {}
        self._truncated: dict[Upstream, tuple[Answer, asyncio.TimerHandle]] = {}  # that will do after a while
        self._plain: set[Upstream] = set()  # those that do not know EDNS
        self._unreachable: set[Upstream] = set()  # by datagrams
        self._arrived: asyncio.Queue[tuple[Upstream, Answer | None]] = asyncio.Queue()

    def close(self) -> None:
        for asking, _ in self._sockets.values():
            self._loop.remove_reader(asking)
            asking.close()
        for task in self._streams.values():
            task.cancel()
        for _, timer in self._truncated.values():
            timer.cancel()

    async def run(self, servers: Sequence[Upstream]) -> Answer | None:
        began = self._loop.time()
        end = due = began + 0.0
        end += PATIENCE
        ordered = self._silence.ordered(servers, began)
        attempts = _attempts(ordered, stream=self._stream)
        asked: dict[Upstream, float] = {}
        over: dict[Upstream, Answer | None] = {}  # refusals, and servers that cannot be reached
        try:
            while len(over) < len(ordered) and (now := self._loop.time()) < end:
                if now >= due:
                    server, by_stream, pause = next(attempts)
                    if server not in over:
                        asked.setdefault(server, now)
                        self._ask(server, by_stream=by_stream)
                        due = now + pause
                    continue
                if self._only_silent_left(ordered, over):
                    break
                try:
                    async with asyncio.timeout(min(due, end) - now):
                        server, answer = await self._arrived.get()
                except TimeoutError:
                    continue
                if answer is not None:
                    self._silence.heard(server)
                    if answer.code not in dns.REFUSALS:
                        return answer
                over.setdefault(server, answer)
                due = self._loop.time()  # for the next one
        finally:
            now = self._loop.time()
            for server, since in asked.items():
                if server not in over and now - since >= TRY:
                    self._silence.missed(server, now)
        return next((over[server] for server in servers if over.get(server) is not None), None)

    def _only_silent_left(self, servers: Collection[Upstream], over: dict[Upstream, Answer | None]) -> bool:
        """Whether there is a refusal, and nobody else to wait for who has answered of late."""
        left = [server for server in servers if server not in over]
        return any(over.values()) and all(self._silence.is_silent(server) for server in left)

    def _ask(self, server: Upstream, *, by_stream: bool) -> None:
        if by_stream and server not in self._streams:
            self._streams[server] = self._loop.create_task(self._ask_by_stream(server))
        if server not in self._unreachable:
            self._send(server)

    # --- Datagrams ---

    def _send(self, server: Upstream) -> None:
        """Send a datagram, the first one or one more."""
        try:
            if server not in self._sockets:
                family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
                asking = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                self._sockets[server] = (asking, secrets.randbits(16))
                asking.connect(tuple(server))  # hereafter the kernel drops what others send
                self._loop.add_reader(asking, partial(self._readable, server))
            asking, id = self._sockets[server]
            asking.send(dns.for_upstream(self._query, id, edns=self._speaks_edns(server)))
        except BlockingIOError:
            log.debug("DNS upstream %s: a datagram is lost", server)
        except OSError as error:
            self._datagram_failed(server, error)

    def _readable(self, server: Upstream) -> None:
        asking, id = self._sockets[server]
        try:
            while True:
                response = asking.recv(dns.MAX_MESSAGE)
                if dns.answers(response, self._query, id) and self._take(server, response):
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._datagram_failed(server, error)

    def _take(self, server: Upstream, response: bytes) -> bool:
        """Take a datagram that answers the question; whether it was the last word."""
        if self._speaks_edns(server) and dns.takes_no_edns(response):
            self._plain.add(server)
            asking, _ = self._sockets[server]
            self._sockets[server] = (asking, secrets.randbits(16))
            self._send(server)
            return False
        try:
            answer = _read(response, server)
        except ProtocolError as error:
            log.debug("DNS upstream %s: %s", server, error)
            return False
        if answer is not None and answer.truncated and answer.code not in dns.REFUSALS:
            self._silence.heard(server)
            if server not in self._streams:
                self._streams[server] = self._loop.create_task(self._ask_by_stream(server))
            if not self._stream and server not in self._truncated:
                self._truncated[server] = answer, self._loop.call_later(AGAIN, self._give_truncated, server)
            return False
        self._arrived.put_nowait((server, answer))
        return True

    def _give_truncated(self, server: Upstream) -> None:
        """The whole answer is not to be had by a connection, or not soon."""
        answer, timer = self._truncated[server]
        timer.cancel()
        self._arrived.put_nowait((server, answer))

    def _datagram_failed(self, server: Upstream, error: OSError) -> None:
        """Nobody listens there: perhaps for connections."""
        log.debug("DNS upstream %s: %s", server, error)
        if server not in self._unreachable:
            self._unreachable.add(server)
            if server in self._sockets:
                self._loop.remove_reader(self._sockets[server][0])
            if server not in self._streams:
                self._streams[server] = self._loop.create_task(self._ask_by_stream(server))
            elif self._streams[server].done():
                self._arrived.put_nowait((server, None))

    def _speaks_edns(self, server: Upstream) -> bool:
        return self._query.edns and server not in self._plain

    # --- Streams ---

    async def _ask_by_stream(self, server: Upstream) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(*server)
                try:
                    response = await self._exchange_by_stream(server, reader, writer)
                    if self._speaks_edns(server) and dns.takes_no_edns(response):
                        self._plain.add(server)
                        response = await self._exchange_by_stream(server, reader, writer)
                finally:
                    writer.close()
            self._arrived.put_nowait((server, _read(response, server)))
        except (OSError, TimeoutError, ProtocolError, EOFError) as error:
            log.debug("DNS upstream %s by TCP: %s", server, error)
            if server in self._truncated:
                self._give_truncated(server)
            elif self._stream or server in self._unreachable:
                self._arrived.put_nowait((server, None))

    async def _exchange_by_stream(
        self, server: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        id = secrets.randbits(16)
        writer.write(dns.frame(dns.for_upstream(self._query, id, edns=self._speaks_edns(server))))
        response = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if not dns.answers(response, self._query, id):
            raise ProtocolError("a response to another question")
        return response


def _attempts(servers: Sequence[Upstream], *, stream: bool) -> Iterator[tuple[Upstream, bool, float]]:
    """Whom to ask, whether by a connection as well, and how long to wait before the next attempt.  Without end.

    A lost datagram is sent again before the next server is asked.  Connections come early for a client that came by
    one, and late for the others: where datagrams are dropped they are the only way.
    """
    for server in servers:
        yield server, False, AGAIN
        yield server, stream, TRY - AGAIN
    while True:
        for server in servers:
            yield server, True, TRY


def _read(response: bytes, server: Upstream) -> Answer | None:
    """None for a server that could not read the question, and says no more.  ProtocolError."""
    if response[4:6] == b"\0\0":
        return None
    answer = Answer(response)
    answer.server = str(server)
    return answer
