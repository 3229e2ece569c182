"""One question to the upstream servers.

Owns: which server is asked when and how, and which servers have been silent lately.  Must not know: who asked us, or
what is kept (`daemon.dns.forwarder`); sockets and ids (`daemon.dns.upstream_sockets`); what is in a message
(`_fast.dnsforward`, `_fast.dnscache`).

The servers are asked in their order, each question from the first one on, as resolv.conf(5) has it: the first may know
names that the others do not.  A server that has been asked is listened to until the end, so that a slow one's answer
counts, and that there is no such name is believed of a later server only when those before it have had their time.
One that refuses (SERVFAIL, REFUSED) is passed over for this question alone.

Nearly every question is one datagram and its answer: it has no task and no timer, only a place among the deadlines.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from overlayd._fast.dnscache import Answer
from overlayd._fast.dnsforward import Query
from overlayd.daemon.dns.deadlines import Deadlines
from overlayd.daemon.dns.upstream_sockets import Port, UpstreamSockets
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.errors import ProtocolError
from overlayd.proto import dns

log = logging.getLogger(__name__)

# Our own constants, in seconds but for the last two.
RESTART = 1.0  # until servers are asked again where nobody listens: they may be restarting
AGAIN = 0.75  # until a datagram is sent once more, since it may have been lost
TRY = 1.5  # until the next server is asked as well
PATIENCE = 4.5  # for all; C libraries ask again after 5
SILENT = 5.0  # for which a server that does not answer is asked last, and one that refuses connections has none
MISSED = 3  # questions in a row that it has not answered
PLAIN_AFTER = 2  # datagrams that came to nothing: the next one is sent without EDNS


class Silence:
    """Which servers have not answered lately: they are asked last, so that a dead one does not cost each question a
    TRY.  One question in SILENT seconds tries whether they are back.
    """

    def __init__(self) -> None:
        self._missed: dict[Upstream, int] = {}
        self._until: dict[Upstream, float] = {}
        self._refusing: dict[Upstream, float] = {}  # nobody listens there, and until when that is believed
        self._by_stream: set[Upstream] = set()  # those that have answered by a connection, and to no datagram since

    def heard(self, server: Upstream, *, by_datagram: bool = False) -> None:
        """It has answered, however late: it is slow, perhaps, and not silent."""
        if by_datagram and self._by_stream:
            self._by_stream.discard(server)
        if self._refusing:
            self._refusing.pop(server, None)
        if self._missed:
            self._missed.pop(server, None)
            self._until.pop(server, None)

    def missed(self, server: Upstream, now: float) -> None:
        """It has not answered a question in time."""
        self._missed[server] = self._missed.get(server, 0) + 1
        if self._missed[server] == MISSED:
            log.debug("DNS upstream %s does not answer", server)
            self._until[server] = now + SILENT

    def heard_by_stream_alone(self, server: Upstream) -> None:
        """It has answered by a connection, and to none of some datagrams: these are dropped on the way, perhaps."""
        self._by_stream.add(server)

    def wants_stream(self, server: Upstream) -> bool:
        """Whether to ask it by a connection at once."""
        return server in self._by_stream

    def refused(self, server: Upstream, now: float) -> None:
        """It takes neither datagrams nor connections."""
        self._refusing[server] = now + SILENT

    def is_refusing(self, server: Upstream, now: float) -> bool:
        return self._refusing.get(server, now) > now

    def is_silent(self, server: Upstream) -> bool:
        return server in self._until

    def is_dead(self, server: Upstream, now: float) -> bool:
        """Whether there is little hope for an answer."""
        return self.is_silent(server) or self.is_refusing(server, now)

    def has_missed(self, server: Upstream) -> bool:
        """Whether it has not answered the last question, at least."""
        return server in self._missed

    def ordered(self, servers: Sequence[Upstream], now: float) -> Sequence[Upstream]:
        """The servers in the order in which this question is for them."""
        if not self._until:
            return servers
        last = []
        for server in servers:
            until = self._until.get(server)
            if until is not None and now < until:
                last.append(server)
            elif until is not None:
                self._until[server] = now + SILENT  # this question tries it, the next ones wait for what comes of it
        return [server for server in servers if server not in last] + last


class Means(NamedTuple):
    """What all exchanges have together."""

    sockets: UpstreamSockets
    deadlines: Deadlines
    silence: Silence


class Exchange:
    """A question to these servers.  `begin` asks, and `ended` hears once of what came of it: the first answer with
    records, else that of the first server that knows of none, else a refusal, else None.

    What is truncated is fetched whole by a connection: it may well fit what the client takes, and there are C libraries
    that never ask by a connection themselves.  stream: truncated is not enough; else it is when that takes too long.
    """

    __slots__ = (
        "_asked",
        "_attempts",
        "_begun_anew",
        "_due",
        "_end",
        "_ended",
        "_loop",
        "_ordered",
        "_servers",
        "_tick",
        "means",
        "over",
        "query",
        "stream",
    )

    def __init__(
        self,
        query: Query,
        servers: Sequence[Upstream],
        means: Means,
        ended: Callable[[Answer | None], None],
        *,
        stream: bool,
    ) -> None:
        self.query = query
        self.means = means
        self.stream = stream
        self.over = False
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._end = self._due + PATIENCE
        self._servers = servers
        self._ordered = means.silence.ordered(servers, self._due)
        self._attempts = 0  # that were made
        self._begun_anew = False
        self._asked: dict[Upstream, _Trial] = {}
        self._tick = 0  # of the deadline

    def begin(self) -> None:
        self._go_on(self._due)

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if not self.over:
            self._close(self._loop.time())

    def leave(self, server: Upstream) -> None:
        """Wait no longer for this server, which has been asked."""
        trial = self._asked.get(server)
        if trial is not None and not trial.over:
            self.arrived(trial, None)

    def arrived(self, trial: "_Trial", answer: Answer | None) -> None:
        """A server has said its last word, None when it cannot be asked, or could not read the question."""
        if self.over:
            return
        now = self._loop.time()
        if answer is not None:
            self.means.silence.heard(trial.server)
            if answer.code not in dns.REFUSALS and not answer.empty:
                self._end_with(answer, now)
                return
        if not trial.over:
            trial.over = True
            trial.said = answer
        nothing = self._nothing_there()
        if nothing is not None:
            self._end_with(nothing, now)
        elif answer is None or answer.code in dns.REFUSALS:
            self._due = now  # for the next one
            self._go_on(now)

    def _wake(self) -> None:
        self._tick = 0
        if not self.over:
            self._go_on(self._loop.time())

    def _set_deadline(self) -> None:
        deadlines = self.means.deadlines
        if self._tick:
            deadlines.forget(self._tick, self._wake)
        self._tick = deadlines.call_at(min(self._due, self._end), self._wake)

    def _go_on(self, now: float) -> None:
        """Ask those whose turn it is; the end when there is nobody left to wait for."""
        while now < self._end and self._someone_left():
            if now < self._due:
                if self._only_silent_left():
                    break
                self._set_deadline()
                return
            server, by_stream, pause = _attempt(self._attempts, self._ordered, stream=self.stream)
            self._attempts += 1
            trial = self._asked.get(server)
            if trial is None:
                trial = self._asked[server] = _Trial(self, server, now)
            if not trial.over:
                self._due = now + pause
                trial.ask(by_stream=by_stream or self.means.silence.wants_stream(server))
        asked = self._asked.values()
        if asked and not self._begun_anew and now < self._end and all(trial.refused for trial in asked):
            self._begin_anew(now)
            return
        trials = (self._asked.get(server) for server in self._servers)
        said = [trial.said for trial in trials if trial and trial.said]
        self._end_with(min(said, key=lambda answer: answer.code in dns.REFUSALS, default=None), now)

    def _nothing_there(self) -> Answer | None:
        """The first server's word that there is nothing, unless one before it may still know better.  Who has not
        answered lately is not waited for.
        """
        for server in self._servers:
            trial = self._asked.get(server)
            if trial is None or not trial.over:
                if not self.means.silence.is_silent(server):
                    return None
            elif trial.said is not None and trial.said.code not in dns.REFUSALS:
                return trial.said
        return None

    def _begin_anew(self, now: float) -> None:
        """Nobody listens anywhere, which may be over in a moment."""
        self._begun_anew = True
        self._attempts = 0
        self._asked = {}
        self._due = now + RESTART
        self._set_deadline()

    def _someone_left(self) -> bool:
        asked = self._asked
        return len(asked) < len(self._servers) or any(not trial.over for trial in asked.values())

    def _only_silent_left(self) -> bool:
        """Whether somebody has said a last word, and there is nobody else to wait for who has answered lately."""
        asked, silence = self._asked, self.means.silence
        if not any(trial.said for trial in asked.values()):
            return False
        left = (server for server in self._servers if server not in asked or not asked[server].over)
        return all(silence.is_silent(server) for server in left)

    def _end_with(self, answer: Answer | None, now: float) -> None:
        self._close(now)
        self._ended(answer)

    def _close(self, now: float) -> None:
        self.over = True
        if self._tick:
            self.means.deadlines.forget(self._tick, self._wake)
        for trial in self._asked.values():
            if now - trial.since >= TRY and not trial.over and not trial.heard:
                self.means.silence.missed(trial.server, now)
            trial.close()
        self._asked = {}  # they know us


class _Trial:
    """One server that is asked.  since: when it was asked first; over: it has said its last word; said: that word, when
    it is a refusal or that there is nothing; heard: that it is there; refused: nobody listens there.
    """

    __slots__ = (
        "_edns",
        "_exchange",
        "_sent",
        "_stream",
        "_truncated",
        "_unreachable",
        "heard",
        "over",
        "refused",
        "said",
        "server",
        "since",
    )

    def __init__(self, exchange: Exchange, server: Upstream, since: float) -> None:
        self.server = server
        self.since = since
        self.over = self.heard = self.refused = False
        self.said: Answer | None = None
        self._exchange = exchange
        self._edns = exchange.query.edns
        self._sent: tuple[tuple[Port, int], ...] = ()
        self._unreachable = False  # by datagrams
        self._stream: asyncio.Task[None] | None = None
        self._truncated: Answer | None = None  # that will do after a while

    def ask(self, *, by_stream: bool) -> None:
        """Send a datagram, the first one or one more, and ask by a connection, once."""
        if by_stream:
            self._ask_by_stream()
        if not self._unreachable:
            self._send()

    def close(self) -> None:
        self._forget()
        if self._stream is not None:
            self._stream.cancel()

    # --- Datagrams ---

    def _send(self) -> None:
        exchange = self._exchange
        # There are firewalls that drop queries with an OPT record; who asks for signatures needs it.
        edns = self._edns and (len(self._sent) < PLAIN_AFTER or exchange.query.dnssec)
        try:
            sent = exchange.means.sockets.ask(self.server, exchange.query, self, edns=edns)
        except OSError as error:
            self.unreachable(error)
        else:
            self._sent += (sent,)

    def _forget(self) -> None:
        """Take no more answers to what was sent so far."""
        for port, id in self._sent:
            self._exchange.means.sockets.forget(port, id)
        self._sent = ()

    def receive(self, response: bytes) -> None:
        """A datagram that answers the question."""
        exchange = self._exchange
        if exchange.over or self.over:
            return
        if self._edns and dns.takes_no_edns(response):
            self._edns = False
            self._forget()
            self._send()
            return
        try:
            answer = _read(response, self.server)
        except ProtocolError as error:
            log.debug("DNS upstream %s: %s", self.server, error)
            self._ask_by_stream()  # cut on the way, perhaps, or a forgery: the true one is still waited for
            return
        exchange.means.silence.heard(self.server, by_datagram=True)
        if answer is None or not answer.truncated or answer.code in dns.REFUSALS:
            exchange.arrived(self, answer)
            return
        self.heard = True
        self._ask_by_stream()
        if not exchange.stream and self._truncated is None:
            self._truncated = answer
            asyncio.get_running_loop().call_later(AGAIN, self._give_truncated)

    def _give_truncated(self) -> None:
        """The whole answer is not to be had by a connection, or not soon."""
        if not self._exchange.over:
            self._exchange.arrived(self, self._truncated)

    def unreachable(self, error: OSError) -> None:
        """Nobody listens there: perhaps for connections."""
        log.debug("DNS upstream %s: %s", self.server, error)
        if self._unreachable or self._exchange.over:
            return
        self._unreachable = True
        self._forget()
        loop, silence = asyncio.get_running_loop(), self._exchange.means.silence
        self.refused = isinstance(error, ConnectionRefusedError) and silence.is_refusing(self.server, loop.time())
        if self.refused or (self._stream is not None and self._stream.done()):
            loop.call_soon(self._exchange.arrived, self, None)  # not at once: an attempt is being made
        else:
            self._ask_by_stream()

    # --- Streams ---

    def _ask_by_stream(self) -> None:
        if self._stream is None:
            self._stream = asyncio.get_running_loop().create_task(self._exchange_by_stream())

    async def _exchange_by_stream(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(*self.server)
                try:
                    response = await self._ask_in_stream(reader, writer)
                    if self._edns and dns.takes_no_edns(response):
                        self._edns = False
                        response = await self._ask_in_stream(reader, writer)
                finally:
                    writer.close()
            answer = _read(response, self.server)
        except (OSError, TimeoutError, ProtocolError, EOFError) as error:
            log.debug("DNS upstream %s by TCP: %s", self.server, error)
            if self._truncated is not None:
                self._give_truncated()
            elif self._unreachable or (self._exchange.stream and self.heard):  # else a datagram may still come
                self.refused = self._unreachable and isinstance(error, ConnectionRefusedError)
                if self.refused:
                    self._exchange.means.silence.refused(self.server, asyncio.get_running_loop().time())
                self._exchange.arrived(self, None)
        else:
            if not self.heard and len(self._sent) > 1:
                self._exchange.means.silence.heard_by_stream_alone(self.server)
            self._exchange.arrived(self, answer)

    async def _ask_in_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        query, id = self._exchange.query, secrets.randbits(16)
        writer.write(dns.frame(query.for_upstream(id, edns=self._edns)))
        response = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if not query.answered_by(response, id):
            raise ProtocolError("a response to another question")
        return response


def _attempt(number: int, servers: Sequence[Upstream], *, stream: bool) -> tuple[Upstream, bool, float]:
    """Whom to ask in this attempt, from 0, whether by a connection as well, and how long to wait before the next one.

    A lost datagram is sent again before the next server is asked.  Connections come early for a client that came by
    one, and late for the others: where datagrams are dropped they are the only way.
    """
    if number < 2 * len(servers):
        server = servers[number >> 1]
        return (server, stream, TRY - AGAIN) if number & 1 else (server, False, AGAIN)
    return servers[number % len(servers)], True, TRY


def _read(response: bytes, server: Upstream) -> Answer | None:
    """None for a server that could not read the question, and says no more.  ProtocolError."""
    if response[4:6] == b"\0\0":
        return None
    answer = Answer(response)
    answer.server = str(server)
    return answer
