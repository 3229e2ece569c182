"""A router on loopback that answers UPnP as a test wants it to; e2e/test_port_mapping.py asks a real one."""

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address

import pytest

from overlayd.daemon.nat import upnp
from overlayd.proto.port_mapping import Mapping, Refusal

HERE = IPv4Address("127.0.0.1")
DESCRIPTION = (
    b"<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
    b"<controlURL>/ctl</controlURL></service></root>"
)
ADDRESS = b"<e><b><xResponse><NewExternalIPAddress>198.51.100.7</NewExternalIPAddress></xResponse></b></e>"
DONE = b"<e><b><xResponse/></b></e>"


def fault(code):
    return 500, b"<e><errorCode>%d</errorCode></e>" % code


class Router(asyncio.DatagramProtocol):
    """add: status and document for each AddPortMapping, in turn, the last one for all others."""

    def __init__(self, *add, description=DESCRIPTION, host="127.0.0.1"):
        self.add, self.description, self.host = list(add) or [(200, DONE)], description, host
        self.asked = []  # external ports and leases
        self.searches = 0
        self.connections = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, source):
        self.searches += 1
        answer = f"HTTP/1.1 200 OK\r\nLOCATION: http://{self.host}:{self.http}/d\r\n\r\n"
        self.transport.sendto(answer.encode(), source)

    async def connected(self, reader, writer):
        self.connections.append(asyncio.current_task())
        await self.serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):  # what is too long is not read to its end
            await writer.wait_closed()

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if head.startswith(b"GET"):
            status, document = 200, self.description
        elif b"GetExternalIPAddress" in head:
            status, document = 200, ADDRESS
        else:
            values = [
                int(re.search(rb"<%s>(\d+)<" % name, body)[1]) for name in (b"NewExternalPort", b"NewLeaseDuration")
            ]
            self.asked.append(tuple(values))
            status, document = self.add.pop(0) if len(self.add) > 1 else self.add[0]
        writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(document)) + document)


@asynccontextmanager
async def routing(monkeypatch, router):
    loop = asyncio.get_running_loop()
    streams = await asyncio.start_server(router.connected, "127.0.0.1", 0)
    router.http = streams.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: router, ("127.0.0.1", 0))
    monkeypatch.setattr(upnp.proto, "PORT", transport.get_extra_info("sockname")[1])
    monkeypatch.setattr(upnp, "SEARCH", 0.2)
    try:
        yield
    finally:
        transport.close()
        streams.close()
        await asyncio.gather(*router.connections)


async def mapped(monkeypatch, router):
    async with routing(monkeypatch, router):
        return await upnp.ask(HERE, HERE, 51820, 3600)


async def test_a_port_is_mapped_for_the_time_that_was_asked_for(monkeypatch):
    router = Router()
    assert await mapped(monkeypatch, router) == Mapping(IPv4Address("198.51.100.7"), 51820, 3600)
    assert router.asked == [(51820, 3600)] and router.searches == len(upnp.proto.searches())


async def test_an_old_router_maps_for_ever_and_another_hosts_port_is_left_to_it(monkeypatch):
    router = Router(fault(725), (200, DONE))
    assert (await mapped(monkeypatch, router)).port == 51820 and router.asked == [(51820, 3600), (51820, 0)]
    router = Router(fault(718), fault(718), (200, DONE))
    got = await mapped(monkeypatch, router)
    assert got.port == router.asked[2][0] != 51820 and len({port for port, _ in router.asked}) == 3


@pytest.mark.parametrize(
    ("router", "reason"),
    [
        (Router(fault(606)), "it does not allow that"),
        (Router(fault(718)), "the external port is not to be had"),
        (Router((404, b"<no/>")), "it answers with HTTP status 404"),
        (Router(description=b"<root/>"), "no service that maps ports"),
        (Router(description=DESCRIPTION + b" " * 200_000), "too long"),
        (Router(host="127.0.0.2"), "no answer"),
    ],
    ids=["forbidden", "taken", "no such thing", "no service", "endless", "elsewhere"],
)
async def test_why_there_is_none(monkeypatch, router, reason):
    answer = await mapped(monkeypatch, router)
    assert isinstance(answer, Refusal) and reason in answer.reason


async def test_a_router_that_keeps_silent(monkeypatch):
    monkeypatch.setattr(upnp, "PATIENCE", 0.2)
    router = Router()

    async def silent(reader, writer):
        await reader.read()

    router.serve = silent
    assert await mapped(monkeypatch, router) == Refusal("no answer to a request")
