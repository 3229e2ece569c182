"""This node's addresses on a relay of ours, in this process, on loopback: of one IP version, or of both at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest
from lab.patience import until_async as until
from lab.ports import free_port
from lab.turn import CREDENTIAL, USERNAME

from overlayd import wire
from overlayd.daemon.nat import turn_connection
from overlayd.daemon.nat.allocation import Allocation
from overlayd.daemon.nat.relay import Relay
from overlayd.daemon.peers.lookup import Lookups
from overlayd.proto import stun
from overlayd.proto.stun import Failure, Kind, Message


@contextlib.asynccontextmanager
async def allocating(port: int, host: str = "127.0.0.1") -> AsyncIterator[Allocation]:
    login = wire.TurnServer(f"{host}:{port}", USERNAME, CREDENTIAL)
    allocation = Allocation([login], Lookups(), 51820, lambda data, peer: None)
    watching = asyncio.create_task(allocation.watch())
    try:
        yield allocation
    finally:
        watching.cancel()
        await asyncio.wait((watching,))
        allocation.close()


def relay_at(port: int, external: str) -> Relay:
    relay = Relay(wire.RelayServer(port, external, 10, CREDENTIAL), [])
    relay.start()
    return relay


@pytest.fixture
def port() -> int:
    return free_port()


def addresses(allocation: Allocation) -> dict[int, str]:
    return {version: str(at[0]) for version, at in allocation.relayed.items()}


async def test_both_come_of_one_allocation_and_come_back_together(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_connection, "SILENCE", 0.0)
    relay = relay_at(port, "127.0.0.1,::1")
    async with allocating(port) as allocation:
        await has_both(allocation, relay)
        relay.close()
        again = relay_at(port, "127.0.0.1,::1")
        allocation.doubt()
        await has_both(allocation, again)
    await until(lambda: not again.server.sessions)
    again.close()


async def has_both(allocation: Allocation, relay: Relay) -> None:
    """At this relay, in one session."""
    await until(lambda: len(relay.server.sessions) == 1 and len(allocation.relayed) == 2)
    assert addresses(allocation) == {4: "127.0.0.1", 6: "::1"} and allocation.settled.is_set()
    (session,) = relay.server.sessions.values()
    assert {version: at[1] for version, at in allocation.relayed.items()} == session.ports


@pytest.mark.parametrize(("external", "version"), [("127.0.0.1", 4), ("::1", 6)])
async def test_of_a_relay_of_one_ip_version_there_is_that_one(port: int, external: str, version: int) -> None:
    relay = relay_at(port, external)
    async with allocating(port, f"[{external}]" if version == 6 else external) as allocation:
        await until(lambda: allocation.relayed)
        assert addresses(allocation) == {version: external} and allocation.failure == ""
        await until(lambda: len(relay.server.sessions) == 1)
    relay.close()


@contextlib.asynccontextmanager
async def sending_on(port: int, own: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that sends everybody to another port of this host: its own port, and what it was asked."""
    asked: list[bytes] = []

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
            asked.append(data)
            request = stun.decode(data)
            answer = Message(request.method, Kind.ERROR, request.transaction_id)
            answer = answer.add(stun.ERROR_CODE, Failure(300, "Try Alternate"))
            answer = answer.add(stun.ALTERNATE_SERVER, (ip_address("127.0.0.1"), port))
            self.transport.sendto(stun.encode(answer), client)  # type: ignore[attr-defined]

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, ("127.0.0.1", own))
    try:
        yield transport.get_extra_info("sockname")[1], asked
    finally:
        transport.close()


async def test_a_server_that_sends_us_on_is_followed(port: int) -> None:
    relay = relay_at(port, "127.0.0.1")
    async with sending_on(port) as (second, _), sending_on(second) as (first, _), allocating(first) as allocation:
        await until(lambda: allocation.relayed)
        assert addresses(allocation) == {4: "127.0.0.1"} and allocation.failure == ""
    await until(lambda: not relay.server.sessions)
    relay.close()


async def test_servers_that_send_us_in_a_circle_are_named_and_left(port: int) -> None:
    async with sending_on(port) as (first, asked), sending_on(first, port) as _, allocating(first) as allocation:
        await until(lambda: allocation.failure)
        assert f"TURN server 127.0.0.1:{first}: 300 " in allocation.failure
        assert len(asked) == 2, "once for each IP version"
