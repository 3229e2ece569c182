"""How long an identity probe takes while 32 clients flood the socket and every change is held, while DNS queries flood
the name server, and while everything about 10,000 peers is changed again and again.

    python bench/bench_probe.py [--seconds S]

Each flooding client keeps 64 status requests under way (bench/peer/load.c; needs gcc).  wireguard-go is stopped, so
that the changes which other clients ask for hold the daemon's threads.  Every second probe has a connection of its own,
as those of probers do.  The DNS queries are dnsperf's, half of them for names that nobody answers for; without dnsperf
they are left out.  Exits with 1 when a 99th percentile is over 5 ms, or over 20 ms with 10,000 peers.  Needs root: the
daemon is the real one.
"""

import argparse
import asyncio
import base64
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench_peers import call_all, make_peers
from check.programs import compiled
from lab import Connection, Lab
from lab.cluster import Member
from lab.frames import request_frame
from smoke import SMOKE

from overlayd.client import OverlayClient
from overlayd.proto import envelope, identity

FLOODERS, DEPTH = 32, 64
PEERS = 50 if SMOKE else 10_000
HELD = 20  # changes under way, more than the daemon has threads for
# Seconds, of the 99th percentile; the second beside a worker that computes without a pause.
BUDGET, BUDGET_AT_SCALE = 0.005, 0.020


def probe(connection: Connection) -> float:
    """Seconds from the probe's first byte to its answer's last."""
    request = identity.probe_request(secrets.token_bytes(32))
    message = envelope.encode(request)
    start = time.perf_counter()
    connection.send(message)
    received = b""
    while (decoded := envelope.decode(received)) is None:
        received += connection.socket.recv(65536)
    took = time.perf_counter() - start
    identity.parse_probe_reply(decoded[0], request)
    return took


@contextmanager
def handlers_held(member: Member) -> Iterator[None]:
    [wireguard] = member.node.wireguard_pids()
    with ExitStack() as stack:
        os.kill(wireguard, signal.SIGSTOP)
        stack.callback(os.kill, wireguard, signal.SIGCONT)
        for number in range(HELD):
            key = base64.b64encode(bytes([number + 1] * 32)).decode()
            keys = {"public_key": key, "endpoint": "", "allowed_ips": "", "persistent_keepalive_secs": 0}
            stack.enter_context(member.node.connect()).send(request_frame(1, "add_peer", **keys))
        yield


def measure(socket: Path, seconds: float) -> list[float]:
    times = []
    end = time.monotonic() + seconds
    with Connection(socket) as standing:
        while time.monotonic() < end:
            times.append(probe(standing))
            start = time.perf_counter()
            with Connection(socket) as fresh:
                connected = time.perf_counter() - start
                times.append(connected + probe(fresh))
            time.sleep(0.002)
    return sorted(times)


@contextmanager
def beside(argv: Sequence[str | Path]) -> Iterator[list[str]]:
    """A program that floods something; what it says at the end, its rate, is in the list afterwards."""
    said: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield said
        except BaseException:
            process.kill()
            raise
        numbers = re.findall(r"^(?:  Queries per second: *)?([\d.]+)$", process.communicate()[0], re.MULTILINE)
    said.append(f"   beside {float(numbers[-1]):,.0f} answers a second")


@contextmanager
def all_set_up_again(member: Member) -> Iterator[list[str]]:
    """A client that has the node set up all its peers again, without a pause."""
    ended, rounds = threading.Event(), 0
    said: list[str] = []

    def work() -> None:
        nonlocal rounds
        while not ended.is_set():
            member.set_up_overlay()
            rounds += 1

    client = threading.Thread(target=work)
    client.start()
    try:
        yield said
    finally:
        ended.set()
        client.join()
    said.append(f"   beside {rounds} times")


def add_peers(member: Member) -> None:
    async def ask() -> None:
        async with await OverlayClient.connect(str(member.node.socket)) as client:
            await call_all(client, make_peers(PEERS))

    asyncio.run(ask())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=0.3 if SMOKE else 8.0, help="of a measurement; the changes are held for 10 s"
    )
    args = parser.parse_args()
    load, seconds = compiled("load"), args.seconds
    within = True

    def tell(name: str, times: list[float], said: list[str], budget: float = BUDGET) -> None:
        nonlocal within
        p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
        within = within and p99 <= budget
        print(
            f"{name:28} p50 {p50 * 1e3:6.2f} ms   p99 {p99 * 1e3:6.2f} ms   max {times[-1] * 1e3:6.2f} ms   "
            f"of {len(times)}{''.join(said)}",
            flush=True,
        )

    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start("--dns-node-address")
        member.set_up()
        tell("quiet", measure(member.node.socket, seconds / 4), [])
        with handlers_held(member), beside([load, member.node.socket, str(FLOODERS), str(DEPTH), str(seconds)]) as said:
            times = measure(member.node.socket, seconds * 0.95)
        tell(f"{FLOODERS} floods, handlers held", times, said)
        if shutil.which("dnsperf") is None:
            print("no dnsperf: without DNS queries")
        else:
            queries = member.node.run_directory / "queries"
            queries.write_text("web.overlay.local A\nwww.example.org A\n")
            dnsperf = ["dnsperf", "-s", "10.200.1.1", "-d", str(queries), "-l", str(seconds), "-q", "1000"]
            with beside(member.node.command(dnsperf)) as said:
                times = measure(member.node.socket, seconds * 0.95)
            tell("DNS queries", times, said)
        add_peers(member)
        with all_set_up_again(member) as said:
            times = measure(member.node.socket, seconds * 0.95)
        tell(f"{PEERS:,} peers set up again", times, said, BUDGET_AT_SCALE)
    sys.exit(not within and not SMOKE)


if __name__ == "__main__":
    main()
