"""Peers: many at once, one change among them, their status, and one client beside many at once.

Owns: those cases, and `wg` on a bare wireguard-go as their yardstick.  Must not know: how a version does it.
"""

import base64
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import Lab, processes
from smoke import SMOKE

from check import machine
from check.cases import YARDSTICK, Case, Group, Subjects
from check.client import Client
from check.daemon import Daemon, laboratory, request
from check.meter import metered, percentile
from check.programs import compiled, serving
from check.tree import Tree
from check.verdict import Sample

STANDING, TOGETHER, BESIDE, IN_TURN, STATUSES = (10, 10, 10, 2, 1) if SMOKE else (1_000, 1_000, 500, 50, 5)
STATUS = request("status")
CHEAP = request("nat_status")  # the answer has nothing of the peers


class Peers:
    """Peers that nobody has yet, each with an allowed IP of its own."""

    def __init__(self) -> None:
        self.number = 0

    def take(self, count: int) -> list[tuple[str, str, str]]:
        """Their public keys, endpoints and allowed IPs."""
        numbers = range(self.number, self.number + count)
        self.number += count
        return [
            (
                base64.b64encode(os.urandom(32)).decode(),
                f"198.18.{number >> 8 & 255}.{number & 255}:51820",
                f"10.{201 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32",
            )
            for number in numbers
        ]


def pings(client: Client, until: threading.Thread) -> Sample:
    """How long a request takes that nobody else wants, one after the other, until a thread ends."""
    times = []
    while until.is_alive():
        start = time.perf_counter()
        client.ask(CHEAP)
        times.append(time.perf_counter() - start)
        time.sleep(0.001)
    return {"time": percentile(times, 0.5), "tail": percentile(times, 0.99)}


class Version:
    """A daemon with an overlay and peers."""

    def __init__(self, lab: Lab, tree: Tree, name: str) -> None:
        self.daemon = Daemon(lab, tree, name)
        self.daemon.set_up()
        self.client, self.other = self.daemon.client(), self.daemon.client()
        self.peers = Peers()
        self.key = self.peers.take(1)[0][0]
        self._add(STANDING)
        self.client.ask(self._add_peer(self.key, "", ""))

    def close(self) -> None:
        self.client.close()
        self.other.close()

    def _add_peer(self, key: str, endpoint: str, allowed_ips: str) -> bytes:
        keys = {"endpoint": endpoint, "allowed_ips": allowed_ips, "persistent_keepalive_secs": 0}
        return request("add_peer", public_key=key, **keys)

    def _add(self, count: int) -> None:
        self.client.ask_all([self._add_peer(*each) for each in self.peers.take(count)])

    def add_peers(self) -> Sample:
        frames = [self._add_peer(*each) for each in self.peers.take(TOGETHER)]
        with metered(self.daemon.pid, len(frames)) as meter:
            self.client.ask_all(frames)
        return meter.sample

    def quiet_beside_add_peers(self) -> Sample:
        frames = [self._add_peer(*each) for each in self.peers.take(BESIDE)]
        flood = threading.Thread(target=self.client.ask_all, args=(frames,))
        flood.start()
        return pings(self.other, flood)

    def change_peer(self) -> Sample:
        keys = [{"pubkey": self.key, "cidr": f"10.250.0.{number}/32"} for number in range(IN_TURN)]
        frames = [request("add_allowed_ip", **each) for each in keys]
        with metered(self.daemon.pid, len(frames)) as meter:
            times = self.client.ask_each(frames)
        meter.sample["time"] = statistics.median(times)
        self.client.ask_all([request("remove_allowed_ip", **each) for each in keys])
        return meter.sample

    def status_of_peers(self) -> Sample:
        times = []
        for number in range(STATUSES):
            self.client.ask(request("add_allowed_ip", pubkey=self.key, cidr=f"10.251.0.{number}/32"))
            times += self.client.ask_each([STATUS])
            self.client.ask(request("remove_allowed_ip", pubkey=self.key, cidr=f"10.251.0.{number}/32"))
        return {"time": statistics.median(times)}

    def cases(self) -> dict[str, Callable[[], Sample]]:
        found = (self.add_peers, self.quiet_beside_add_peers, self.change_peer, self.status_of_peers)
        return {each.__name__: each for each in found}


