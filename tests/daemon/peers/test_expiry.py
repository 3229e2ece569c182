"""When edge peers are shut out: the timer is set to the first of them, and hears of a clock that is set."""

from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from lab.patience import until_async as until
from node_with_peers import NodeWithPeers

from overlayd.daemon.peers import expiry
from overlayd.daemon.peers.expiry import Expiry
from overlayd.errors import DiskError
from overlayd.model import edges
from overlayd.model.rows import Edge

NOW = 1_700_000_000


class Expiring(NodeWithPeers):
    """A node whose edge peers expire by a clock of ours."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.node.kernel.apply = lambda *_: None  # type: ignore[method-assign]  what shuts one out is tested end to end
        self.now = float(NOW)
        self.expiry = Expiry(self.node, self.spawn, lambda: self.now)

    async def mint(self, name: str, ttl: int) -> None:
        key = name.encode().ljust(32, b"\0")
        allowed = (ip_network("10.200.0.0/16"),)
        await self.node.change(
            lambda draft: edges.mint(draft, name, public_key=key, now=NOW, ttl=ttl, allowed=allowed), everything=True
        )

    async def revoke(self, name: str) -> None:
        await self.node.change(lambda draft: edges.revoke(draft, name), everything=True)

    def names(self) -> set[str]:
        return set(self.node.state.table(Edge))

    def sleeps(self) -> float | None:
        """Seconds until the timer, as it is set now."""
        timer = self.expiry._timer
        return None if timer is None else timer.when() - timer._loop.time()  # type: ignore[attr-defined]


@pytest.fixture
async def expiring(tmp_path: Path) -> AsyncIterator[Expiring]:
    made = Expiring(tmp_path)
    async with made.expiry.running():
        yield made
    await made.close()


async def test_the_timer_is_set_to_the_first_and_at_most_a_minute_ahead(expiring: Expiring) -> None:
    assert expiring.sleeps() is None
    await expiring.mint("late", 3600)
    assert 50 < (expiring.sleeps() or 0) <= expiry.LONGEST_SLEEP
    await expiring.mint("early", 30)
    assert 20 < (expiring.sleeps() or 0) <= 30
    await expiring.revoke("early")
    assert 50 < (expiring.sleeps() or 0) <= expiry.LONGEST_SLEEP
    await expiring.revoke("late")
    assert expiring.sleeps() is None


async def test_each_goes_at_its_second_and_no_sooner(expiring: Expiring) -> None:
    await expiring.mint("first", 10)
    await expiring.mint("second", 20)
    expiring.now = NOW + 9.99
    expiring.expiry._arm()
    assert expiring.names() == {"first", "second"}
    expiring.now = NOW + 10
    await until(lambda: expiring.names() == {"second"})
    await until(lambda: 5 < (expiring.sleeps() or 0) <= 10)
    expiring.now = NOW + 20
    expiring.expiry._arm()
    await until(lambda: not expiring.names() and expiring.sleeps() is None)


async def test_a_clock_that_is_set_is_heard_of(expiring: Expiring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LONGEST_SLEEP", 0.01)
    await expiring.mint("device", 3600)
    expiring.now = NOW + 3600
    await until(lambda: not expiring.names())


async def test_a_failure_is_tried_again(
    expiring: Expiring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(expiry, "RETRY", 0.01)
    await expiring.mint("device", 10)
    with monkeypatch.context() as refusing:

        async def refuse(*_: object, **__: object) -> None:
            raise DiskError("no room")

        refusing.setattr(expiring.node, "change", refuse)
        expiring.now = NOW + 10
        expiring.expiry._arm()
        await until(lambda: "no room" in caplog.text)
    assert "to be tried again" in caplog.text
    await until(lambda: not expiring.names())
