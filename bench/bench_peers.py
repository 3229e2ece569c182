"""Peers in bulk through the daemon's socket beside `wg`, on the same kind of device in the same run; and one change
among many.

Run as root: `python bench/bench_peers.py [peers]`.  Everything runs in throw-away network namespaces.

The daemon does what `wg` does not: it checks, keeps every peer on disk before it answers, and answers each request.
"""

import asyncio
import os
import statistics
import sys
import time
from base64 import b64encode
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lab import Lab
from lab.cluster import Member
from lab.node import Node
from smoke import SMOKE

from overlayd import wire
from overlayd.client import OverlayClient

# WG_SET: processes started for `wg set`, a second's worth.
PEERS, WG_SET, ONE_BY_ONE = (20, 5, 5) if SMOKE else (10_000, 500, 200)
IN_FLIGHT = 1024  # requests a client has waiting


def make_peers(count: int) -> list[wire.AddPeer]:
    return [
        wire.AddPeer(
            public_key=b64encode(os.urandom(32)).decode(),
            endpoint=f"198.18.{number >> 8 & 255}.{number & 255}:51820",
            allowed_ips=f"10.{201 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32",
            persistent_keepalive_secs=0,
        )
        for number in range(count)
    ]


async def call_all(client: OverlayClient, requests: list[wire.AddPeer]) -> float:
    """Seconds until every request is answered, IN_FLIGHT of them waiting at a time."""
    todo = iter(requests)

    async def work() -> None:
        for request in todo:
            await client.call(request)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - start


async def through_the_socket(socket: Path, peers: list[wire.AddPeer]) -> tuple[float, float, float, float]:
    """Seconds to add all, to add them again, and medians of one add_allowed_ip and of one that changes nothing."""
    async with await OverlayClient.connect(str(socket)) as client:
        added, again = await call_all(client, peers), await call_all(client, peers)
        medians = []
        for _ in range(2):
            times = []
            for number in range(ONE_BY_ONE):
                request = wire.AddAllowedIp(peers[number % 7].public_key, f"10.250.0.{number}/32")
                start = time.perf_counter()
                await client.call(request)
                times.append(time.perf_counter() - start)
            medians.append(statistics.median(times))
    return added, again, medians[0], medians[1]


def timed(node: Node, *argv: str | Path) -> float:
    start = time.perf_counter()
    node.run(list(argv), timeout=300)
    return time.perf_counter() - start


def bare_device(node: Node) -> None:
    """A wireguard-go that nobody but `wg` drives."""
    node.run(["sh", "-c", "mkdir -p /run/wireguard && wireguard-go bare >/dev/null 2>&1"])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PEERS
    peers = make_peers(count)
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        added, again, one, nothing = asyncio.run(through_the_socket(member.node.socket, peers))
        member.request("shutdown")
        member.node.wait()

        bare = lab.node("bare")
        file = member.node.data_dir / "peers.conf"
        file.write_text(
            "".join(
                f"[Peer]\nPublicKey={peer.public_key}\nEndpoint={peer.endpoint}\nAllowedIPs={peer.allowed_ips}\n"
                for peer in peers
            )
        )
        bare_device(bare)
        synced, resynced = timed(bare, "wg", "syncconf", "bare", file), timed(bare, "wg", "syncconf", "bare", file)
        script = "".join(
            f"wg set bare peer {peer.public_key} endpoint {peer.endpoint} allowed-ips 10.251.{at >> 8}.{at & 255}/32\n"
            for at, peer in enumerate(peers[:WG_SET])
        )
        (file.with_name("script")).write_text(script)
        a_set = timed(bare, "sh", file.with_name("script")) / min(WG_SET, count)

    print(f"{count} peers                 overlayd            wg syncconf           ratio")
    print(f"add                     {added:8.3f} s {count / added:8.0f}/s  {synced:6.3f} s  {added / synced:14.2f}")
    print(f"add again               {again:8.3f} s {count / again:8.0f}/s  {resynced:6.3f} s  {again / resynced:14.2f}")
    print("one among them                                wg set (a process)")
    print(f"add_allowed_ip          {one * 1e3:8.3f} ms            {a_set * 1e3:8.3f} ms  {one / a_set:14.2f}")
    print(f"the same again          {nothing * 1e3:8.3f} ms")


if __name__ == "__main__":
    main()
