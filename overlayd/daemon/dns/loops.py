"""Upstream servers that ask us what we have just asked them.

Owns: the marks that go to each server now and then, and which servers loop.  Must not know: other questions.

A mark is a question of ours for a random name.  When it comes in as a query, the server that it went to forwards to
this node: the host's own resolver, perhaps, that was told to use a gateway of ours.  Such a server is named in the log
and by the doctor, and is not asked until its marks stay away.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Sequence

from overlayd._fast.dnsforward import Query
from overlayd._fast.dnsquery import wire_name
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.proto import dns

log = logging.getLogger(__name__)

# A name that nobody has: RFC 6761 section 6.2.
_BELOW = wire_name("overlayd-loop.test")
_TXT_IN = b"\0\x10\0\x01"

# Our own constants, in seconds.
PERIOD = 60.0  # from one mark to the next of a server that is in use
RETURN = 5.0  # for a mark to come back


class Loops:
    """looping: the servers that forward to us."""

    def __init__(self) -> None:
        self.looping: set[Upstream] = set()
        self._marked: dict[Upstream, float] = {}
        self._marks: dict[bytes, Upstream] = {}  # by wire name, while they may come back
        self._back: set[bytes] = set()  # those that did
        self._doubted: set[Upstream] = set()

    def check(self, servers: Sequence[Upstream], now: float, has_missed: Callable[[Upstream], bool]) -> None:
        """Mark those servers whose turn it is.  has_missed: whether one owes us an answer, as one that loops does; then
        it is its turn as soon as the mark before has had its time, as that of one in doubt is.
        """
        for server in servers:
            soon = server in self._doubted or has_missed(server)
            if now - self._marked.get(server, -PERIOD) >= (RETURN if soon else PERIOD):
                self._doubted.discard(server)
                self._marked[server] = now
                name = wire_name(secrets.token_hex(8))[:-1] + _BELOW
                self._marks[name] = server
                asyncio.get_running_loop().call_later(RETURN, self._over, name)
                _send(server, name)

    def doubt(self, servers: Sequence[Upstream]) -> None:
        """A question to these servers came to nothing: one that loops may still say something, too late."""
        self._doubted.update(servers)

    def find(self, query: Query) -> Upstream | None:
        """The server that loops, for one of our marks has come back by it; None for every other query, as for the marks
        of another node, which may loop by way of us.
        """
        server = self._marks.get(query.name)
        if server is not None:
            self._back.add(query.name)
            if server not in self.looping:
                self.looping.add(server)
                log.warning(
                    "DNS upstream %s forwards to this node, so it is not asked: let it ask other servers, or choose "
                    "others with --dns-upstream",
                    server,
                )
        return server

    def _over(self, name: bytes) -> None:
        server = self._marks.pop(name)
        if name in self._back:
            self._back.remove(name)
        elif server in self.looping:
            self.looping.remove(server)
            log.info("DNS upstream %s no longer forwards to this node", server)


def _send(server: Upstream, name: bytes) -> None:
    family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
    with (
        contextlib.suppress(OSError),  # it cannot be reached, so it does not loop
        socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asking,
    ):
        asking.connect(tuple(server))
        asking.send(dns.query(name + _TXT_IN, secrets.randbits(16)))
