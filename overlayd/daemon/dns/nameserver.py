"""The node's name server: registered names for containers, and the way to all others.

Owns: its sockets, two for each address it serves, and when they open and close.  Must not know: which names there are
(`model.zone`), what is in a message (`_fast.nametable`), how others are asked (`daemon.dns.forwarder`).

It listens at the gateway of every service, and at the node address when it is asked to: an orchestrator may have a
resolver of its own there.  Never at the wildcard address: the host has one, too.  Only hosts of the cluster are
answered, so that nobody outside can use it, neither to learn names nor to send answers to a third party.
"""

import asyncio
import errno
import logging
import secrets
import select
import socket
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from overlayd._fast.dnscache import Cache, key_of
from overlayd._fast.dnsquery import SECRET
from overlayd.daemon.change.node import Node
from overlayd.daemon.dns.forwarder import Forwarder, Origin
from overlayd.daemon.dns.stream import Streams
from overlayd.daemon.dns.upstreams import PORT, Upstream, Upstreams
from overlayd.daemon.tasks import Spawn
from overlayd.linux.datagrams import Datagrams
from overlayd.model.layout import endpoint_text
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.rows import Change, Overlay, Service
from overlayd.model.zone import Zone, served_address

log = logging.getLogger(__name__)

# Our own constants.
SLICE = 0.0005  # seconds of serving datagrams, and a last batch, then the loop looks at its other work
BACKLOG = 128  # TCP connections that wait to be accepted
# Bytes of queries that wait on a socket while the loop is at other work.  The kernel doubles it, and counts some 800
# for a query: 2,600, more than come in 5 ms.
RECEIVE_BUFFER = 1024 * 1024
CACHED, CACHED_BYTES = 16_384, 8 * 1024 * 1024  # answers of upstreams
OWN = "node"  # the way in of this node's own queries
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds until an address is tried again, doubling

# linux/in.h, linux/in6.h, asm-generic/socket.h; Python does not have them.
_IP_FREEBIND, _IPV6_FREEBIND, _SO_RCVBUFFORCE = 15, 78, 33


class Sockets(NamedTuple):
    """Those of one address."""

    udp: socket.socket
    tcp: socket.socket


class Unserved(NamedTuple):
    """An address that could not be bound.  failures: how often in a row; retry: the next time."""

    problem: str
    remedy: str
    failures: int
    retry: asyncio.TimerHandle


