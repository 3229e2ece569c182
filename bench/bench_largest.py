"""The largest legal request of each kind, again and again: how long it keeps the event loop, and who only asks for the
status.

    python bench/bench_largest.py [--seconds S] [--peers N] [--names N] [--containers N] [--only OP]

Prints, for each kind, how many were answered and with what; how long another client waited for its status: the median,
99th percentile and longest, in milliseconds; and the longest that the loop did not look at its sockets, in milliseconds
of a processor: by what the loop did itself, and together with what other threads of the daemon did meanwhile
(`loop_clock`).  In the first line beside nobody.  The waits are longer on a busy machine; the processor time is not.

Needs root: the daemon is the real one, in a namespace of its own.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("", "tests")]

import loop_clock  # noqa: E402
from lab import Lab  # noqa: E402
from lab.cluster import Member  # noqa: E402
from lab.frames import ANSWERS, Connection, request_frame  # noqa: E402
from smoke import SMOKE  # noqa: E402

TEXT = 1024  # characters
PROCESSES = multiprocessing.get_context("fork")
GAP = 0.002  # seconds between two questions of the quiet client
TOGETHER = 256  # requests that are sent before the first answer is read

Asked = dict[str, Any]


class Kind(NamedTuple):
    """requests: are sent at once.  undo: is asked afterwards and not measured, so that they may be asked again."""

    name: str
    requests: Sequence[Asked]
    undo: Sequence[Asked] = ()


def key(number: int) -> str:
    return b64encode(number.to_bytes(32, "big")).decode()


def cidrs(count: int, first: int) -> str:
    return ",".join(f"fd00:{first:x}:{number:x}:ffff:ffff:ffff:ffff:ffff/128" for number in range(count))


def peer(number: int, allowed_ips: str, **more: object) -> Asked:
    keys = {"public_key": key(number), "endpoint": "192.0.2.1:51820", "persistent_keepalive_secs": 0}
    return {"op": "add_peer", **keys, "allowed_ips": allowed_ips, **more}


def container(name: str) -> Asked:
    """One that shares the host's network: of the others the kernel's part is the longest."""
    return {"handle": {"platform": "host_shared", "id": name}}


def attach(name: str, **more: object) -> Asked:
    return {"op": "attach_container", **container(name), "service": "web", "join_global": False, **more}


def detach(name: str) -> Asked:
    return {"op": "detach_container", **container(name)}


def overlay(**more: object) -> Asked:
    names = {"deployment": "lab", "instance_id": "alpha", "cluster_cidr": "10.200.0.0/16"}
    keys = {"slice_cidr": "10.200.1.0/24", "wg_port": 51820, "nat": {"enabled": False}}
    return {"op": "setup_global_overlay", **names, **keys, **more}


def kinds() -> Iterator[Kind]:
    """Within the limits of the contract."""
    yield from of_peers()
    yield from of_services()
    yield from of_names()
    yield from of_the_node()
    yield from malformed()


def of_peers() -> Iterator[Kind]:
    candidates = [
        {"candidate_type": "host", "address": f"192.0.2.{number}:51820", "priority": number} for number in range(64)
    ]
    wide = [peer(1, cidrs(1024, turn), candidates=candidates) for turn in (1, 2)]
    gone: Asked = {"op": "remove_peer", "pubkey": key(1)}
    cidr = {"pubkey": key(1), "cidr": "fd00:1:ffff::/64"}
    added: Asked = {"op": "add_allowed_ip", **cidr}
    yield Kind("add_peer, 1,024 allowed IPs", wide[:1], [gone])
    yield Kind("the same, others each time", wide)
    yield Kind("the same, from another peer", [wide[0], {**wide[0], "public_key": key(2)}])
    yield Kind("remove_peer of it", [gone], wide[:1])
    almost = peer(1, cidrs(1023, 1))
    yield Kind("add_allowed_ip, the 1,024th", [almost, added])
    yield Kind("remove_allowed_ip of it", [{"op": "remove_allowed_ip", **cidr}], [added])
    yield Kind("add_peer, 512 of 63 at once", [peer(number, cidrs(63, number)) for number in range(3, 515)])
    yield Kind("remove_peer, those at once", [{**gone, "pubkey": key(number)} for number in range(3, 515)])
    dedicated: Asked = {"op": "setup_service_overlay", "service": "apart", "mode": "dedicated"}
    yield Kind("a peer of a dedicated one", [dedicated, {**wide[0], "scope": {"service": "apart"}}])
    yield Kind("teardown of a dedicated one", [{"op": "teardown_service_overlay", "service": "apart"}], [dedicated])
    grants = [f"10.200.{number >> 6}.{number & 63}/32" for number in range(1024)]
    edge: Asked = {"op": "mint_edge_peer", "name": "e" * 60, "ttl_secs": 3600, "allow": grants}
    yield Kind("mint_edge_peer", [edge])
    yield Kind("list_edge_peers", [{"op": "list_edge_peers"}])
    yield Kind("revoke_edge_peer", [{"op": "revoke_edge_peer", "name": "e" * 60}], [edge])


def of_services() -> Iterator[Kind]:
    setup: Asked = {"op": "setup_service_overlay", "service": "other", "mode": "auto"}
    teardown: Asked = {"op": "teardown_service_overlay", "service": "other"}
    yield Kind("setup_service_overlay", [setup], [teardown])
    yield Kind("teardown_service_overlay", [teardown], [setup])
    names = [f"zl-{number:05x}".ljust(110, "x") for number in range(65_536)]
    web = {"op": "setup_service_overlay", "service": "web", "mode": "auto"}
    yield Kind("prune_orphan_bridges", [{"op": "prune_orphan_bridges", "live_bridge_names": names}], [web])
    yield Kind("allocate_ip, 200 at once", [{"op": "allocate_ip", "service": "other", "join_global": False}] * 200)
    yield Kind("teardown of 200 addresses", [teardown], [setup])
    yield Kind("attach_container, 64 at once", [attach(f"c{number}") for number in range(64)])
    yield Kind("detach_container, 64 at once", [detach(f"c{number}") for number in range(64)])


def of_names() -> Iterator[Kind]:
    name: Asked = {"op": "register_dns", "name": "a" * TEXT, "ip": "10.200.1.9"}
    yield Kind("register_dns", [name])
    names = [{**name, "name": f"n{number}"} for number in range(TOGETHER)]
    yield Kind("register_dns, 256 at once", names)
    yield Kind("unregister_dns, those at once", [{**each, "op": "unregister_dns"} for each in names])
    yield Kind("list_dns", [{"op": "list_dns"}])
    yield Kind("query_dns", [{"op": "query_dns", "name": "n1"}])
    yield Kind("flush_dns", [{"op": "flush_dns"}])
    yield Kind("write_scoped_resolver", [{"op": "write_scoped_resolver", "zone": "a." * 500, "node_ip": "10.200.1.1"}])


def of_the_node() -> Iterator[Kind]:
    yield Kind("status", [{"op": "status"}])
    changed = peer(1, "fd00:1::/64")
    yield Kind("status after a change", [changed, {"op": "status"}])
    yield Kind("nat_status", [{"op": "nat_status"}])
    yield Kind("nat_tick", [{"op": "nat_tick"}])
    yield Kind("doctor", [{"op": "doctor"}])
    for what in ("services", "containers", "pools", "addresses", "networks", "peers"):
        yield Kind(f"list {what}", [{"op": "list", "what": what}])
    yield Kind("hello", [{"op": "hello"}])
    yield Kind("set_local_node_id", [{"op": "set_local_node_id", "node_id": number} for number in (2, 1)])
    yield Kind("set_local_wg_pubkey", [{"op": "set_local_wg_pubkey", "pubkey": key(1)}])
    servers = [f"{'s' * 60}.{number}.example:3478" for number in range(64)]
    nat = {"enabled": False, "stun_servers": servers, "turn_servers": [{"addr": server} for server in servers]}
    yield Kind("setup_global_overlay", [overlay(nat=nat)])
    yield Kind("another instance", [overlay(instance_id=name) for name in ("beta", "alpha")])
    yield Kind("another slice", [overlay(slice_cidr=f"10.200.{number}.0/24") for number in (2, 1)])
    yield Kind("renew_devices", [{"op": "renew_devices", "force": True}])
    yield Kind("teardown_global_overlay", [{"op": "teardown_global_overlay"}], [overlay()])


def malformed() -> Iterator[Kind]:
    unknown = {f"{number:x}": 1 for number in range(90_000)}
    yield Kind("unknown keys, 90,000", [{"op": "status", **unknown}])
    yield Kind("unknown text, 1 MiB", [{"op": "status", "x": "\x7f" * 170_000}])
    yield Kind("nested unknown", [{"op": "status", "x": [[number] for number in range(45_000)]}])
    names = [f"zl-{number:05x}".ljust(110, "x") for number in range(65_535)]
    yield Kind("bad names, 65,536", [{"op": "prune_orphan_bridges", "live_bridge_names": [*names, 1]}])
    yield Kind("8 MiB of text", [{"op": "\x7f" * (8 * 1024 * 1024 // 6 - 50)}])


class Quiet:
    """Asks for something small, in a process of its own, until told to stop: `nat_status`, or where that has a line for
    each peer what the daemon speaks.
    """

    def __init__(self, member: Member) -> None:
        self._ours, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(target=self._ask, args=(member.node.connect(), theirs))
        self._process.start()
        self._ours.recv()

    @staticmethod
    def _ask(client: Connection, pipe: Any) -> None:
        waits = []
        pipe.send("ready")
        while not pipe.poll(GAP):
            began = time.monotonic()
            client.request("hello")
            waits.append(1e3 * (time.monotonic() - began))
        pipe.send(sorted(waits))

    def told(self) -> str:
        self._ours.send("stop")
        waits = self._ours.recv()
        self._process.join()
        if not waits:  # the first question is not answered yet
            return f"{'':24}"
        return f"{statistics.median(waits):8.2f}{waits[int(len(waits) * 0.99)]:8.1f}{waits[-1]:8.1f}"


class Asking:
    """The client that asks for much."""

    def __init__(self, member: Member) -> None:
        self.client = member.node.connect()
        self.client.further = {*ANSWERS.values()}

    def ask(self, requests: Sequence[Asked]) -> Asked:
        """Ask all at once; the last answer."""
        answer: Asked = {}
        for at in range(0, len(requests), TOGETHER):
            part = requests[at : at + TOGETHER]
            self.client.send(b"".join(request_frame(1, **each) for each in part))
            for _ in part:
                answer = self.client.receive()["response"]
        return answer

    def ask_again(self, kind: Kind, seconds: float) -> tuple[int, str, list[tuple[float, float]]]:
        """How many answers there were, how the last one begins, and between which moments they were awaited."""
        frames, count, answer = b"".join(request_frame(1, **each) for each in kind.requests), 0, {}
        spans: list[tuple[float, float]] = []
        end = time.monotonic() + seconds
        while count < 2 or time.monotonic() < end:
            began = time.monotonic()
            self.client.send(frames)
            for _ in kind.requests:
                answer = self.client.receive()["response"]
                count += 1
            spans.append((began, time.monotonic()))
            if kind.undo:
                time.sleep(3 * loop_clock.INTERVAL)
                self.ask(kind.undo)
                time.sleep(3 * loop_clock.INTERVAL)
        return count, json.dumps(answer)[:50], spans


def longest(file: Path, spans: Sequence[tuple[float, float]]) -> str:
    """Of the loop and of the process, within these spans."""
    found = list(loop_clock.turns(file, spans[0][0]))
    inside = [turn for turn in found if any(began < turn.at < end + 2 * loop_clock.INTERVAL for began, end in spans)]
    thread, process = (max((times(turn) for turn in inside), default=0.0) for times in (_thread, _process))
    return f"{1e3 * thread:8.1f}{1e3 * process:8.1f}"


def _thread(turn: loop_clock.Turn) -> float:
    return turn.thread


def _process(turn: loop_clock.Turn) -> float:
    return turn.process


def fill(asking: Asking, peers: int, names: int, containers: int) -> None:
    """What the node has beside what is asked."""
    asking.ask([{"op": "setup_service_overlay", "service": name, "mode": "auto"} for name in ("web", "other")])
    numbers = range(1000, 1000 + peers)
    allowed = (f"10.{201 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32" for number in numbers)
    asking.ask([peer(number, cidr) for number, cidr in zip(numbers, allowed, strict=True)])
    asking.ask([{"op": "register_dns", "name": f"there-{number}", "ip": "10.200.1.9"} for number in range(names)])
    asking.ask([attach(f"there-{number}", isolation_network=f"i{number % 50}") for number in range(containers)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.01 if SMOKE else 2.0, help="of each kind")
    parser.add_argument("--peers", type=int, default=2 if SMOKE else 0)
    parser.add_argument("--names", type=int, default=2 if SMOKE else 0)
    parser.add_argument("--containers", type=int, default=2 if SMOKE else 0, help="250 at most: a service's subnet")
    parser.add_argument("--only", default="status" if SMOKE else "", help="those whose names begin so")
    args = parser.parse_args()
    print(f"{'':32}{'answers':>8}{'p50':>8}{'p99':>8}{'max':>8}{'loop':>8}{'all':>8}")
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        file = member.node.run_directory.parent / "turns"
        member.node.program = loop_clock.command(file)
        member.start("--wireguard", "userspace")
        member.set_up({"enabled": False})
        asking = Asking(member)
        fill(asking, args.peers, args.names, args.containers)
        quiet, began = Quiet(member), time.monotonic()
        time.sleep(args.seconds)
        print(f"{'nobody':32}{'':8}{quiet.told()}{longest(file, [(began, time.monotonic())])}")
        for kind in kinds():
            if kind.name.startswith(args.only):
                quiet = Quiet(member)
                count, answer, spans = asking.ask_again(kind, args.seconds)
                print(f"{kind.name:32}{count:8}{quiet.told()}{longest(file, spans)}  {answer}", flush=True)


if __name__ == "__main__":
    main()
