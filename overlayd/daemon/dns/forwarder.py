"""Asking other servers for names that are not ours.

Owns: the questions in flight, who waits for each, whose turn it is when there are too many, and what is kept in the
cache.  Must not know: how clients reach us (`daemon.dns.nameserver`), how servers are asked (`daemon.dns.exchange`),
what is in a message (`proto.dns`, `_fast.dnscache`).

All of it may be lost at any time: a client asks again.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

from overlayd._fast.dnscache import Answer, Cache
from overlayd._fast.dnsforward import Query
from overlayd.daemon.dns.deadlines import Deadlines
from overlayd.daemon.dns.exchange import Exchange, Means, Silence
from overlayd.daemon.dns.loops import Loops
from overlayd.daemon.dns.upstream_sockets import UpstreamSockets
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.errors import ProtocolError
from overlayd.model.shares import Shares
from overlayd.proto import dns

log = logging.getLogger(__name__)

# Our own constants.
IN_FLIGHT = 1024  # queries that wait
STALE_AFTER = 1.8  # seconds for an upstream, then an answer whose time is over will do: RFC 8767 section 5
REFRESH = "refresh"  # the way in of questions that nobody waits for


class Origin(NamedTuple):
    """Where a response comes from.  server: in words, None when no server has answered.  stale: its time was over."""

    server: str | None = None
    stale: bool = False


Deliver = Callable[[bytes, Origin], None]


class _Waiting:
    """A client's query.  client: its packed address; deliver: takes the response."""

    __slots__ = ("asked", "client", "deliver", "message", "stream")

    def __init__(self, message: bytes, client: bytes, deliver: Deliver, asked: "_Asked", *, stream: bool) -> None:
        self.message = message
        self.client = client
        self.deliver = deliver
        self.asked = asked
        self.stream = stream


class _Asked:
    """A question in flight, and who waits for its answer.  id: what its clients have in common."""

    __slots__ = ("exchange", "id", "query", "stale", "stream", "waiting")

    def __init__(self, id: "_Id", query: Query, *, stream: bool) -> None:
        self.id = id
        self.query = query
        self.stream = stream
        self.waiting: dict[_Waiting, None] = {}
        self.exchange: Exchange | None = None
        self.stale: Answer | None = None  # what all are given from now on


_Id = tuple[bytes, bool, bool]  # key of the query, whether it has an OPT record, whether it came by a stream


