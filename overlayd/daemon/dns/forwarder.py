"""Asking other servers for names that are not ours.

Owns: the questions in flight, who waits for each, whose turn it is when there are too many, and what is kept in the
cache.  Must not know: how clients reach us (`daemon.dns.nameserver`), how servers are asked (`daemon.dns.exchange`),
what is in a message (`proto.dns`, `_fast.dnscache`).

All of it may be lost at any time: a client asks again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from overlayd._fast.dnscache import Answer, Cache, key_of
from overlayd.daemon.dns import exchange
from overlayd.daemon.dns.exchange import Silence
from overlayd.daemon.dns.loops import Loops
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.daemon.tasks import Spawn
from overlayd.errors import ProtocolError
from overlayd.model.shares import Shares
from overlayd.proto import dns
from overlayd.proto.dns import Query

log = logging.getLogger(__name__)

# Our own constants.
IN_FLIGHT = 1024  # queries that wait
STARTED = 8  # questions that go out before the loop looks at its other work: 50 us each
STALE_AFTER = 1.8  # seconds for an upstream, then an answer whose time is over will do: RFC 8767 section 5
REFRESH = "refresh"  # the way in of questions that nobody waits for


class Origin(NamedTuple):
    """Where a response comes from.  server: in words, None when no server has answered.  stale: its time was over."""

    server: str | None = None
    stale: bool = False


Deliver = Callable[[bytes, Origin], None]


@dataclass(eq=False, slots=True)
class _Waiting:
    """A client's query.  deliver: takes the response."""

    message: bytes
    client: bytes
    stream: bool
    deliver: Deliver
    asked: "_Asked"


@dataclass(eq=False, slots=True)
class _Asked:
    """A question in flight, and who waits for its answer.  edns, stream: as its clients came."""

    key: bytes
    query: Query
    stream: bool
    waiting: dict[_Waiting, None] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    stale: Answer | None = None  # what all are given from now on

    @property
    def id(self) -> tuple[bytes, bool, bool]:
        return self.key, self.query.edns, self.stream


