"""TCP through the tunnel: one stream between containers of two nodes, beside the same wireguard-go without overlayd.

    python bench/bench_tunnel.py [rounds]

Run as root; everything runs in throw-away network namespaces.  Each wireguard-go at hand takes part: the installed one,
and those that `make test-wireguard-go` has put into .cache/wireguard-go.  All ways are there at once and take turns, a
second each: only what one carries beside another, in the same turn, is worth something.

"bare" is the device alone: wireguard-go driven by wg(8), from node to node, in a session of its own as overlayd's is:
the kernel shares the processors out by session (autogroup in sched(7)), and in that of iperf3 it carries a fifth more.
"node" goes from node to node through the device that overlayd made; "containers" from a container on a bridge to one on
another node's.  "local" is between two containers of one node, beside a pair of veths on a bridge ("bridge alone")
without anything of overlayd's.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lab import Lab
from lab.cluster import Pair
from lab.node import Node
from lab.traffic import Place
from smoke import SMOKE

from overlayd import keys

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, AMOUNT = (1, ("--bytes", "1M")) if SMOKE else (10, ("--time", "1"))  # of iperf3
PORT = 51900
MTU = 1440  # as overlayd gives its devices, over an underlay of 1500
BARE = ("10.99.0.1", "10.99.0.2")


class Way(NamedTuple):
    """A way that packets take.  beside: the name of the way that it is compared with."""

    name: str
    beside: str
    measure: Callable[[], float]


def stream(source: Place, destination: Place, address: str) -> float:
    """Mbit/s of one TCP stream."""
    listening = destination.command(["iperf3", "--server", "--one-off", "--bind", address, "--forceflush"])
    with subprocess.Popen(listening, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        next(line for line in server.stdout if "listening" in line)
        sending = source.command(["iperf3", "--client", address, "--json", *AMOUNT])
        told = json.loads(subprocess.run(sending, check=True, capture_output=True, text=True).stdout)
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e6


def programs() -> Iterator[str]:
    """The wireguard-go programs at hand, each version once."""
    versions = set()
    installed = shutil.which("wireguard-go")
    others = map(str, sorted(ROOT.glob(".cache/wireguard-go/*/wireguard-go")))
    for path in ([installed] if installed else []) + [*others]:
        version = subprocess.check_output([path, "--version"], text=True).split()[1]
        if version not in versions:
            versions.add(version)
            yield path


def bare_devices(nodes: tuple[Node, Node], program: str) -> None:
    """A device on each node, the other's peer."""
    private = [keys.generate() for _ in nodes]
    for number, node in enumerate(nodes):
        other = 1 - number
        peer = f"peer {keys.text(keys.public(private[other]))} endpoint {nodes[other].endpoint(PORT)}"
        script = (
            f"mkdir -p /run/wireguard && LOG_LEVEL=error setsid --wait {program} bare > /dev/null 2>&1 &&"
            f" echo {keys.text(private[number])} | wg set bare listen-port {PORT} private-key /dev/stdin"
            f" {peer} allowed-ips {BARE[other]}/32 &&"
            f" ip address add {BARE[number]}/24 dev bare && ip link set bare mtu {MTU} up"
        )
        node.run(["sh", "-c", script])


def bridge_alone(node: Node, first: int, second: int) -> None:
    """A bridge between two processes' network namespaces."""
    script = ["ip link add alone type bridge", "ip link set alone up"]
    for number, pid in enumerate((first, second)):
        inside = f"nsenter --target {pid} --net ip"
        script += [
            f"ip link add alone{number} type veth peer name e0 netns {pid}",
            f"ip link set alone{number} master alone up",
            f"{inside} address add 10.98.0.{number + 1}/24 dev e0",
            f"{inside} link set e0 mtu {MTU} up",
        ]
    node.run(["sh", "-ec", "\n".join(script)])


def ways(stack: ExitStack, program: str) -> list[Way]:
    """What goes by one wireguard-go."""
    version = subprocess.check_output([program, "--version"], text=True).split()[1]
    lab = stack.enter_context(Lab())
    pair = Pair(lab, options=("--wireguard", "userspace", "--wireguard-go", program))
    alone = lab.node("gamma"), lab.node("delta")
    for node in (pair.alpha.node, pair.beta.node, *alone):
        # A cable of the laboratory cuts segments, for captures; a real card takes them whole.
        node.run(["ip", "link", "set", "uplink", "gso_max_segs", "65535"])
    bare_devices(alone, program)
    name = f"wireguard-go {version}"
    there = pair.beta.request("status")["node_ip"]
    neighbour, unbridged = lab.container(), (lab.container(), lab.container())
    local = pair.alpha.attach(neighbour, "web")
    bridge_alone(alone[0], unbridged[0].pid, unbridged[1].pid)
    return [
        Way(f"{name}, bare", f"{name}, bare", lambda: stream(*alone, BARE[1])),
        Way(f"{name}, node", f"{name}, bare", lambda: stream(pair.alpha.node, pair.beta.node, there)),
        Way(f"{name}, containers", f"{name}, bare", lambda: stream(pair.web, pair.db, pair.db_address)),
        Way(f"{name}, bridge alone", f"{name}, bridge alone", lambda: stream(*unbridged, "10.98.0.2")),
        Way(f"{name}, local", f"{name}, bridge alone", lambda: stream(pair.web, neighbour, local)),
    ]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with ExitStack() as stack:
        paths = [path for program in [*programs()][: 1 if SMOKE else None] for path in ways(stack, program)]
        carried: dict[str, list[float]] = {path.name: [] for path in paths}
        for number in range(rounds):
            for path in paths if number % 2 == 0 else reversed(paths):
                carried[path.name].append(path.measure())
    first = next(iter(carried.values()))
    for path in paths:
        own = carried[path.name]
        beside = statistics.median(a / b for a, b in zip(own, carried[path.beside], strict=True))
        old = statistics.median(a / b for a, b in zip(own, first, strict=True))
        print(
            f"{path.name:40} {statistics.median(own):8.0f} Mbit/s   {beside:5.2f} x {path.beside.split(', ')[1]:12}"
            f"   {old:5.2f} x {paths[0].name}"
        )


if __name__ == "__main__":
    main()
