"""How long an identity probe takes while 32 clients flood the socket and every change is held, and while DNS queries
flood the name server.

    python bench/bench_probe.py [--seconds S]

Each flooding client keeps 64 status requests under way (bench/peer/load.c; needs gcc).  wireguard-go is stopped, so
that the changes which other clients ask for hold the daemon's threads.  Every second probe has a connection of its own,
as those of probers do.  The DNS queries are dnsperf's, half of them for names that nobody answers for; without dnsperf
they are left out.  Exits with 1 when the 99th percentile is over 5 ms.  Needs root: the daemon is the real one.
"""

import argparse
import base64
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench_server import build_load
from lab import Connection, Lab
from lab.cluster import Member
from lab.frames import request_frame

from overlayd.proto import envelope, identity

FLOODERS, DEPTH = 32, 64
HELD = 20  # changes under way, more than the daemon has threads for
BUDGET = 0.005  # seconds, of the 99th percentile


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement; the changes are held for 10 s")
    args = parser.parse_args()
    load = build_load()
    worst = 0.0
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        queries = member.node.run_directory / "queries"
        queries.write_text("web.overlay.local A\nwww.example.org A\n")
        flood = [load, member.node.socket, str(FLOODERS), str(DEPTH), str(args.seconds)]
        dns_flood = member.node.command(
            ["dnsperf", "-s", "10.200.1.1", "-d", queries, "-l", str(args.seconds), "-q", "1000"]
        )
        cases = {"quiet": None, f"{FLOODERS} floods, handlers held": flood, "DNS queries": dns_flood}
        if shutil.which("dnsperf") is None:
            print("no dnsperf: without DNS queries")
            del cases["DNS queries"]
        for name, argv in cases.items():
            with ExitStack() as stack:
                said = ""
                if argv is None:
                    times = measure(member.node.socket, args.seconds / 4)
                else:
                    if argv is flood:
                        stack.enter_context(handlers_held(member))
                    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
                    times = measure(member.node.socket, args.seconds * 0.95)
                    numbers = re.findall(
                        r"^(?:  Queries per second: *)?([\d.]+)$", process.communicate()[0], re.MULTILINE
                    )
                    said = f"   beside {float(numbers[-1]):,.0f} answers a second"
            p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
            print(
                f"{name:28} p50 {p50 * 1e3:6.2f} ms   p99 {p99 * 1e3:6.2f} ms   max {times[-1] * 1e3:6.2f} ms   "
                f"of {len(times)}{said}"
            )
            worst = max(worst, p99)
    sys.exit(worst > BUDGET)


if __name__ == "__main__":
    main()
