"""What grows: attach with the containers, status, memory, adding and restart with the peers, lookup with the prefixes.

Owns: these measurements, each beside others in the same run.  Must not know: how they are shown.

A series is line -> [(size, value), ...]; values are seconds, or bytes.
"""

import base64
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median

from bench_allowedips import PEERS as TABLES
from bench_allowedips import addresses, filled, prefixes
from bench_server import answers_a_second
from check import machine
from check.cases.containers import SUBNET, attach, detach
from check.daemon import Daemon, laboratory, request
from check.kernel_work import BareHost
from check.meter import memory
from check.tree import this_checkout
from engines import ENGINES
from lab import Lab
from lab.crowd import Crowd
from smoke import SMOKE

from overlayd.linux import netns

Series = dict[str, list[tuple[int, float]]]

CONTAINERS = (1, 3) if SMOKE else (1, 10, 100, 300, 1000)
MOST_OF_ENGINES = 300  # each takes tens of milliseconds
IN_TURN = 2 if SMOKE else 20
PEERS = (5, 10) if SMOKE else (100, 1_000, 10_000, 50_000)
NAMES = 20 if SMOKE else 100_000
PREFIXES = (100, 1_000) if SMOKE else (1_000, 10_000, 100_000, 1_000_000)


def _ours_first(lines: Series) -> Series:
    """So ours has the same colour in every plot."""
    return dict(sorted(lines.items(), key=lambda line: not line[0].startswith("overlayd")))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def attach_by_containers() -> Series:
    """Seconds of one attach, with so many containers on the bridge already."""
    found: Series = defaultdict(list)
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        spare = stack.enter_context(Crowd(lab.prefix, IN_TURN)).pids
        standing = stack.enter_context(Crowd(lab.prefix, CONTAINERS[-1] - 1)).pids
        for name, point in _attaching(lab, stack, spare, standing):
            found[name].append(point)
    return dict(found)


def _attaching(
    lab: Lab, stack: ExitStack, spare: list[int], standing: list[int]
) -> Iterator[tuple[str, tuple[int, float]]]:
    daemon = Daemon(lab, this_checkout(), "alpha")
    daemon.set_up()
    client = stack.enter_context(daemon.client())
    client.ask(request("setup_service_overlay", service="web", mode="shared", subnet=SUBNET))
    attached = 0
    for size in CONTAINERS:
        client.ask_all([attach(pid) for pid in standing[attached : size - 1]])
        attached = size - 1
        times = client.ask_each([attach(pid) for pid in spare])
        yield "overlayd, committed to disk, over its socket", (size, median(times))
        client.ask_all([detach(pid) for pid in spare])
    client.ask_all([detach(pid) for pid in standing])
    bare = stack.enter_context(closing(BareHost(lab.node("bare"))))
    attached = 0
    for size in CONTAINERS:
        for place in range(attached, size - 1):
            bare.attach(standing[place], place)
        attached = size - 1
        places = range(size, size + len(spare))
        times = []
        for place, pid in zip(places, spare, strict=False):
            start = time.perf_counter()
            bare.attach(pid, place)
            bare.sync()
            times.append(time.perf_counter() - start)
        yield "the kernel's work by hand, and one fdatasync", (size, median(times))
        bare.detach(places)
    bare.detach(range(attached))
    for engine in ENGINES:
        if engine.missing():
            continue
        node = lab.node(engine.name.partition(" ")[0].lower())
        sizes = [size for size in CONTAINERS if size <= MOST_OF_ENGINES]
        theirs = stack.enter_context(Crowd(lab.prefix, sizes[-1])).pids
        descriptor = os.open(node.namespace, os.O_RDONLY)
        try:
            with netns.entered(descriptor):
                tool, attached = engine(node.run_directory), 0
                for size in sizes:
                    for pid in theirs[attached : size - 1]:
                        tool.attach(pid)
                    attached = size - 1
                    times = [timed(partial(tool.attach, pid)) for pid in spare[:10]]
                    yield engine.name, (size, median(times))
                    for pid in spare[:10]:
                        tool.detach(pid)
        finally:
            os.close(descriptor)


def peers_file(path: Path, count: int) -> list[tuple[str, str, str]]:
    """So many peers, written for `wg setconf`: their keys, endpoints and allowed IPs."""
    made = [
        (
            base64.b64encode(os.urandom(32)).decode(),
            f"198.18.{number >> 8 & 255}.{number & 255}:51820",
            f"10.{201 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32",
        )
        for number in range(count)
    ]
    path.write_text(
        "".join(f"[Peer]\nPublicKey={key}\nEndpoint={at}\nAllowedIPs={allowed}\n" for key, at, allowed in made)
    )
    return made


