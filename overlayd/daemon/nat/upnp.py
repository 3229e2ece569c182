"""One port of the router by UPnP.

Owns: the sockets of one attempt, and its limits.  Must not know: what is in a message (`proto.upnp`), when it is tried
(`daemon.nat.port_mapping`).

Only the router that the default route leads to is believed, whoever else answers a search.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Mapping as Map
from ipaddress import IPv4Address

from overlayd.errors import ProtocolError
from overlayd.proto import upnp as proto
from overlayd.proto.http import Body, Client, End, Head
from overlayd.proto.port_mapping import Mapping, Refusal
from overlayd.proto.upnp import Place, Refused, Service

log = logging.getLogger(__name__)

# Our own constants, in seconds but for the last two.
SEARCH = 1.5  # for answers to a search, which come within one; then it is sent once more
PATIENCE = 5.0  # for a request by HTTP
SEARCHES = 2
PORTS = 3  # external ports that are tried: ours, then random ones

_HOPS = 2  # UPnP Device Architecture 1.1, section 1.3.3
_FIRST_PORT = 1024


async def ask(router: IPv4Address, own: IPv4Address, port: int, lifetime: int) -> Mapping | Refusal:
    """A mapping of our UDP port.  own: this node's address towards the router; lifetime: in seconds.  OSError."""
    try:
        described = await _search(router, own)
        if described is None:
            return Refusal("no answer")
        service = proto.read_description(await _get(router, described), router, described)
        address = proto.read_address(await _act(router, service, "GetExternalIPAddress"))
        external, lifetime = await _map(router, service, own, port, lifetime)
    except (Refused, ProtocolError, TimeoutError) as error:
        return Refusal(str(error) or "no answer to a request")
    return Mapping(address, external, lifetime)


async def _search(router: IPv4Address, own: IPv4Address) -> Place | None:
    """Where the router describes itself, None when it does not answer.  Some answer a group's datagrams alone, others
    those to themselves.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Place] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Answers(router, found), (str(own), 0))
    try:
        asking: socket.socket = transport.get_extra_info("socket")
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own.packed)
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
        for _ in range(SEARCHES):
            for receiver in (router, proto.GROUP):
                for search in proto.searches():
                    transport.sendto(search, (str(receiver), proto.PORT))
            await asyncio.wait((found,), timeout=SEARCH)
            if found.done():
                return found.result()
    finally:
        transport.close()
    return None


class _Answers(asyncio.DatagramProtocol):
    """Waits for the router's answer to a search."""

    def __init__(self, router: IPv4Address, found: "asyncio.Future[Place]") -> None:
        self._router = router
        self._found = found

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        if source[0] != str(self._router) or self._found.done():
            return
        try:
            self._found.set_result(proto.read_answer(data, self._router))
        except ProtocolError as error:
            log.debug("UPnP: %s", error)


async def _map(router: IPv4Address, service: Service, own: IPv4Address, port: int, lifetime: int) -> tuple[int, int]:
    """The external port, and the seconds for which it is ours."""
    for number in range(PORTS):
        external = port if number == 0 else _FIRST_PORT + secrets.randbelow(65536 - _FIRST_PORT)
        for seconds in (lifetime, 0):  # 0: forever, which old routers know alone
            try:
                await _act(
                    router,
                    service,
                    "AddPortMapping",
                    NewRemoteHost="",
                    NewExternalPort=external,
                    NewProtocol="UDP",
                    NewInternalPort=port,
                    NewInternalClient=own,
                    NewEnabled=1,
                    NewPortMappingDescription="overlayd",
                    NewLeaseDuration=seconds,
                )
                return external, lifetime
            except Refused as refused:
                if refused.code == proto.CONFLICT and number < PORTS - 1:
                    break
                if refused.code != proto.ONLY_PERMANENT or not seconds:
                    raise
    raise AssertionError("the last port is mapped or refused")


async def _act(router: IPv4Address, service: Service, action: str, **arguments: object) -> Map[str, str]:
    body, headers = proto.request(service, action, **arguments)
    status, document = await _exchange(router, service.place, "POST", body, headers)
    return proto.read_response(status, document)


async def _get(router: IPv4Address, place: Place) -> bytes:
    status, document = await _exchange(router, place, "GET")
    if status != 200:
        raise ProtocolError(f"it answers with HTTP status {status}")
    return document


async def _exchange(
    router: IPv4Address, place: Place, method: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()
) -> tuple[int, bytes]:
    """Ask, and return status and body of the response."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(str(router), place.port)
        try:
            client = Client(f"{router}:{place.port}")
            writer.write(client.request(method, place.path, body, (*headers, ("Connection", "close"))))
            status, document = 0, b""
            while True:
                for event in client.receive(await reader.read(4096)):
                    match event:
                        case Head():
                            status = event.status
                        case Body():
                            document += event.data
                        case End():
                            return status, document
                if len(document) > proto.LARGEST_DOCUMENT:
                    raise ProtocolError("a document that is too long")
        finally:
            writer.close()
