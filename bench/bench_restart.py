"""How long a node is without its daemon at a restart, and how fast a large state is read.

The parts that grow: rows in the journal, containers whose namespaces are looked into, peers read from the device.
Budgets: 10,000 peers and 1,000 attachments read in under 1 s; 300 containers adopted in under 1.5 s.

    python bench/bench_restart.py           (root: makes network namespaces)
"""

import asyncio
import base64
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lab import Lab  # noqa: E402
from lab.cluster import Member  # noqa: E402
from lab.crowd import Crowd  # noqa: E402
from lab.frames import request_frame  # noqa: E402
from smoke import SMOKE  # noqa: E402

from overlayd.daemon.change.journal import Journal  # noqa: E402
from overlayd.model.objects import Netns  # noqa: E402
from overlayd.model.rows import Attachment, Lease, Node, Overlay, Peer, Row, Service, decode, encode  # noqa: E402
from overlayd.model.state import State  # noqa: E402

PEERS, ATTACHMENTS, CONTAINERS, RUNS = (20, 10, 2, 1) if SMOKE else (10_000, 1_000, 300, 5)

TOGETHER = 1000  # requests in one write


def rows() -> list[Row]:
    """A large node's state."""
    cluster = ip_network("10.0.0.0/8")
    found: list[Row] = [
        Node(private_key=os.urandom(32), node_id=1),
        Overlay(
            deployment="d",
            instance_id="i",
            interface="zl-d-i-g",
            cluster=cluster,
            slice=ip_network("10.1.0.0/16"),
            wg_port=51820,
        ),
        Service(name="web", subnet=ip_network("10.200.0.0/20"), bridge="zl-d-i-web-b"),
    ]
    for number in range(PEERS):
        network = ip_network((0x0A_02_00_00 + (number << 8), 24))
        found.append(Peer(public_key=os.urandom(32), endpoint=f"192.0.2.1:{number + 1}", listed=(network,)))
    for number in range(ATTACHMENTS):
        address, handle = ip_address("10.200.0.2") + number, f"pid:{number + 2}"
        found.append(Lease(address=address, pool="web", holder=handle))
        found.append(
            Attachment(handle=handle, service="web", address=address, netns=Netns(number + 2, 1, 4026532000 + number))
        )
    return found


async def write(directory: Path) -> None:
    journal = Journal.open(directory)
    await journal.commit({row.id: encode(row) for row in rows()})
    await journal.close()


async def load(directory: Path) -> float:
    started = time.perf_counter()
    journal = Journal.open(directory)
    State(decode(id, data) for id, data in journal.rows.items())
    took = time.perf_counter() - started
    await journal.close()
    return took


def told(what: str, seconds: list[float]) -> None:
    print(f"{what:<62}{statistics.median(seconds) * 1000:8.0f} ms, at most {max(seconds) * 1000:.0f}")


def restarts(member: Member) -> list[float]:
    """From the stop's end until the next daemon answers."""
    took = []
    for _ in range(RUNS):
        member.node.stop()
        started = time.monotonic()
        member.start()
        took.append(time.monotonic() - started)
    return took


def ask(member: Member, frames: list[bytes]) -> None:
    """Pipeline requests; RuntimeError for any that is refused."""
    member.connection.send(b"".join(frames))
    for _ in frames:
        answer = member.connection.receive()["response"]
        if answer["result"] == "err":
            raise RuntimeError(answer["message"])


def with_node(what: str, prepare: Callable[[Lab, Member], None]) -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        prepare(lab, member)
        told(f"restart to ready, {what}", restarts(member))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(write(Path(directory)))
        loads = [asyncio.run(load(Path(directory))) for _ in range(RUNS)]
        told(f"state of {PEERS:,} peers and {ATTACHMENTS:,} attachments read", loads)

    with_node("nothing attached", lambda lab, member: None)

    def attach(lab: Lab, member: Member) -> None:
        member.request("setup_service_overlay", service="web", mode="shared", subnet="10.200.64.0/22")
        handles = ({"platform": "linux_pid", "pid": pid} for pid in crowd.pids)
        ask(
            member,
            [
                request_frame(number, "attach_container", handle=handle, service="web", join_global=False)
                for number, handle in enumerate(handles)
            ],
        )

    with Crowd("", CONTAINERS) as crowd:
        with_node(f"{CONTAINERS} containers", attach)

    def introduce(lab: Lab, member: Member) -> None:
        keys = (base64.b64encode(os.urandom(32)).decode() for _ in range(PEERS))
        for start in range(0, PEERS, TOGETHER):
            ask(
                member,
                [
                    request_frame(
                        number,
                        "add_peer",
                        public_key=next(keys),
                        endpoint="192.0.2.1:51820",
                        allowed_ips=f"fd00:{number:x}::/64",
                        persistent_keepalive_secs=0,
                    )
                    for number in range(start, min(start + TOGETHER, PEERS))
                ],
            )

    with_node(f"{PEERS:,} peers", introduce)


if __name__ == "__main__":
    main()