def by_peers() -> dict[str, Series]:
    """What grows with the peers: `status`, `memory`, `add` of all of them, and `restart`."""
    found: dict[str, Series] = {name: defaultdict(list) for name in ("status", "memory", "add", "restart")}
    for count in PEERS:
        with laboratory() as lab:
            daemon, bare = Daemon(lab, this_checkout(), "alpha"), lab.node("bare")
            daemon.set_up()
            bare.run(["sh", "-c", "mkdir -p /run/wireguard && wireguard-go bare >/dev/null 2>&1"])
            [wireguard] = bare.wireguard_pids()
            wg = ["nsenter", "-t", str(wireguard), "-m", "-n", "wg"]
            made = peers_file(bare.run_directory / "peers.conf", count)
            setconf = timed(partial(bare_run, [*wg, "setconf", "bare", "/run/peers.conf"]))
            found["add"]["wg setconf"].append((count, setconf))
            found["memory"]["the wireguard-go that holds them"].append((count, memory(wireguard)))
            dump = median([timed(partial(bare_run, [*wg, "show", "bare", "dump"])) for _ in range(3)])
            found["status"]["wg show dump"].append((count, dump))
            frames = [
                request("add_peer", public_key=key, endpoint=at, allowed_ips=allowed, persistent_keepalive_secs=0)
                for key, at, allowed in made
            ]
            with daemon.client() as client:
                found["add"]["overlayd, committed to disk"].append((count, timed(partial(client.ask_all, frames))))
                times, cached = [], []
                for number in range(3):
                    change = request("add_allowed_ip", pubkey=made[0][0], cidr=f"10.250.0.{number}/32")
                    client.ask(change)
                    times += client.ask_each([request("status")])
                    cached += client.ask_each([request("status")])
            found["status"]["overlayd, the first after a change"].append((count, median(times)))
            found["status"]["overlayd, again"].append((count, median(cached)))
            found["memory"]["overlayd"].append((count, memory(daemon.pid)))
            daemon.member.node.stop()
            found["restart"]["overlayd"].append((count, daemon.start()))
    return {name: _ours_first(lines) for name, lines in found.items()}


def bare_run(argv: list[str]) -> None:
    subprocess.run(["taskset", "-c", str(machine.SERVER), *argv], check=True, stdout=subprocess.DEVNULL)


def by_state() -> dict[str, dict[str, float]]:
    """what a node holds -> seconds from the start of its daemon until it listens, and its resident memory then."""
    found = {}
    with laboratory() as lab, Crowd(lab.prefix, CONTAINERS[-1]) as crowd:
        for number, (what, frames) in enumerate(
            {
                "nothing but its device": [],
                f"{CONTAINERS[-1]:,} containers": [attach(pid) for pid in crowd.pids],
                f"{NAMES:,} names": [
                    request("register_dns", name=f"svc{number}", ip=f"10.200.{number >> 8 & 255}.{number & 255}")
                    for number in range(NAMES)
                ],
            }.items()
        ):
            daemon = Daemon(lab, this_checkout(), f"node{number}")
            daemon.set_up()
            with daemon.client() as client:
                client.ask(request("setup_service_overlay", service="web", mode="shared", subnet=SUBNET))
                client.ask_all(frames)
            daemon.member.node.stop()
            took = daemon.start()
            found[what] = {"time": took, "memory": float(memory(daemon.pid))}
            daemon.member.node.stop()
    return found


def _look_up(lookup: Callable[[bytes], object], asked: list[bytes]) -> None:
    for each in asked:
        lookup(each)


def lookup_by_prefixes() -> Series:
    """Seconds of one lookup of an IPv6 address, from Python."""
    found: Series = defaultdict(list)
    for count in PREFIXES:
        held = prefixes(count, 16)
        asked = addresses(held)
        for table in TABLES:
            lookup = filled(table, held)
            rounds = [timed(partial(_look_up, lookup, asked)) for _ in range(3)]
            found["overlayd" if table == "AllowedIPs" else table].append((count, min(rounds) / len(asked)))
    return dict(found)


def answers_beside_rust() -> dict[str, dict[str, float]]:
    """case -> server -> status answers a second."""
    named = {"overlayd": "overlayd", "streams": "asyncio streams, orjson", "threads": "Rust, a thread a connection"}
    rates = answers_a_second(0.05 if SMOKE else 1.0, 1 if SMOKE else 5)
    return {case: {named[name]: rate for name, rate in each.items()} for case, each in rates.items()}
