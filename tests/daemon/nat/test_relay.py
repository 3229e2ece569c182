"""The relay on real sockets of the loopback: its configuration, and what it opens and closes."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
from lab.eventloop import sockets
from lab.patience import until_async as until
from lab.ports import free_port
from lab.turn import CREDENTIAL, USERNAME

from overlayd.daemon.nat.relay import RELAYED_PORTS, Relay
from overlayd.errors import MechanismError, RequestError
from overlayd.proto.turn import Allocated, Failed, Received, TurnClient
from overlayd.wire import RelayServer


def config(
    port: int = 3478, address: str = "127.0.0.1", sessions: int = 10, credential: str | None = CREDENTIAL
) -> RelayServer:
    return RelayServer(port, address, sessions, credential)


# --- what an operator may write --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("broken", "says"), [
    (config(credential=None), "auth_credential.*open to anybody"),
    (config(credential=""), "auth_credential.*open to anybody"),
    (config(port=0), "listen_port"),
    (config(address="relay.example.org:3478"), "external_addr: 'relay.example.org'"),
    (config(address="192.0.2.1.5"), "external_addr"),
    (config(address="192.0.2.1,192.0.2.2"), "at most one address of IPv4 and one of IPv6"),
    (config(address="192.0.2.1,"), "external_addr"),
    (config(address="192.0.2.1:65536"), "external_addr"),
    (config(address="fe80::1%x\ny"), "external_addr: 'fe80::1%x.*no IP address"),
    (config(address="0.0.0.0:3478"), "external_addr: 0.0.0.0 is the address of nobody"),
    (config(address="[ff02::1]:3478"), "external_addr: ff02::1 is the address of a group"),
])  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused(broken: RelayServer, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Relay(broken, [])


@pytest.mark.parametrize(("text", "address"), [
    ("192.0.2.1:3478", "192.0.2.1"),
    ("192.0.2.1", "192.0.2.1"),
    ("[2001:db8::1]:3478", "2001:db8::1"),
    ("2001:db8::1", "2001:db8::1"),
    ("2001:db8::1:3478", "2001:db8::1:3478"),
    ("[2001:db8::1]", "2001:db8::1"),
    ("192.0.2.1:3478, [2001:db8::1]:3478", "192.0.2.1 2001:db8::1"),
    ("2001:db8::1,192.0.2.1", "2001:db8::1 192.0.2.1"),
    ("[::ffff:192.0.2.1]:3478", "192.0.2.1"),
])  # fmt: skip
def test_the_forms_of_an_external_address(text: str, address: str) -> None:
    assert external(text) == address.split()


def external(text: str) -> list[str]:
    return [str(address) for address in Relay(config(address=text), []).server.external.values()]


def test_without_an_external_address_it_is_the_one_that_packets_to_the_outside_carry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways: dict[str, str] = {"2001:db8::1": "2001:db8:7::5"}

    def look_up(_netlink: object, somewhere: object) -> object:
        return ip_address(ways[str(somewhere)]) if str(somewhere) in ways else None

    monkeypatch.setattr("overlayd.daemon.nat.relay.source_towards", look_up)
    assert external("") == ["2001:db8:7::5"]
    ways["192.0.2.1"] = "203.0.113.5"
    assert external("") == ["203.0.113.5"]
    ways.clear()
    with pytest.raises(RequestError, match=r"external_addr: this host has no route to the outside"):
        Relay(config(address=""), [])


# --- in this process, on loopback -------------------------------------------------------------------------------------


class Asker(asyncio.DatagramProtocol):
    """A TURN client in this event loop."""

    def __init__(self, port: int, credential: str, host: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = (host, port)
        family = ip_address(host).version
        self.client = TurnClient(USERNAME, credential, partial(os.urandom, 12), self.loop.time(), family=family)
        self.events: list[object] = []
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.flush()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.client.datagram_received(data, self.loop.time())
        self.flush()

    def flush(self) -> None:
        for datagram in self.client.datagrams_to_send(self.loop.time()):
            self.transport.sendto(datagram, self.server)
        self.events += self.client.events()

    async def event(self, number: int = 1) -> object:
        await until(lambda: len(self.events) >= number)
        return self.events[number - 1]


@contextlib.asynccontextmanager
async def asker(port: int, credential: str = CREDENTIAL, host: str = "127.0.0.1") -> AsyncIterator[Asker]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: Asker(port, credential, host), local_addr=(host, 0)
    )
    try:
        yield protocol
    finally:
        transport.close()


@contextlib.asynccontextmanager
async def relaying(**changes: Any) -> AsyncIterator[tuple[Relay, int]]:
    port = free_port()
    relay = Relay(config(port, **changes), [])
    relay.start()
    try:
        yield relay, port
    finally:
        relay.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_two_nodes_reach_each_other_through_it_and_it_closes_what_it_opened(host: str) -> None:
    before = sockets()
    async with (
        relaying(address=host) as (relay, port),
        asker(port, host=host) as one,
        asker(port, host=host) as two,
    ):
        first, second = await one.event(), await two.event()
        assert isinstance(first, Allocated)
        assert isinstance(second, Allocated)
        assert {first.relayed[1], second.relayed[1]} == set(relay.server.by_port) <= set(RELAYED_PORTS)
        two.client.permit(first.relayed, two.loop.time())
        two.flush()
        await until(lambda: two.client._peers[first.relayed].permitted)
        one.client.send(second.relayed, b"x" * 1400, one.loop.time())
        one.flush()
        assert await two.event(2) == Received(first.relayed, b"x" * 1400)
        two.client.send(first.relayed, b"back", two.loop.time())
        two.flush()
        assert await one.event(2) == Received(second.relayed, b"back")
    relay.close()
    await until(lambda: sockets() <= before)


async def test_a_released_port_is_closed() -> None:
    async with relaying() as (relay, port), asker(port) as one:
        event = await one.event()
        assert isinstance(event, Allocated)
        one.client.release(one.loop.time())
        one.flush()
        await until(lambda: not relay.server.by_port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("127.0.0.1", event.relayed[1]))


async def test_more_sessions_than_allowed_and_a_wrong_credential_are_refused() -> None:
    async with relaying(sessions=1) as (relay, port), asker(port) as one:
        assert isinstance(await one.event(), Allocated)
        async with asker(port) as two, asker(port, "wrong") as three:
            failed = await two.event()
            assert isinstance(failed, Failed)
            assert failed.failure.code == 508
            failed = await three.event()
            assert isinstance(failed, Failed)
            assert (failed.failure.code, failed.retry_after) == (401, None)
        assert relay.server.forged == 1
        assert len(relay.server.sessions) == 1


async def test_a_port_that_is_taken_is_named() -> None:
    async with relaying() as (_, port):
        second = Relay(config(port), [])
        with pytest.raises(MechanismError, match=f"udp port {port}.*another TURN server"):
            second.start()
        second.close()


async def test_a_flood_of_noise_does_not_end_it() -> None:
    async with relaying() as (_, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder:
            for size in range(0, 2000, 7):
                flooder.sendto(os.urandom(size), ("127.0.0.1", port))
        async with asker(port) as one:
            assert isinstance(await one.event(), Allocated)


async def test_behind_a_nat_it_listens_on_every_address() -> None:
    port = free_port()
    relay = Relay(config(port, "203.0.113.77"), [])
    relay.start()
    try:
        async with asker(port) as one:
            event = await one.event()
            assert isinstance(event, Allocated)
            assert event.relayed[0] == ip_address("203.0.113.77")
    finally:
        relay.close()
