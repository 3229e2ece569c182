"""Questions of other nodes about this one's side of a way (`overlayctl why`), at the overlay address of this node.

Owns: the socket, who is answered, and how much that may cost.  Must not know: what is said (`own_side`).

Only the node that is a peer is answered: the tunnel vouches for the address that a question comes from, and the port
for a program of root's there.  Nothing is changed, and no question makes more than one datagram.  A node that cannot
ask us straight, because the tunnel between us is what is broken, has a third one pass its question on, once.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import NamedTuple, Protocol

from overlayd.daemon.change.node import Node
from overlayd.daemon.tasks import KeepUp, Spawn
from overlayd.errors import OverlaydError, ProtocolError
from overlayd.model.ends import Hop
from overlayd.model.objects import GLOBAL, Address
from overlayd.model.own_side import Asked
from overlayd.model.rows import Change, Overlay
from overlayd.model.subnets import node_in
from overlayd.model.zone import served_address
from overlayd.proto import inquiry
from overlayd.proto.inquiry import PORT, PRIVILEGED, Answer, Question, Said

log = logging.getLogger(__name__)

# Our own constants.
AT_ONCE = 4  # questions that are looked into; more are passed over, for a node asks again
PAUSE = 0.25  # seconds between two questions of a peer that are taken
PASSED_ON = 32  # questions whose answers are awaited
PATIENCE = 2.0  # seconds until the answer to one of those is no longer awaited
RETRY = 30.0  # seconds until an address that could not be bound is tried again
BATCH = 8  # datagrams that are read before anything else is looked at

_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h


class Hops(Protocol):
    """Our side of a way.  direct: the question came by it."""

    def __call__(self, asked: Asked, *, direct: bool) -> Awaitable[list[Hop]]: ...


class _PassedOn(NamedTuple):
    """A question that another node has now.  since: of the loop's clock."""

    id: int
    client: tuple[str, int]
    asked: Address
    since: float


class Inquiries:
    """At work within `running`.  hops: what is answered."""

    def __init__(self, node: Node, hops: Hops, spawn: Spawn) -> None:
        self._node = node
        self._hops = hops
        self._spawn = spawn
        self._wanted = asyncio.Event()
        self._socket: socket.socket | None = None
        self._address: Address | None = None
        self._at_work = 0
        self._taken: dict[bytes, float] = {}  # when the last question was, by the peer's key
        self._passed_on: dict[int, _PassedOn] = {}

    @asynccontextmanager
    async def running(self, keep_up: KeepUp) -> AsyncIterator[None]:
        """Answer at the node's address, wherever that is, until the block ends."""
        with self._node.subscribe(self.follow):
            watch = keep_up(self._watch)
            try:
                yield
            finally:
                watch.cancel()
                self._leave()

    def follow(self, change: Change) -> None:
        """The node's address may be another one now."""
        if any(table == Overlay.table for table, _ in change):
            self._wanted.set()

    async def _watch(self) -> None:
        told = ""
        while True:
            self._wanted.clear()
            problem = self._listen()
            if problem and problem != told:
                log.warning("%s; it is tried again: `overlayctl why` of other nodes does not hear this one", problem)
            told = problem
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), RETRY if problem else None)

    def _listen(self) -> str:
        """Listen at the address of now.  Returns why not."""
        address = served_address(self._node.state, GLOBAL, devices=self._node.facts.devices)
        if address == self._address:
            return ""
        self._leave()
        if address is None:
            return ""
        try:
            self._socket = _bind(address)
        except OSError as error:
            return f"UDP port {PORT} of {address} cannot be had: {error.strerror}"
        self._address = address
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        return ""

    def _leave(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._socket = self._address = None

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self._socket is None:
                return
            try:
                datagram, client = self._socket.recvfrom(inquiry.LARGEST + 1)
            except OSError:  # there is none, or one could not be delivered
                return
            try:
                message = inquiry.decode(datagram)
                self._take(message, client[0], client[1])
            except ProtocolError as error:
                log.debug("datagram of %s passed over: %s", client[0], error)

    def _take(self, message: Question | Answer, host: str, port: int) -> None:
        sender = ip_address(host)
        key = self._node_at(sender)
        if key is None or (port >= PRIVILEGED and port != PORT):
            log.debug("datagram of %s, port %d, passed over: it is no peer's own", sender, port)
        elif isinstance(message, Answer):
            self._return(message, sender)
        elif self._is_time(key):
            if message.to is None:
                self._answer(message, key, (host, port))
            else:
                self._pass_on(message, message.to, (host, port))

    def _node_at(self, address: Address) -> bytes | None:
        """The key of the peer whose node has this address; None for containers, guests and edge peers."""
        state = self._node.state
        key = state.allowed_ips(GLOBAL).lookup(address.packed)
        peer = state.peers(GLOBAL).get(key) if key is not None else None
        if peer is None or key is None or state.guest(key) is not None:
            return None
        return key if address in map(node_in, peer.listed) else None

    def _is_time(self, key: bytes) -> bool:
        now = asyncio.get_running_loop().time()
        self._taken = {each: since for each, since in self._taken.items() if now - since < PAUSE}
        if key in self._taken or len(self._taken) >= PASSED_ON:
            return False
        self._taken[key] = now
        return True

    def _answer(self, question: Question, sender: bytes, client: tuple[str, int]) -> None:
        if self._at_work >= AT_ONCE:
            return
        asked = Asked(question.scope, question.asker, question.asked, question.near, question.network, question.far)
        self._at_work += 1
        self._spawn(self._look(question.id, asked, client, direct=sender == asked.asker))

    async def _look(self, id: int, asked: Asked, client: tuple[str, int], *, direct: bool) -> None:
        try:
            hops = await self._hops(asked, direct=direct)
        except OverlaydError as error:
            hops = [Hop("this node", f"cannot look at its side: {error}", "unknown")]
        finally:
            self._at_work -= 1
        self._send(inquiry.encode_answer(Answer(id=id, hops=tuple(Said(*hop) for hop in hops))), client)

    def _pass_on(self, question: Question, to: Address, client: tuple[str, int]) -> None:
        now = asyncio.get_running_loop().time()
        self._passed_on = {id: each for id, each in self._passed_on.items() if now - each.since < PATIENCE}
        if self._node_at(to) is None or len(self._passed_on) >= PASSED_ON:
            return
        id = secrets.randbits(53)
        self._passed_on[id] = _PassedOn(question.id, client, to, now)
        self._send(inquiry.encode(question._replace(id=id, to=None)), (str(to), PORT))

    def _return(self, answer: Answer, sender: Address) -> None:
        passed_on = self._passed_on.get(answer.id)
        if passed_on is not None and passed_on.asked == sender:
            del self._passed_on[answer.id]
            self._send(inquiry.encode_answer(Answer(id=passed_on.id, hops=answer.hops)), passed_on.client)

    def _send(self, datagram: bytes, to: tuple[str, int]) -> None:
        if self._socket is not None:
            with suppress(OSError):  # the way there is gone, or full: who asks will ask again
                self._socket.sendto(datagram, to)


def _bind(address: Address) -> socket.socket:
    """The socket may be bound before the address is there."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    bound = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if address.version == 4:
            bound.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        else:
            bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        bound.bind((str(address), PORT))
    except OSError:
        bound.close()
        raise
    return bound