class Forwarder:
    """servers: those to ask now, the first one first.  spawn: starts a task."""

    def __init__(self, servers: Callable[[], Sequence[Upstream]], cache: Cache, spawn: Spawn) -> None:
        self.loops = Loops()
        self._servers = servers
        self._last: Sequence[Upstream] = ()  # those whose answers the cache has
        self._cache = cache
        self._spawn = spawn
        self._silence = Silence()
        self._asked: dict[tuple[bytes, bool, bool], _Asked] = {}
        self._queue: deque[_Asked] = deque()  # those that are yet to go out
        self._shares: Shares[_Waiting] = Shares(IN_FLIGHT)

    def forward(
        self,
        message: bytes,
        ingress: Hashable,
        client: bytes,
        deliver: Deliver,
        *,
        stream: bool,
    ) -> None:
        """Ask for a client, and `deliver` the response, to be sent as it is, once: an upstream's, or else SERVFAIL; b""
        for what is no query after all.

        ingress: where it came in; client: its packed address.  When too many wait, one gives way, by `model.shares`.
        stream: it came by TCP, so the response may be long.
        """
        key = key_of(message)
        try:
            query = dns.read_query(message)
        except ProtocolError as error:
            log.debug("not forwarded: %s", error)
            key = b""
        if not key:
            deliver(b"", Origin())
            return
        asked = self._asked.get((key, query.edns, stream)) or _Asked(key, query, stream)
        waiting = _Waiting(message, client, stream, deliver, asked)
        if self.loops.is_mark(query.name):
            self._give(waiting, Answer.failure(dns.OTHER, "this node asked that itself"))
            return
        if asked.stale is not None:
            self._give(waiting, asked.stale, stale=True)
            return
        asked.waiting[waiting] = None
        self._start(asked)
        displaced = self._shares.add(waiting, ingress, client)
        if displaced is not None:
            self._leave(displaced)
            self._give(displaced, Answer.failure(dns.OTHER, "too many queries wait for their answers"))

    def refresh(self, message: bytes) -> None:
        """Ask anew for what the cache has, for nobody.  Left out when the places are taken."""
        if len(self._shares) < IN_FLIGHT // 2:
            self.forward(message, REFRESH, b"", lambda response, origin: None, stream=False)

    def follow_servers(self) -> None:
        """What other servers answered is not what these would: ask again."""
        servers = self._servers()
        if servers != self._last:
            self._last = servers
            self._cache.clear()

    def upstreams(self) -> list[tuple[Upstream, str]]:
        """The servers as they are now, in their order, each with "ok", "silent" or "loop"."""
        return [
            (server, "loop" if server in self.loops.looping else "silent" if self._silence.is_silent(server) else "ok")
            for server in self._servers()
        ]

    def close(self) -> None:
        """Forget what is in flight."""
        self._queue.clear()
        for asked in self._asked.values():
            if asked.task is not None:
                asked.task.cancel()

    def _start(self, asked: _Asked) -> None:
        if asked.id not in self._asked:
            self._asked[asked.id] = asked
            self._queue.append(asked)
            if len(self._queue) == 1:
                asyncio.get_running_loop().call_soon(self._send_some)

    def _send_some(self) -> None:
        for _ in range(min(STARTED, len(self._queue))):
            asked = self._queue.popleft()
            if asked.waiting:
                asked.task = self._spawn(self._carry_out(asked))
        if self._queue:
            asyncio.get_running_loop().call_soon(self._send_some)

    def _leave(self, waiting: _Waiting) -> None:
        """One that waited does no more; what nobody waits for is not asked on."""
        asked = waiting.asked
        del asked.waiting[waiting]
        if not asked.waiting:
            del self._asked[asked.id]
            if asked.task is not None:
                asked.task.cancel()

    async def _carry_out(self, asked: _Asked) -> None:
        loop = asyncio.get_running_loop()
        self.follow_servers()
        servers = self._last
        asking = [server for server in servers if server not in self.loops.looping]
        self.loops.check(servers)
        stale = self._cache.stale(asked.key, loop.time())
        late = None
        if stale is not None and asking:
            silent = all(self._silence.is_silent(server) for server in asking)
            late = loop.call_later(0.0 if silent else STALE_AFTER, self._give_stale, asked, stale)
        try:
            answer = await exchange.ask(asked.query, asking, self._silence, stream=asked.stream)
        finally:
            if late is not None:
                late.cancel()
            if self._asked.get(asked.id) is asked:
                del self._asked[asked.id]
        if answer is not None and servers is self._last:
            self._cache.put(asked.key, answer, loop.time())
        if answer is None and stale is not None:
            self._give_stale(asked, stale)
        self._give_all(asked, answer or _failure(servers, asking))

    def _give_stale(self, asked: _Asked, stale: Answer) -> None:
        asked.stale = stale
        self._give_all(asked, stale, stale=True)

    def _give_all(self, asked: _Asked, answer: Answer, *, stale: bool = False) -> None:
        waiting, asked.waiting = asked.waiting, {}
        for each in waiting:
            self._shares.remove(each)
            self._give(each, answer, stale=stale)

    def _give(self, waiting: _Waiting, answer: Answer, *, stale: bool = False) -> None:
        response = self._cache.give(answer, waiting.message, waiting.stream, waiting.client, stale)
        waiting.deliver(response, Origin(answer.server, stale))


def _failure(servers: Sequence[Upstream], asked: Sequence[Upstream]) -> Answer:
    """Why there is no answer."""
    if not servers:
        return Answer.failure(dns.OTHER, "this node knows no server to forward to")
    if not asked:
        return Answer.failure(dns.OTHER, f"{', '.join(map(str, servers))} would forward to this node again")
    return Answer.failure(dns.NO_REACHABLE_AUTHORITY, f"no answer from {', '.join(map(str, asked))}")
