"""How long an identity probe takes while 32 clients flood the socket and every change is held.

    python bench/bench_probe.py [--seconds S]

Each flooding client keeps 64 status requests under way (bench/peer/load.c; needs gcc).  wireguard-go is stopped, so
that the changes which other clients ask for hold the daemon's threads.  Every second probe has a connection of its own,
as those of probers do.  Exits with 1 when the 99th percentile is over 5 ms.  Needs root: the daemon is the real one.
"""

import argparse
import base64
import os
import secrets
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
        for name, flooded in (("quiet", False), (f"{FLOODERS} floods, handlers held", True)):
            with ExitStack() as stack:
                said = ""
                if flooded:
                    stack.enter_context(handlers_held(member))
                    argv = [load, member.node.socket, str(FLOODERS), str(DEPTH), str(args.seconds)]
                    flood = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
                    times = measure(member.node.socket, args.seconds * 0.95)
                    said = f"   beside {float(flood.communicate()[0]):,.0f} answers a second"
                else:
                    times = measure(member.node.socket, args.seconds / 4)
            p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
            print(
                f"{name:28} p50 {p50 * 1e3:6.2f} ms   p99 {p99 * 1e3:6.2f} ms   max {times[-1] * 1e3:6.2f} ms   "
                f"of {len(times)}{said}"
            )
            worst = max(worst, p99)
    sys.exit(worst > BUDGET)


if __name__ == "__main__":
    main()
