"""Where STUN servers see this node: a port whose servers answer when a test lets them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from overlayd.daemon.nat.reflexive import Reflexive
from overlayd.daemon.peers.lookup import Lookups
from overlayd.model.candidates import Endpoint
from overlayd.model.objects import Address
from overlayd.proto import stun
from overlayd.proto.stun import BINDING, XOR_MAPPED_ADDRESS, Kind, Message

SERVERS = [(ip_address("192.0.2.1"), 3478), (ip_address("2001:db8::1"), 3478), (ip_address("192.0.2.2"), 3478)]
HERE = ip_address("198.51.100.7")


class Port:
    """mapped: where a server sees whoever asks it; who is not in it keeps silent."""

    versions = {4, 6}  # noqa: RUF012

    def __init__(self) -> None:
        self.mapped: dict[Endpoint, Endpoint] = {}
        self.listeners: list[Callable[[bytes, Endpoint], None]] = []

    @contextmanager
    def used(self) -> Iterator[None]:
        yield

    @contextmanager
    def subscribe(self, listener: Callable[[bytes, Endpoint], None]) -> Iterator[None]:
        self.listeners.append(listener)
        yield
        self.listeners.remove(listener)

    def send(self, datagram: bytes, to: Endpoint) -> None:
        if to in self.mapped:
            answer = Message(BINDING, Kind.SUCCESS, stun.decode(datagram).transaction_id)
            encoded = stun.encode(answer.add(XOR_MAPPED_ADDRESS, self.mapped[to]))
            for listener in list(self.listeners):
                asyncio.get_running_loop().call_soon(listener, encoded, to)


@pytest.fixture
async def asking() -> AsyncIterator[tuple[Port, Reflexive]]:
    port = Port()
    texts = [f"[{address}]:{at}" if address.version == 6 else f"{address}:{at}" for address, at in SERVERS]
    reflexive = Reflexive(port, Lookups(), texts, 60.0)  # type: ignore[arg-type]
    task = asyncio.create_task(reflexive.watch())
    yield port, reflexive
    task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- nobody is told
        await asyncio.sleep(0.01)


async def test_the_first_answer_counts_while_other_servers_are_still_waited_for(
    asking: tuple[Port, Reflexive], caplog: pytest.LogCaptureFixture
) -> None:
    port, reflexive = asking
    caplog.set_level("INFO")
    port.mapped[SERVERS[2]] = (HERE, 4711)
    await until(lambda: reflexive.mapped == [(HERE, 4711)])
    assert not reflexive.symmetric and len(port.listeners) == 2, "the others are still asked"
    port.mapped[SERVERS[0]] = (HERE, 4712)
    await until(lambda: reflexive.mapped == [(HERE, 4712), (HERE, 4711)])
    assert reflexive.symmetric
    assert [record.message for record in caplog.records] == [
        "seen from outside as 198.51.100.7:4711",
        "seen from outside as 198.51.100.7:4712, 198.51.100.7:4711 (a symmetric NAT)",
    ]


@pytest.mark.parametrize(
    "nonsense", [("0.0.0.0", 1), ("::", 1), ("224.0.0.1", 1), ("255.255.255.255", 1), ("127.0.0.1", 1), (str(HERE), 0)]
)
async def test_where_nobody_can_be_we_are_not(asking: tuple[Port, Reflexive], nonsense: tuple[str, int]) -> None:
    port, reflexive = asking
    port.mapped = dict.fromkeys(SERVERS, (HERE, 4711))
    port.mapped[SERVERS[0]] = (ip_address(nonsense[0]), nonsense[1])
    await until(lambda: len(reflexive.mapped) == 2)
    assert reflexive.mapped == [(HERE, 4711)] * 2 and not reflexive.symmetric


async def test_what_is_known_is_replaced_as_a_whole(asking: tuple[Port, Reflexive]) -> None:
    """So that a NAT which gives another port is not taken for a symmetric one in between."""
    port, reflexive = asking
    port.mapped = dict.fromkeys(SERVERS, (HERE, 4711))
    await until(lambda: len(reflexive.mapped) == 3 and not port.listeners)
    port.mapped = dict.fromkeys(SERVERS[:2], (HERE, 4800))
    reflexive.refresh_soon()
    await until(lambda: len(port.listeners) == 1)
    assert reflexive.mapped == [(HERE, 4711)] * 3
    port.mapped[SERVERS[2]] = (HERE, 4800)
    await until(lambda: not port.listeners)
    await until(lambda: reflexive.mapped == [(HERE, 4800)] * 3)


async def test_a_dead_address_of_a_name_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses(self: Lookups, name: str) -> list[Address]:
        return [ip_address("192.0.2.66"), SERVERS[0][0]]

    monkeypatch.setattr(Lookups, "addresses", addresses)
    port = Port()
    port.mapped[SERVERS[0]] = (HERE, 4711)
    reflexive = Reflexive(port, Lookups(), ["stun.example:3478"], 60.0)  # type: ignore[arg-type]
    task = asyncio.create_task(reflexive.watch())
    await until(lambda: reflexive.mapped == [(HERE, 4711)])
    task.cancel()