class Forwarder:
    """servers: those to ask now, the first one first.  `follow_servers` is to be called before `forward`."""

    def __init__(self, servers: Callable[[], Sequence[Upstream]], cache: Cache) -> None:
        self.loops = Loops()
        self._servers = servers
        self._last: Sequence[Upstream] = ()  # those whose answers the cache has
        self._cache = cache
        self._loop = asyncio.get_running_loop()
        silence = Silence()
        self._means = Means(UpstreamSockets(partial(silence.heard, by_datagram=True)), Deadlines(), silence)
        self._asked: dict[_Id, _Asked] = {}
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
        try:
            query = Query(message)
        except ProtocolError as error:
            log.debug("not forwarded: %s", error)
            deliver(b"", Origin())
            return
        id = query.key, query.edns, stream
        asked = self._asked.get(id)
        is_new = asked is None
        if asked is None:
            asked = _Asked(id, query, stream=stream)
        waiting = _Waiting(message, client, deliver, asked, stream=stream)
        looping = self.loops.find(query)
        if looping is not None:
            self._give(waiting, Answer.failure(dns.OTHER, "this node asked that itself"))
            self._leave_server(looping)
            return
        if asked.stale is not None:
            self._give(waiting, asked.stale, stale=True)
            return
        asked.waiting[waiting] = None
        if is_new:
            self._asked[id] = asked
        displaced = self._shares.add(waiting, ingress, client)
        if displaced is not None:
            self._leave(displaced)
            self._give(displaced, Answer.failure(dns.OTHER, "too many queries wait for their answers"))
        if is_new and asked.waiting:
            self._begin(asked)

    def refresh(self, message: bytes) -> None:
        """Ask again for what the cache has, for nobody.  Left out when the places are taken."""
        if len(self._shares) < IN_FLIGHT // 2:
            self.forward(message, REFRESH, b"", lambda response, origin: None, stream=False)

    def follow_servers(self) -> None:
        """What other servers answered is not what these would: ask again."""
        servers = self._servers()
        if servers != self._last:
            self._last = servers
            self._cache.clear()
            self._means.sockets.keep(servers)

    def upstreams(self) -> list[tuple[Upstream, str]]:
        """The servers as they are now, in their order, each with "ok", "silent" or "loop"."""
        return [(server, self._state_of(server)) for server in self._servers()]

    def _state_of(self, server: Upstream) -> str:
        if server in self.loops.looping:
            return "loop"
        return "silent" if self._means.silence.is_dead(server, self._loop.time()) else "ok"

    def close(self) -> None:
        """Forget what is in flight."""
        for asked in self._asked.values():
            if asked.exchange is not None:
                asked.exchange.cancel()
        self._means.deadlines.close()
        self._means.sockets.close()

    def _leave_server(self, server: Upstream) -> None:
        """Whoever waits for an answer of a server that loops waits for nothing."""
        for exchange in [asked.exchange for asked in self._asked.values() if asked.exchange is not None]:
            exchange.leave(server)

    def _leave(self, waiting: _Waiting) -> None:
        """One that waited does no more; what nobody waits for is not asked on."""
        asked = waiting.asked
        del asked.waiting[waiting]
        if not asked.waiting:
            del self._asked[asked.id]
            if asked.exchange is not None:
                asked.exchange.cancel()

    def _begin(self, asked: _Asked) -> None:
        """Ask."""
        servers = self._last
        asking = servers
        if self.loops.looping:
            asking = [server for server in servers if server not in self.loops.looping]
        now = self._loop.time()
        silence = self._means.silence
        self.loops.check(servers, now, silence.has_missed)
        stale = self._cache.stale(asked.query.key, now)
        if stale is not None and asking:
            dead = all(silence.is_dead(server, now) for server in asking)
            self._loop.call_later(0.0 if dead else STALE_AFTER, self._give_stale, asked, stale)
        ended = partial(self._end, asked, servers, asking)
        asked.exchange = Exchange(asked.query, asking, self._means, ended, stream=asked.stream)
        asked.exchange.begin()

    def _end(
        self, asked: _Asked, servers: Sequence[Upstream], asking: Sequence[Upstream], answer: Answer | None
    ) -> None:
        """The exchange has ended."""
        asked.exchange = None
        if self._asked.get(asked.id) is asked:
            del self._asked[asked.id]
        now = self._loop.time()
        if answer is not None and servers is self._last and not _is_makeshift(answer, asking):
            self._cache.put(asked.query.key, answer, now)
        if answer is None:
            self.loops.doubt(asking)
        failed = answer is None or answer.code == dns.SERVFAIL  # RFC 8767 section 4; a refusal is meant
        stale = self._cache.stale(asked.query.key, now) if failed else None
        if stale is not None:
            self._give_all(asked, stale, stale=True)
        else:
            asking = [server for server in asking if server not in self.loops.looping]
            self._give_all(asked, answer or _failure(servers, asking))

    def _give_stale(self, asked: _Asked, stale: Answer) -> None:
        if asked.exchange is not None:
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


def _is_makeshift(answer: Answer, asked: Sequence[Upstream]) -> bool:
    """Whether it says that there is nothing for want of the first server, which may know better when it is back."""
    return (answer.code == dns.NXDOMAIN or answer.empty) and answer.server != str(asked[0])


def _failure(servers: Sequence[Upstream], asked: Sequence[Upstream]) -> Answer:
    """Why there is no answer.  asked: of these servers."""
    if not servers:
        return Answer.failure(dns.OTHER, "this node knows no server to forward to")
    if not asked:
        return Answer.failure(dns.OTHER, f"{', '.join(map(str, servers))} would forward to this node again")
    return Answer.failure(dns.NO_REACHABLE_AUTHORITY, f"no answer from {', '.join(map(str, asked))}")
