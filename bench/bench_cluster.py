"""A cluster on an etcd with 5,000 registered nodes beside three real daemons: memory, start, and how soon a change is
everywhere.

etcd has three members.  The registered nodes are records; followers are streams of what a daemon's own stream is made
of.  A burst is read once by followers that keep their streams open, and once by those that read in windows, as daemons
do; once by followers of etcd's JSON gateway; and once by nobody, since the changes cost etcd the same whoever reads.

    python bench/bench_cluster.py           (root: makes network namespaces; etcd)
"""

import os
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lab import Lab  # noqa: E402
from lab.etcd import Etcd  # noqa: E402
from lab.patience import until  # noqa: E402
from lab.registered import Registered  # noqa: E402
from lab.sites import Site, sites  # noqa: E402
from smoke import SMOKE  # noqa: E402

NODES, FOLLOWERS, BURST_FOLLOWERS, BURST, RUNS = (20, 5, 5, 30, 1) if SMOKE else (5_000, 5_000, 500, 1_000, 5)
PACE = 50.0  # changes a second of a burst, five times the rate from which on nodes read in windows
RATE = 10  # of the cluster, changes a second
TICKS = 100  # of /proc/PID/stat, a second
PATIENCE = 300.0  # seconds


# From the specification (cluster.md, "Acceptance" 9).
SOONEST, CHEAPEST = 2.0, 1 / 3  # seconds for one change; of etcd's processor time, by windows and by open streams

Told = list[tuple[str, str]]  # what was measured, and how it came out


def rss(pid: int) -> float:
    """MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def processor(*pids: int) -> float:
    """Seconds that processes have had the processor."""
    return (
        sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[11:13])) for pid in pids) / TICKS
    )


def pid_of(site: Site) -> int:
    assert site.node.daemon is not None
    return site.node.daemon.pid


def members(etcd: Etcd) -> list[int]:
    return [each.process.pid for each in etcd.members if each.process is not None]


def on_devices(nodes: list[Site], answer: dict[str, Any]) -> None:
    """Wait until the last change that `Registered` told of is on all nodes' devices."""
    line = f"{answer['key']}\t{answer['endpoint']}"
    for site in nodes:
        until(partial(_shows, site, site.status["interface"], line), site.node.log_tail, seconds=PATIENCE)


def _shows(site: Site, device: str, line: str) -> bool:
    return line in site.node.run(["wg", "show", device, "endpoints"])


def knows_all(site: Site) -> bool:
    return bool(site.status["peer_count"] == NODES + 2)


def main() -> None:
    for what, value in measure():
        print(f"{what:<72}{value:>14}")


def measure() -> Told:
    """Everything, in the order of a table."""
    told: Told = []
    with Lab() as lab, Etcd(lab, 3) as etcd:
        nodes = sites(lab, etcd, ["alpha", "beta", "gamma"], ["--cluster-cidr", "10.0.0.0/8"])
        time.sleep(0 if SMOKE else 3)
        told.append(("memory of a daemon, three nodes", f"{rss(pid_of(nodes[0])):.0f} MiB"))
        # Who writes does not wait for those who read.
        first, second = (Registered(member.node, etcd.urls, "prod") for member in etcd.members[:2])
        with first as writer, second as reader:
            told += join(etcd, nodes, writer)
            told += restart(nodes[2])
            told += change(etcd, nodes, writer, reader)
            told += burst(etcd, nodes, writer, reader)
    told.append(("processes that wanted this machine's processors meanwhile", f"{os.getloadavg()[1]:.0f}"))
    return told


def join(etcd: Etcd, nodes: list[Site], writer: Registered) -> Told:
    before, used = time.monotonic(), processor(*map(pid_of, nodes))
    took = writer.ask("register", NODES)["seconds"]
    for site in nodes:
        until(partial(knows_all, site), site.node.log_tail, seconds=PATIENCE)
    everywhere = time.monotonic() - before
    used = (processor(*map(pid_of, nodes)) - used) / 3
    return [
        (f"{NODES:,} nodes registered at once", f"{took:.1f} s"),
        ("all are peers of the three daemons' devices after", f"{everywhere:.1f} s"),
        ("processor time of a daemon for that", f"{used:.1f} s"),
        (f"memory of a daemon, {NODES:,} nodes", f"{rss(pid_of(nodes[0])):.0f} MiB"),
        ("memory of a member of etcd", f"{max(map(rss, members(etcd))):.0f} MiB"),
    ]


