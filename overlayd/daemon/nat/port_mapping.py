"""A port of the router before this node that leads to WireGuard's: one more server-reflexive candidate.

Owns: the router, when it is asked, and what it gave.  Must not know: what is in a message (`proto.port_mapping`), UPnP
(`daemon.nat.upnp`).

PCP is tried first, then NAT-PMP, then UPnP; from then on first that which gave the mapping.  It is renewed long before
its time, since a router that was restarted has forgotten it; and left to end by itself, since the tunnels through it
outlive this daemon.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, ip_address

from overlayd.daemon.change.node import Node
from overlayd.errors import MechanismError, ProtocolError
from overlayd.linux import egress
from overlayd.model.candidates import Endpoint
from overlayd.model.endpoints import nobodys
from overlayd.model.layout import endpoint_text
from overlayd.proto import port_mapping as proto
from overlayd.proto.port_mapping import Mapping, Refusal

log = logging.getLogger(__name__)

# Our own constants, seconds.
LIFETIME = 3600  # that is asked for
RENEWAL = 60.0  # at most from one request to the next
SOON = 5.0  # after the first that brought nothing: at boot the network may not be there yet
FIRST_PAUSE = 0.25  # before a request is sent again, doubling (RFC 6886, section 3.1)
TRIES = 4

_LARGEST = 1100  # bytes of a message of PCP (RFC 6887, section 7)


class PortMapping:
    """opened: where the router sends to WireGuard's port, None while it does not.  failure: why not, in words, once
    that is known.
    """

    def __init__(self, node: Node, wg_port: int) -> None:
        self.opened: Endpoint | None = None
        self.failure = ""
        self._node = node
        self._port = wg_port
        self._nonce = secrets.token_bytes(proto.NONCE_SIZE)
        self._last_way = ""  # that gave a mapping

    async def watch(self) -> None:
        """Keep the mapping, forever."""
        while True:
            answer = await self._ask()
            if isinstance(answer, Mapping):
                pause = max(min(RENEWAL, answer.lifetime / 2), 1.0)
                self._take((answer.address, answer.port), "")
            else:
                pause = RENEWAL if self.failure else SOON
                self._take(None, answer.reason)
            await asyncio.sleep(pause)

    def _take(self, opened: Endpoint | None, failure: str) -> None:
        if opened is not None and opened != self.opened:
            log.info("the router sends %s to WireGuard's port", endpoint_text(opened))
        if failure and failure != self.failure:
            log.warning("no port mapping, asked again every minute: %s", failure)
        self.opened, self.failure = opened, failure

    async def _ask(self) -> Mapping | Refusal:
        try:
            router = await self._node.run(egress.router)
        except MechanismError as error:
            return Refusal(str(error))
        if router is None:
            return Refusal("there is no default route over IPv4, and so no router to ask")
        try:
            with socket.socket(
                socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            ) as asking:
                asking.connect((str(router), proto.PORT))
                own = ip_address(asking.getsockname()[0])
                assert isinstance(own, IPv4Address)
                answer = await self._ask_router(router, own, asking)
        except OSError as error:
            answer = Refusal(error.strerror or str(error))
        return answer if isinstance(answer, Mapping) else Refusal(f"the router at {router}: {answer.reason}")

    async def _ask_router(self, router: IPv4Address, own: IPv4Address, asking: socket.socket) -> Mapping | Refusal:
        """The first mapping that is had by one of the protocols, else what it said in each."""
        ways = {
            "PCP": lambda: self._ask_by_pcp(own, asking),
            "NAT-PMP": lambda: self._ask_by_nat_pmp(asking),
            "UPnP": lambda: self._ask_by_upnp(router, own),
        }
        refusals: dict[str, str] = {}
        for name in sorted(ways, key=lambda name: name != self._last_way):  # the others in their order
            try:
                answer = await ways[name]()
            except OSError as error:
                answer = Refusal(error.strerror or str(error))
            if isinstance(answer, Mapping) and (nobodys(answer.address) or not answer.port):
                # A router that has no uplink says so at times.
                answer = Refusal(f"it sends nothing here from {endpoint_text((answer.address, answer.port))}")
            if isinstance(answer, Mapping):
                self._last_way = name
                return answer
            refusals[name] = answer.reason
        reasons = dict.fromkeys(refusals.values())
        return Refusal(
            "; ".join(f"{reason} ({', '.join(n for n, r in refusals.items() if r == reason)})" for reason in reasons)
        )

    async def _ask_by_upnp(self, router: IPv4Address, own: IPv4Address) -> Mapping | Refusal:
        from overlayd.daemon.nat import upnp  # noqa: PLC0415 - most nodes need none of it

        return await upnp.ask(router, own, self._port, LIFETIME)

    async def _ask_by_pcp(self, own: IPv4Address, asking: socket.socket) -> Mapping | Refusal:
        request = proto.pcp_request(own, self._port, LIFETIME, self._nonce)
        answer = await _exchange(asking, [request], lambda data: proto.read_pcp(data, self._port, self._nonce))
        return answer or Refusal("no answer")

    async def _ask_by_nat_pmp(self, asking: socket.socket) -> Mapping | Refusal:
        requests = proto.nat_pmp_requests(self._port, LIFETIME)
        said: dict[type, IPv4Address | tuple[int, int]] = {}

        def read(data: bytes) -> Mapping | Refusal | None:
            answer = proto.read_nat_pmp(data, self._port)
            if isinstance(answer, Refusal):
                return answer
            said[type(answer)] = answer
            match said.get(IPv4Address), said.get(tuple):
                case IPv4Address() as address, (port, lifetime):
                    return Mapping(address, port, lifetime)
            return None

        return await _exchange(asking, requests, read) or Refusal("no answer")


async def _exchange(
    asking: socket.socket, requests: Sequence[bytes], read: Callable[[bytes], Mapping | Refusal | None]
) -> Mapping | Refusal | None:
    """Send requests until `read` makes something of what comes back; None when nothing does."""
    loop = asyncio.get_running_loop()
    for attempt in range(TRIES):
        for request in requests:
            await loop.sock_sendall(asking, request)
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_PAUSE * (1 << attempt)):
                while True:
                    with suppress(ProtocolError, ConnectionRefusedError):
                        if (answer := read(await loop.sock_recv(asking, _LARGEST))) is not None:
                            return answer
    return None