class Bare:
    """A wireguard-go that nobody but `wg` drives, and the threaded server for who is quiet beside it."""

    def __init__(self, lab: Lab, threads: Path) -> None:
        self.node = lab.node("bare")
        self.node.run(["sh", "-c", "mkdir -p /run/wireguard && wireguard-go bare >/dev/null 2>&1"])
        [self.pid] = self.node.wireguard_pids()
        machine.pin(machine.LOAD, self.pid)
        self.threads = threads
        self.peers = Peers()
        self.key = self.peers.take(1)[0][0]
        self.file = self.node.run_directory / "peers.conf"
        self.node.data_dir.mkdir(exist_ok=True)
        self.journal = os.open(self.node.data_dir / "yardstick", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write(STANDING)
        self._wg("addconf", "bare", "/run/peers.conf")

    def close(self) -> None:
        os.close(self.journal)

    def _write(self, count: int) -> None:
        self.file.write_text(
            "".join(
                f"[Peer]\nPublicKey={key}\nEndpoint={endpoint}\nAllowedIPs={allowed_ips}\n"
                for key, endpoint, allowed_ips in self.peers.take(count)
            )
        )

    def _wg(self, *arguments: str) -> float:
        """Seconds that it took, with the start of its process."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-n", "wg", *arguments]
        start = time.perf_counter()
        processes.run(["taskset", "-c", str(machine.SERVER), *inside])
        return time.perf_counter() - start

    def add_peers(self) -> Sample:
        self._write(TOGETHER)
        return {"time": self._wg("addconf", "bare", "/run/peers.conf") / TOGETHER}

    def quiet_beside_add_peers(self) -> Sample:
        self._write(BESIDE)
        adding = threading.Thread(target=self._wg, args=("addconf", "bare", "/run/peers.conf"))
        with Client(self.threads) as client:
            adding.start()
            return pings(client, adding)

    def change_peer(self) -> Sample:
        """One sync, and one message to the device and back."""
        key, times = base64.b64decode(self.key).hex(), []
        for number in range(IN_TURN):
            start = time.perf_counter()
            os.write(self.journal, bytes(300))
            os.fdatasync(self.journal)
            with socket.socket(socket.AF_UNIX) as device:
                device.connect(str(self.node.run_directory / "wireguard" / "bare.sock"))
                device.send(f"set=1\npublic_key={key}\nallowed_ip=10.250.0.{number}/32\n\n".encode())
                answer = device.recv(100)
            times.append(time.perf_counter() - start)
            if b"errno=0" not in answer:
                raise RuntimeError(f"wireguard-go answered {answer!r}")
        return {"time": statistics.median(times)}

    def status_of_peers(self) -> Sample:
        return {"time": statistics.median(self._wg("show", "bare", "dump") for _ in range(STATUSES))}

    def cases(self) -> dict[str, Callable[[], Sample]]:
        found = (self.add_peers, self.quiet_beside_add_peers, self.change_peer, self.status_of_peers)
        return {each.__name__: each for each in found}


@contextmanager
def opened(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        subjects = {}
        for name, tree in trees.items():
            version = Version(lab, tree, name)
            stack.callback(version.close)
            subjects[name] = version.cases()
        threads = lab.directory / "threads.sock"
        stack.enter_context(serving([compiled("threads", "-pthread"), threads, "x" * 44], threads))
        bare = Bare(lab, threads)
        stack.callback(bare.close)
        subjects[YARDSTICK] = bare.cases()
        yield subjects


GROUP = Group(
    "peers",
    (
        Case("add_peers", f"one of {TOGETHER:,} add_peer, 500 pipelined", "`wg addconf` of the same"),
        Case(
            "quiet_beside_add_peers",
            f"a request of a client beside {BESIDE} add_peer of another",
            "a threaded C server beside `wg addconf`",
        ),
        Case("change_peer", "one add_allowed_ip, answered", "one fdatasync, and one message to wireguard-go"),
        Case("status_of_peers", "a status of 4,000 peers after a change", "`wg show dump`"),
    ),
    opened,
)