class Nameserver:
    """At work within `running`.  zone: of one-label names, empty for the cluster's.  port: 0 for none at all.  given:
    the upstreams, none for those of the host.  spawn: starts a task.  at_node_address: serve there, too.
    """

    def __init__(
        self, node: Node, zone: str, port: int, given: Sequence[Upstream], spawn: Spawn, *, at_node_address: bool
    ) -> None:
        upstreams = Upstreams(given)
        self.port = port
        self._at_node_address = at_node_address
        self.unserved: dict[Address, Unserved] = {}  # for the doctor
        self._node = node
        secret = secrets.token_bytes(SECRET)
        self._zone = Zone(node.state, zone, secret)
        self.cache = Cache(CACHED, CACHED_BYTES, secret)
        self._forwarder = Forwarder(lambda: upstreams.other_than(self._sockets, port), self.cache)
        self._spawn = spawn
        self._datagrams = Datagrams(self._zone.table, self.cache, self._forwarder.follow_servers)
        self._streams = Streams(self._zone.table, self.cache, self._forwarder)
        self._addresses: dict[str, Address] = {}  # by scope
        self._sockets: dict[Address, Sockets] = {}
        self._servers: dict[Address, asyncio.Server] = {}
        self._udp: dict[int, socket.socket] = {}  # by descriptor
        # All datagram sockets behind one descriptor: the kernel shows those that are ready in turns, a few at a time,
        # so that a flood at many addresses delays neither the rest of the loop nor each other.
        self._ready = select.epoll()
        if port:
            asyncio.get_running_loop().add_reader(self._ready.fileno(), self._readable)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer as the state is, until the block ends."""
        with self._node.subscribe(self.follow):
            try:
                self._serve_all()
                yield
            finally:
                self._close()

    def _serve_all(self) -> None:
        self._apply_overlay()
        for scope in (GLOBAL, *self._node.state.table(Service)):
            self._apply_scope(scope)

    def follow(self, change: Change) -> None:
        """Answer as the state is now, at the addresses that there are now."""
        self._zone.follow(change)
        for table, key in change:
            if table == Overlay.table:
                self._apply_overlay()
                self._apply_scope(GLOBAL)
            elif table == Service.table:
                self._apply_scope(key)

    @property
    def zone(self) -> str:
        """That of one-label names."""
        return self._zone.name

    def names(self) -> dict[str, tuple[Address, ...]]:
        """Those that are registered by now, here or by another node of the cluster, and their addresses."""
        return self._zone.names()

    def upstreams(self) -> list[tuple[Upstream, str]]:
        """The servers for other names, in their order, each with "ok", "silent" or "loop"."""
        return self._forwarder.upstreams()

    async def ask(self, query: bytes) -> tuple[bytes, str, str | None]:
        """What this server says to a query of the node's own, which hears of every name.  Returns the response; where
        it comes from, "own", "cache", "upstream", "stale", or "none" when nobody has an answer; and which upstream it
        was.
        """
        node = self._node.state.node_address
        client = node.packed if node is not None else b""
        response = self._zone.table.respond(query, True, client)
        if response is not None:
            return response, "own", None
        self._forwarder.follow_servers()
        now = time.monotonic()
        response = self.cache.respond(query, True, client, now)
        if response is not None:
            kept = self.cache.stale(key_of(query), now)
            return response, "cache", kept.server if kept is not None else None
        coming: asyncio.Future[tuple[bytes, Origin]] = asyncio.get_running_loop().create_future()

        def deliver(response: bytes, origin: Origin) -> None:
            if not coming.done():  # who asked may have gone
                coming.set_result((response, origin))

        self._forwarder.forward(query, OWN, client, deliver, stream=True)
        response, origin = await coming
        return response, "stale" if origin.stale else "upstream" if origin.server else "none", origin.server

    @property
    def looping(self) -> Collection[Upstream]:
        """The upstreams that forward to this node, for the doctor."""
        return self._forwarder.loops.looping

    def announced_to(
        self, services: Sequence[str], reach: Collection[Network] | None = None
    ) -> tuple[Address | None, str]:
        """The name server and the domain for somebody outside who uses `services`: the node address while it is served,
        else the gateway of the first of these services, else of another one.  reach: where they can ask, None for
        everywhere.  None and "" while there is no server for them: they ask at port 53.
        """
        table = self._node.state.table(Service)
        others = sorted(self._addresses, key=lambda scope: (scope not in table or not table[scope].lasting, scope))
        for scope in (GLOBAL, *services, *others) if self.port == PORT else ():
            address = self._addresses.get(scope)
            if address in self._sockets and (reach is None or any(address in network for network in reach)):
                return address, self._zone.name
        return None, ""

    def _close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ready.fileno())
        for address in [*self._sockets, *self.unserved]:
            self._leave(address)
        self._streams.close()
        self._ready.close()
        self._forwarder.close()

    # --- Which addresses ---

    def _apply_overlay(self) -> None:
        """Who may ask."""
        overlay = self._node.state.get(Overlay)
        if overlay is not None:
            self._datagrams.admit(overlay.cluster.network_address.packed, overlay.cluster.prefixlen)
            self._streams.admitted = overlay.cluster

    def _apply_scope(self, scope: str) -> None:
        """Where to listen for a service's containers, or everybody's."""
        if not self.port or (scope == GLOBAL and not self._at_node_address):
            return
        old = self._addresses.pop(scope, None)
        address = served_address(self._node.state, scope, devices=self._node.facts.devices)
        if address is not None:
            self._addresses[scope] = address
        # Without a slice the node and a service may have one address.
        if old is not None and old not in self._addresses.values():
            self._leave(old)
        if address is not None and address not in self._sockets and address not in self.unserved:
            self._serve(address)

    def _serve(self, address: Address, failures: int = 0) -> None:
        try:
            sockets = _bind(address, self.port)
        except OSError as error:
            problem, remedy = _advice(error, self.port)
            if not failures:
                log.warning("DNS at %s %s; it is tried again: %s", endpoint_text((address, self.port)), problem, remedy)
            pause = min(FIRST_PAUSE * 2.0 ** min(failures, 16), LONGEST_PAUSE)
            retry = asyncio.get_running_loop().call_later(pause, self._again, address)
            self.unserved[address] = Unserved(problem, remedy, failures + 1, retry)
            return
        log.info("DNS at %s", endpoint_text((address, self.port)))
        self._sockets[address] = sockets
        self._udp[sockets.udp.fileno()] = sockets.udp
        self._ready.register(sockets.udp, select.EPOLLIN)
        self._spawn(self._accept(address, sockets.tcp))

    def _again(self, address: Address) -> None:
        self._serve(address, self.unserved.pop(address).failures)

    def _leave(self, address: Address) -> None:
        unserved, sockets = self.unserved.pop(address, None), self._sockets.pop(address, None)
        if unserved is not None:
            unserved.retry.cancel()
        if sockets is not None:
            self._ready.unregister(sockets.udp)
            del self._udp[sockets.udp.fileno()]
            sockets.udp.close()
            server = self._servers.pop(address, None)
            if server is not None:
                server.close()
            sockets.tcp.close()
            self._streams.close(str(address))

    # --- Who asks ---

    def _readable(self) -> None:
        """Serve the sockets that are ready, for no longer than other work on the loop may wait."""
        try:
            others = self._datagrams.serve(self._ready.fileno(), time.monotonic(), SLICE)
        except OSError as error:
            log.debug("DNS socket: %s", error)
            return
        for descriptor, query, client in others:
            if not client:
                self._forwarder.refresh(query)
                continue
            udp = self._udp[descriptor]
            # The address follows family and port in struct sockaddr_in and sockaddr_in6.
            source = client[4:8] if udp.family == socket.AF_INET else client[8:24]
            respond = partial(self._respond, udp, client)
            self._forwarder.forward(query, udp.getsockname()[0], source, respond, stream=False)

    def _respond(self, udp: socket.socket, client: bytes, response: bytes, origin: Origin) -> None:
        if response and udp.fileno() != -1:  # closed meanwhile
            self._datagrams.send(udp.fileno(), response, client)

    async def _accept(self, address: Address, listener: socket.socket) -> None:
        if listener.fileno() != -1:  # closed meanwhile
            loop = asyncio.get_running_loop()
            self._servers[address] = await loop.create_server(self._streams.connect, sock=listener, backlog=BACKLOG)


def _bind(address: Address, port: int) -> Sockets:
    """Both sockets of an address, or OSError.  They may be bound before the address is there, or is usable: IPv6 looks
    for duplicates first.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with ExitStack() as undo:
        sockets = Sockets(
            *(
                undo.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
            )
        )
        sockets.udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        # Not on the other one: two datagram sockets of one port would share its queries.
        sockets.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in sockets:
            if address.version == 4:
                each.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            else:
                each.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            each.bind((str(address), port))
        sockets.tcp.listen(BACKLOG)
        undo.pop_all()
    return sockets


def _advice(error: OSError, port: int) -> tuple[str, str]:
    """What is the matter, as a predicate, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return (
                "is not served: another program has the port",
                f"see who has it (ss -lnptu 'sport = :{port}') and keep it from that address, or choose another "
                "--dns-port",
            )
        case errno.EACCES:
            return (
                "is not served: the port is privileged",
                "grant CAP_NET_BIND_SERVICE, or choose a --dns-port above 1023",
            )
        case _:
            return f"is not served: {error.strerror}", "repair that, or turn it off with --dns-port 0"
