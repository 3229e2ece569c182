"""Packets and clients under abuse that goes on: a ruleset flushed twice a second, a daemon restarted every second.

`make test` runs the short form, `make soak` (OVERLAYD_SOAK=1) the length that the acceptance asks for.
"""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator

from lab import Ping, ping
from lab.cluster import Pair
from lab.lab import OUTSIDE
from lab.patience import until

from overlayd.client import CallError, ConnectionLost, OverlayClient

SOAK = bool(os.environ.get("OVERLAYD_SOAK"))
FLUSHING = 20 if SOAK else 3  # seconds
RESTARTING = 60 if SOAK else 3
INTERVAL = 0.01  # seconds between two echoes
# Echoes in a row: 200 ms, more only where a flush itself takes more than 40.  The short form runs beside other tests,
# and sees only that nobody waits for the next look at everything.
MOST_LOST = 20 if SOAK else 100


def runs(numbers: list[int]) -> list[int]:
    """The lengths of the runs of consecutive numbers in a sorted list."""
    groups = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    return [len(list(group)) for _, group in groups]


def every(period: float, seconds: float) -> Iterator[None]:
    """Once each `period`, for so many seconds; what falls behind catches up."""
    start = time.monotonic()
    for number in range(int(seconds / period)):
        time.sleep(max(start + number * period - time.monotonic(), 0))
        yield


def test_a_ruleset_flushed_twice_a_second_costs_moments(pair: Pair) -> None:
    ping(pair.web, str(OUTSIDE.ip))
    outward = Ping(pair.web, str(OUTSIDE.ip), INTERVAL)
    try:
        outward.wait_for(20)
        flushed, longest = 0, 0.0
        for _ in every(0.5, FLUSHING):
            started = time.monotonic()
            pair.alpha.node.run(["nft", "flush", "ruleset"])
            longest = max(longest, time.monotonic() - started)
            flushed += 1
        outward.wait_for(20)
    finally:
        lost = outward.stop()
    print(f"{flushed} flushes, {len(lost)} of {max(outward.received)} echoes lost, in a row {runs(lost)}")
    # The repair is a program like the flush: on a busy machine both wait for a processor.
    assert max(runs(lost), default=0) <= max(MOST_LOST, 5 * longest / INTERVAL)
    told = pair.alpha.node.log.read_text().count("by nft")
    # Each one is told, and together those that come during one repair, which takes longer where all wait.
    assert told >= (flushed / 2 if longest < 0.1 else 1), (told, flushed, longest)


def test_a_daemon_restarted_every_second_loses_no_echo_and_no_request(pair: Pair) -> None:
    ping(pair.web, pair.db_address)
    through_the_tunnel = Ping(pair.web, pair.db_address, INTERVAL)
    beside_it = Ping(pair.alpha.node, str(pair.beta.node.address), INTERVAL)
    client = Caller(str(pair.alpha.node.socket))
    client.start()
    try:
        through_the_tunnel.wait_for(20)
        restarts, started = 0, time.monotonic()
        for _ in every(1.0, RESTARTING):
            assert pair.alpha.node.stop() == 0
            pair.alpha.node.start()
            restarts += 1
            # It waits ever longer between its tries, and the next restart shall meet it at work.
            until(lambda: client.failed or client.connections > restarts)  # noqa: B023
            assert client.failed is None
        took = time.monotonic() - started
        through_the_tunnel.wait_for(20)
    finally:
        client.stop()
        lost, lost_by_the_link = through_the_tunnel.stop(), beside_it.stop()
    print(
        f"{restarts} restarts in {took:.1f} s, {client.answered} answers, {client.connections} connections, "
        f"{len(lost)} echoes lost"
    )
    assert len(lost) <= len(lost_by_the_link), f"echoes {lost} lost in the tunnel, {lost_by_the_link} beside it"
    assert client.failed is None
    assert client.connections > restarts


class Caller(threading.Thread):
    """A client that asks without a pause, and asks again over a new connection when the daemon has gone.

    connections: those on which it was answered.
    """

    def __init__(self, socket: str) -> None:
        super().__init__(daemon=True)
        self.socket = socket
        self.answered = self.connections = 0
        self.failed: Exception | None = None
        self._ended = False

    def run(self) -> None:
        try:
            asyncio.run(self._ask())
        except Exception as error:
            self.failed = error

    def stop(self) -> None:
        self._ended = True
        self.join(30)

    async def _ask(self) -> None:
        while not self._ended:
            async with await OverlayClient.connect(self.socket) as client:
                first = self.answered
                try:
                    while not self._ended:
                        await client.set_local_node_id(1)
                        await client.status()
                        self.connections += self.answered == first
                        self.answered += 2
                except ConnectionLost:
                    pass
                except CallError as error:
                    if str(error) != "shutting down":
                        raise
