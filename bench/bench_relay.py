"""Datagrams through our relay, beside coturn in the same run.

    python bench/bench_relay.py [--seconds S] [--rounds N]

One session with one channel.  `up` is from the client to the peer, `down` the way back, both with a window of
datagrams under way; `ping` is one datagram there and back.  The load is a C program of one thread
(bench/peer/relay_load.c; needs gcc); servers, load and peer share the machine's cores, so beside the rate stands the
processor time that the server took for a datagram, which the others disturb less.  coturn runs one relay thread, as
ours does.  The servers take turns, and the median of the rounds counts; a ratio over 1 is in our favour.  Needs root
and coturn.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from socket import SOCK_DGRAM

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from check.meter import processor_seconds  # noqa: E402
from check.programs import compiled  # noqa: E402
from lab import Lab, Node  # noqa: E402
from lab.turn import PORT, TurnSocket, coturn, our_relay  # noqa: E402
from smoke import SMOKE  # noqa: E402

WINDOW, SIZE = 64, 1300  # under way; bytes, a full packet of WireGuard
SERVERS: dict[str, Callable[[Node, Path], AbstractContextManager[subprocess.Popen[str]]]] = {
    "coturn": coturn,
    "overlayd": our_relay,
}


def measure(lab: Lab, name: str, load: Path, seconds: float) -> dict[str, float]:
    relay, nodes, peer = lab.nodes
    found = {}
    with tempfile.TemporaryDirectory(dir=lab.directory) as directory, ExitStack() as stack:
        server = stack.enter_context(SERVERS[name](relay, Path(directory)))
        client = stack.enter_context(TurnSocket(nodes.open_socket(kind=SOCK_DGRAM), (str(relay.address), PORT)))
        there = stack.enter_context(peer.open_socket(kind=SOCK_DGRAM))
        there.bind((str(peer.address), 51820))
        relayed = client.allocate()
        client.send((peer.address, 51820), b"bind the channel")
        client.run(lambda: all(known.bound for known in client.client._peers.values()))
        there.recv(100)
        there.connect((str(relayed[0]), relayed[1]))
        client.socket.connect(client.server)
        descriptors = (client.socket.fileno(), there.fileno())
        for case in ("up", "down", "ping"):
            before = processor_seconds(server.pid)
            arguments = [*descriptors, case, WINDOW, SIZE, seconds]
            said = subprocess.run(
                [load, *map(str, arguments)], pass_fds=descriptors, check=True, capture_output=True, text=True
            ).stdout.split()
            used = processor_seconds(server.pid) - before
            if case == "ping":
                found["ping, median round trip, us"], found["ping, 90th percentile, us"] = map(float, said)
            else:
                found[f"{case}, datagrams a second"] = float(said[0])
                found[f"{case}, processor time of a datagram, us"] = used / (float(said[0]) * seconds) * 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=0.1 if SMOKE else 0.8, help="of each of the three measurements of a round"
    )
    parser.add_argument("--rounds", type=int, default=1 if SMOKE else 3)
    args = parser.parse_args()
    if shutil.which("turnserver") is None:
        print("no coturn: nothing to compare with (make test-packages installs it)")
        return
    load = compiled("relay_load")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with Lab() as lab:
        for name in ("relay", "nodes", "peer"):
            lab.node(name)
        for _ in range(args.rounds):
            for name in SERVERS:
                for what, value in measure(lab, name, load, args.seconds).items():
                    found[what][name].append(value)
    print(f"{'':42} {'coturn':>10} {'overlayd':>10}   ratio")
    for what, values in found.items():
        theirs, ours = (statistics.median(values[name]) for name in SERVERS)
        ratio = ours / theirs if "a second" in what else theirs / ours
        print(f"{what:42} {theirs:10,.1f} {ours:10,.1f}   {ratio:5.2f}")


if __name__ == "__main__":
    main()
