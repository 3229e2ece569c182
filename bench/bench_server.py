"""Status requests over the daemon's own socket, beside two servers of the same wire in the same run.

    python bench/bench_server.py [--seconds S] [--rounds N]

- `streams`: asyncio streams on uvloop, orjson, one write an answer: what one writes first.
- `threads`: Rust with serde, a thread for each connection, four system calls a request (bench/peer; needs cargo, and is
  left out without).

The load is a C program of one thread (bench/peer/load.c; needs gcc).  The servers take turns, and the median of the
rounds counts.  Needs root: the daemon is the real one, in a namespace of its own.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import orjson
import uvloop

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from check.programs import compiled  # noqa: E402
from lab import Lab  # noqa: E402
from smoke import SMOKE  # noqa: E402

CASES = {
    "one client, 64 pipelined": (1, 64),
    "64 clients, one request each": (64, 1),
    "64 clients, 64 pipelined each": (64, 64),
    "one client, ping-pong": (1, 1),
}
# In the last case both ends share a core: else it measures how long a sleeping core takes to wake.
PING_PONG = "one client, ping-pong"


def serve_streams(path: str, public_key: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int.from_bytes(await reader.readexactly(4), "little")
                frame = orjson.loads(await reader.readexactly(length))
                response: dict[str, object] = {"result": "ok"}
                if frame["request"]["op"] == "status":
                    response = {"result": "status", "public_key": public_key, "peer_count": 0, "service_count": 0}
                answer = orjson.dumps({"frame": "response", "id": frame["id"], "response": response})
                writer.write(len(answer).to_bytes(4, "little") + answer)
                await writer.drain()

    async def main() -> None:
        async with await asyncio.start_unix_server(serve, path) as server:
            await server.serve_forever()

    uvloop.run(main())


def build_peer() -> Path | None:
    """Compile the Rust peer; None without cargo, and for a smoke test, which takes nothing from the network."""
    cargo = shutil.which("cargo")
    if cargo is None or SMOKE:
        return None
    target, manifest = BUILD / "peer", ROOT / "bench/peer/Cargo.toml"
    options: list[str | Path] = ["--release", "--quiet", "--manifest-path", manifest, "--target-dir", target]
    subprocess.run([cargo, "build", *options], check=True)
    return target / "release/peer"


@contextmanager
def running(argv: list[str | Path], socket: Path) -> Iterator[int]:
    """A peer, for as long as the block runs; its pid."""
    process = subprocess.Popen(argv)
    try:
        while not socket.exists():
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def measure(load: Path, socket: Path, connections: int, depth: int, seconds: float) -> float:
    """Answers a second."""
    argv: list[str | Path] = [load, socket, str(connections), str(depth), str(seconds)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def answers_a_second(seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """case -> server -> the median of so many measurements of so many seconds, in turn."""
    processors = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, processors)
        load, rust = compiled("load"), build_peer()
        node = stack.enter_context(Lab()).node("alpha")
        node.start()
        with node.connect() as client:
            public_key = client.request("status")["public_key"]
        sockets = {"overlayd": node.socket, "streams": node.run_directory / "streams.sock"}
        peers: dict[str, list[str | Path]] = {"streams": [sys.executable, __file__, "--serve-streams"]}
        if rust is None:
            print("no cargo, or a smoke test: without the Rust peer")
        else:
            sockets["threads"] = node.run_directory / "threads.sock"
            peers["threads"] = [rust]
        assert node.daemon is not None
        servers = [node.daemon.pid]
        for name, argv in peers.items():
            servers.append(stack.enter_context(running([*argv, sockets[name], public_key], sockets[name])))
        found: dict[str, dict[str, float]] = {}
        for case, (connections, depth) in CASES.items():
            if case == PING_PONG:
                for pid in (*servers, os.getpid()):
                    os.sched_setaffinity(pid, {0})
            rates: dict[str, list[float]] = {name: [] for name in sockets}
            for _ in range(rounds):
                for name, socket in sockets.items():
                    rates[name].append(measure(load, socket, connections, depth, seconds))
            found[case] = {name: statistics.median(each) for name, each in rates.items()}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.05 if SMOKE else 1.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=1 if SMOKE else 5)
    parser.add_argument("--serve-streams", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_streams:
        serve_streams(*args.serve_streams)
        return
    rates = answers_a_second(args.seconds, args.rounds)
    servers = list(next(iter(rates.values())))
    print(f"{'status answers a second':32}" + "".join(f"{name:>12}" for name in servers))
    for case, medians in rates.items():
        ratios = [f"{medians['overlayd'] / medians[name]:.2f} x {name}" for name in servers[1:]]
        print(f"{case:32}" + "".join(f"{medians[name]:12,.0f}" for name in servers) + "   " + ", ".join(ratios))


if __name__ == "__main__":
    main()
