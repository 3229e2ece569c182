"""The largest legal request of each kind, again and again, and what it costs a client that only asks for the status.

    python bench/bench_largest.py [--seconds S] [--only OP]

Prints, for each kind, how many were answered, with what, and how long the other client waited: its median, 99th
percentile and longest, in milliseconds; in the first line beside nobody.  Needs root: the daemon is the real one, in a
namespace of its own.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("", "tests")]

from lab import Lab  # noqa: E402
from lab.cluster import Member  # noqa: E402
from lab.frames import ANSWERS, Connection, request_frame  # noqa: E402
from smoke import SMOKE  # noqa: E402

KEY = b64encode(b"\1" * 32).decode()
TEXT = 1024  # characters
PROCESSES = multiprocessing.get_context("fork")
GAP = 0.002  # seconds between two questions of the quiet client


def cidrs(count: int, first: int) -> list[str]:
    return [f"fd00:{first:x}:{number:x}:ffff:ffff:ffff:ffff:ffff/128" for number in range(count)]


def requests() -> Iterator[tuple[str, dict[str, Any] | list[dict[str, Any]]]]:
    """Names and requests, within the limits of the contract; of some many at once."""
    yield "status", {"op": "status"}
    yield "nat_status", {"op": "nat_status"}
    yield "doctor", {"op": "doctor"}
    peer = {"public_key": KEY, "endpoint": "192.0.2.1:51820", "persistent_keepalive_secs": 0}
    candidates = [
        {"candidate_type": "host", "address": f"192.0.2.{number}:51820", "priority": number} for number in range(64)
    ]
    for turn in (1, 2):
        each = {**peer, "allowed_ips": ",".join(cidrs(1024, turn)), "candidates": candidates}
        yield f"add_peer, 1,024 allowed IPs ({turn})", {"op": "add_peer", **each}
    yield "add_allowed_ip", {"op": "add_allowed_ip", "pubkey": KEY, "cidr": "fd00:1:0::/64"}
    yield "remove_peer", {"op": "remove_peer", "pubkey": KEY}
    names = [f"zl-{number:05x}".ljust(110, "x") for number in range(65_536)]
    yield "prune_orphan_bridges", {"op": "prune_orphan_bridges", "live_bridge_names": names}
    yield "register_dns", {"op": "register_dns", "name": "a" * TEXT, "ip": "10.200.1.9"}
    grants = [f"10.200.{number >> 6}.{number & 63}/32" for number in range(1024)]
    yield "mint_edge_peer", {"op": "mint_edge_peer", "name": "e" * 60, "ttl_secs": 3600, "allow": grants}
    yield "revoke_edge_peer", {"op": "revoke_edge_peer", "name": "e" * 60}
    overlay = {"deployment": "lab", "instance_id": "alpha", "cluster_cidr": "10.200.0.0/16", "wg_port": 51820}
    servers = [f"{'s' * 60}.{number}.example:3478" for number in range(64)]
    nat = {"enabled": False, "stun_servers": servers, "turn_servers": [{"addr": server} for server in servers]}
    yield "setup_global_overlay", {"op": "setup_global_overlay", **overlay, "slice_cidr": "10.200.1.0/24", "nat": nat}
    unknown = {f"{number:x}": 1 for number in range(90_000)}
    yield "unknown keys, 90,000", {"op": "status", **unknown}
    yield "unknown text, 1 MiB", {"op": "status", "x": "\x7f" * 170_000}
    yield "nested unknown", {"op": "status", "x": [[number] for number in range(45_000)]}
    yield "bad names, 65,536", {"op": "prune_orphan_bridges", "live_bridge_names": [*names[:-1], 1]}
    yield "8 MiB of text", {"op": "\x7f" * (8 * 1024 * 1024 // 6 - 50)}
    few = (
        {**peer, "public_key": b64encode(n.to_bytes(32)).decode(), "allowed_ips": ",".join(cidrs(63, n))}
        for n in range(3, 515)
    )
    yield "add_peer, 512 of 63 at once", [{"op": "add_peer", **each} for each in few]


class Quiet:
    """Asks for the status, in a process of its own, until told to stop."""

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
            client.request("status")
            waits.append(1e3 * (time.monotonic() - began))
        pipe.send(sorted(waits))

    def told(self) -> str:
        self._ours.send("stop")
        waits = self._ours.recv()
        self._process.join()
        if not waits:  # the first question is not answered yet
            return f"{'':24}"
        return f"{statistics.median(waits):8.2f}{waits[int(len(waits) * 0.99)]:8.1f}{waits[-1]:8.1f}"


def ask(member: Member, asked: list[dict[str, Any]], seconds: float) -> tuple[int, str]:
    """How many answers there were to these at once, again and again, and the last one's beginning."""
    frames, count, answer = b"".join(request_frame(1, **request) for request in asked), 0, {}
    with member.node.connect() as client:
        client.further = {*ANSWERS.values()}
        end = time.monotonic() + seconds
        while count < 2 or time.monotonic() < end:
            client.send(frames)
            for _ in asked:
                answer = client.receive()["response"]
                count += 1
    return count, json.dumps(answer)[:70]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2 if SMOKE else 2.0, help="of each kind")
    parser.add_argument("--only", default="status" if SMOKE else "", help="those whose names begin so")
    args = parser.parse_args()
    print(f"{'':32}{'answers':>8}{'p50':>8}{'p99':>8}{'max':>8}")
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up({"enabled": False})
        quiet = Quiet(member)
        time.sleep(args.seconds)
        print(f"{'nobody':32}{'':8}{quiet.told()}")
        for name, asked in requests():
            if name.startswith(args.only):
                quiet = Quiet(member)
                count, answer = ask(member, asked if isinstance(asked, list) else [asked], args.seconds)
                print(f"{name:32}{count:8}{quiet.told()}  {answer}", flush=True)


if __name__ == "__main__":
    main()
