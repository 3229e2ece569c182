"""This node's addresses on a relay of ours, in this process, on loopback: of one IP version, or of both at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
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
from overlayd.model.objects import Address
from overlayd.proto import stun, turn
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


def granted(request: Message, address: str = "192.0.2.9", port: int = 5) -> Message:
    """An allocation, for who does not even say who it is."""
    answer = Message(request.method, Kind.SUCCESS, request.transaction_id)
    answer = answer.add(stun.XOR_RELAYED_ADDRESS, (ip_address(address), port)).add(stun.LIFETIME, 600)
    return answer.add(stun.XOR_MAPPED_ADDRESS, (ip_address("192.0.2.8"), 5))


@contextlib.asynccontextmanager
async def answering(answer: Callable[[Message], Message]) -> AsyncIterator[tuple[int, list[int]]]:
    """A server: its port, and the methods that it was asked for."""
    asked: list[int] = []

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
            request = stun.decode(data)
            if request.kind is Kind.REQUEST:
                asked.append(request.method)
                self.transport.sendto(stun.encode(answer(request)), client)  # type: ignore[attr-defined]

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, ("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1], asked
    finally:
        transport.close()


async def test_a_server_that_no_longer_knows_us_at_a_permission_is_asked_anew() -> None:
    """Its users were changed, say: not when the allocation is to be refreshed, in nine minutes."""

    def answer(request: Message) -> Message:
        if request.method == stun.ALLOCATE:
            return granted(request)
        refusal = Message(request.method, Kind.ERROR, request.transaction_id).add(stun.REALM, "r").add(stun.NONCE, b"n")
        return refusal.add(stun.ERROR_CODE, Failure(401, "Unauthorized"))

    async with answering(answer) as (port, asked), allocating(port) as allocation:
        await until(lambda: allocation.relayed)
        before = asked.count(stun.ALLOCATE)
        allocation._held[4]._asked = -turn_connection.SILENCE  # it was not asked of late
        allocation.permit(b"peer", [(ip_address("192.0.2.7"), 7)])
        await until(lambda: asked.count(stun.ALLOCATE) > before)


async def test_a_dead_address_of_a_name_is_not_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses_of(self: Lookups, name: str) -> list[Address]:
        return [ip_address("127.0.0.2"), ip_address("127.0.0.1")]

    monkeypatch.setattr(Lookups, "addresses", addresses_of)
    relay = relay_at(port, "127.0.0.1")
    began = asyncio.get_running_loop().time()
    async with allocating(port, "turn.example") as allocation:
        await until(lambda: allocation.relayed)
        assert asyncio.get_running_loop().time() - began < turn.PATIENCE
    await until(lambda: not relay.server.sessions)
    relay.close()


@pytest.mark.parametrize("nowhere", [("0.0.0.0", 5), ("192.0.2.9", 0), ("224.0.0.1", 5)])
async def test_an_address_where_nobody_can_be_is_none(nowhere: tuple[str, int]) -> None:
    async with answering(lambda request: granted(request, *nowhere)) as (port, _), allocating(port) as allocation:
        await until(lambda: allocation.failure)
        assert "where nobody can be" in allocation.failure and not allocation.relayed


async def test_a_server_that_hangs_up_again_and_again_is_not_asked_all_the_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connections: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.get_running_loop().time())
        head = await reader.readexactly(20)
        request = stun.decode(head + await reader.readexactly(int.from_bytes(head[2:4])))
        writer.write(stun.encode(granted(request)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    at = f"turn:127.0.0.1:{server.sockets[0].getsockname()[1]}?transport=tcp"
    allocation = Allocation([wire.TurnServer(at, USERNAME, CREDENTIAL)], Lookups(), 51820, lambda data, peer: None)
    keeping = asyncio.create_task(allocation._keep(4))
    await until(lambda: len(connections) == 3)
    assert connections[1] - connections[0] >= 1 and connections[2] - connections[1] >= 2
    keeping.cancel()
    await asyncio.wait((keeping,))
    allocation.close()
    server.close()


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