def restart(site: Site) -> Told:
    taken = []
    for _ in range(RUNS):
        site.node.stop()
        began = time.monotonic()
        site.start()
        taken.append(time.monotonic() - began)
    site.state("connected")
    return [("start of a daemon to ready, with these peers", f"{statistics.median(taken):.2f} s")]


def known(writer: Registered, reader: Registered, count: int, first: int, pace: float) -> tuple[float, dict[str, Any]]:
    """Change records; seconds until all followers know, and what the last change is."""
    began = time.monotonic()
    answer = writer.ask("change", count, first, pace)
    reader.ask("reach", answer["revision"])
    return time.monotonic() - began, answer


def change(etcd: Etcd, nodes: list[Site], writer: Registered, reader: Registered) -> Told:
    opened = reader.ask("follow", FOLLOWERS, 1e9, NODES)["seconds"]
    held = max(map(rss, members(etcd)))
    streams, devices, used = [], [], []
    for number in range(RUNS):
        before, began = processor(*members(etcd)), time.monotonic()
        seconds, answer = known(writer, reader, 1, number, 1e9)
        streams.append(seconds)
        on_devices(nodes, answer)
        devices.append(time.monotonic() - began)
        used.append(processor(*members(etcd)) - before)
    everywhere = statistics.median(streams)
    return [
        (f"{FOLLOWERS:,} followers opened", f"{opened:.1f} s"),
        ("memory of a member of etcd, with its part of them", f"{held:.0f} MiB"),
        (f"a change is known to all followers after (goal: {SOONEST:g} s)", f"{everywhere:.2f} s"),
        ("and on the three daemons' devices after", f"{statistics.median(devices):.2f} s"),
        ("processor time of etcd's three members for it", f"{statistics.median(used):.2f} s"),
    ]


def burst(etcd: Etcd, nodes: list[Site], writer: Registered, reader: Registered) -> Told:
    """Once before nobody, for what the changes themselves cost etcd; then once for each way of reading."""
    told, reading = Told(), []
    reader.ask("follow", 0, RATE, NODES)
    unread, _, _ = _burst(etcd, nodes, writer, reader)
    told.append((f"etcd's processor time for {BURST:,} changes that nobody follows but the three", f"{unread:.1f} s"))
    for what, rate, json in (
        ("streams of JSON that stay open", 1e9, 1),
        ("streams that stay open", 1e9, 0),
        ("windows", RATE, 0),
    ):
        reader.ask("follow", BURST_FOLLOWERS, rate, NODES, json)
        before = etcd.told()
        spent, seconds, everywhere = _burst(etcd, nodes, writer, reader)
        messages, changes = (now - then for now, then in zip(etcd.told(), before, strict=True))
        reading.append(spent - unread)
        told += [
            (f"{BURST:,} changes in a burst, {BURST_FOLLOWERS:,} followers, {what}", f"{seconds:.1f} s"),
            ("processor time of etcd's three members for it", f"{spent:.1f} s"),
            ("changes that they told, and messages which that took", f"{changes:,}, {messages:,}"),
            ("on the three daemons' devices after", f"{everywhere:.1f} s"),
        ]
    gateway, streaming, windowed = reading
    whole = [unread + each * FOLLOWERS / BURST_FOLLOWERS for each in (streaming, windowed)]
    told += [
        ("etcd's by gRPC, of that by JSON, open streams, without the changes themselves", _part(streaming, gateway)),
        ("etcd's by windows, of that by open streams, likewise", _part(windowed, streaming)),
        ("etcd's by windows, of that by open streams of JSON, likewise", _part(windowed, gateway)),
        (f"with them, as it is before {FOLLOWERS:,} followers (computed; goal: {CHEAPEST:.2f})", _part(*whole[::-1])),
    ]
    return told


def _part(some: float, whole: float) -> str:
    return f"{some / whole:.2f}" if whole > 0 else "too little"


def _burst(etcd: Etcd, nodes: list[Site], writer: Registered, reader: Registered) -> tuple[float, float, float]:
    """Seconds of etcd's processor time, until all followers know, and until the devices have it."""
    before, began = processor(*members(etcd)), time.monotonic()
    seconds, answer = known(writer, reader, BURST, 0, PACE)
    spent = processor(*members(etcd)) - before
    on_devices(nodes, answer)
    return spent, seconds, time.monotonic() - began


if __name__ == "__main__":
    main()
