"""What a container runtime waits for: the CNI shim with a running overlayd beside Debian's `bridge` and `host-local`.

From the exec to the result of an ADD, in turn on one node, and then many at a time.  `bridge` without masquerade and
with it, as it is used for a way to the outside; overlayd always has that.  Beside them bench/peer/plugin.c, which shows
what no plugin can go below: a process, the kernel's work and one fdatasync (needs gcc).  Then what overlayd alone does:
a GC of many attachments, and the DELs that were left while it was away.  Needs root; has a laboratory of its own.

    PYTHONPATH=tests:bench:. python bench/bench_cni.py
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypedDict

from check.programs import compiled
from cni.shim import SHIM
from engines import CniBridge
from lab import Lab
from lab import netns as names
from lab.cluster import Member
from lab.processes import run
from smoke import SMOKE

from overlayd.linux import netns

ROUNDS = 3 if SMOKE else 60
MANY = 8 if SMOKE else 100
TURNS = 1 if SMOKE else 3
AT_ONCE = 4 if SMOKE else 32
ATTACHED, VALID = (8, 4) if SMOKE else (500, 300)  # before and after a GC
LEFT = 8 if SMOKE else 1000  # DELs

OURS = "overlayd-cni"
FLOOR = "the kernel's work alone"
CONFIG = {"cniVersion": "1.0.0", "name": "bench", "type": "overlayd-cni", "subnet": "slice"}

Call = Callable[[str, str, str], None]  # a command, a container's id, the path of its namespace


class Plugin:
    """A plugin as a runtime executes it, with as little as possible of this process's own in what it takes."""

    def __init__(self, program: Path, config: str, directory: Path, **variables: str) -> None:
        self._program = program
        self._config = directory / f"{program.name}-{len(list(directory.iterdir()))}.json"
        self._config.write_text(config)
        self._given = variables
        self._variables = {
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(program.parent),
            "PATH": os.environ["PATH"],
            **variables,
        }

    def with_keys(self, keys: dict[str, Any]) -> "Plugin":
        """The same with other keys in its configuration as well."""
        config = json.dumps({**json.loads(self._config.read_text()), **keys})
        return Plugin(self._program, config, self._config.parent, **self._given)

    def __call__(self, command: str, id: str, namespace: str, **given: str) -> None:
        environment = self._variables | {"CNI_COMMAND": command, "CNI_CONTAINERID": id, "CNI_NETNS": namespace} | given
        answer = self._config.with_name(f"{id}-{self._program.name}.out")
        files: Sequence[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, self._config, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, answer, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
        _, status = os.waitpid(os.posix_spawn(self._program, (self._program,), environment, file_actions=files), 0)
        if status:
            raise RuntimeError(f"{self._program} {command}: {answer.read_text()}")


@contextmanager
def namespaces(lab: Lab, number: int) -> Iterator[list[str]]:
    """Paths of so many new network namespaces."""
    made = [f"{lab.prefix}-b{each}" for each in range(number)]
    for name in made:
        run(["ip", "netns", "add", name])
    try:
        yield [str(names.DIRECTORY / name) for name in made]
    finally:
        for name in made:
            run(["ip", "netns", "del", name])


def one_by_one(calls: dict[str, Call], namespace: str) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of every ADD, and of the DEL that follows, of each in turn."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for turn in range(ROUNDS + 1):
        for name, do in calls.items():
            for command, taken in zip(("ADD", "DEL"), times[name], strict=True):
                began = time.perf_counter()
                do(command, "one", namespace)
                if turn:  # the first makes the bridge
                    taken.append(time.perf_counter() - began)
    return times


def many_at_once(do: Call, paths: list[str]) -> float:
    """ADDs a second, so many in flight."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        for _ in pool.map(lambda each: do("ADD", f"many{each[0]}", each[1]), enumerate(paths)):
            pass
        took = time.perf_counter() - began
        for _ in pool.map(lambda each: do("DEL", f"many{each[0]}", each[1]), enumerate(paths)):
            pass
    return len(paths) / took


def interfaces(do: Plugin, number: int, paths: Sequence[str]) -> None:
    """ADD so many interfaces, x0, x1..., to these namespaces in turn."""

    def add(each: int) -> None:
        do("ADD", f"x{each}", paths[each % len(paths)], CNI_IFNAME=f"x{each}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(add, range(number)):
            pass


def collection(do: Plugin, paths: Sequence[str]) -> float:
    """Seconds of a GC, from the exec to the end."""
    interfaces(do, ATTACHED, paths)
    valid = [{"containerID": f"x{each}", "ifname": f"x{each}"} for each in range(VALID)]
    began = time.perf_counter()
    do.with_keys({"cni.dev/valid-attachments": valid})("GC", "", "")
    took = time.perf_counter() - began
    do.with_keys({"cni.dev/valid-attachments": []})("GC", "", "")
    return took


def left_behind(do: Plugin, member: Member, paths: Sequence[str]) -> float:
    """Seconds that a start spends on so many DELs that were left."""
    queue = member.node.socket.with_name("cni-del")
    interfaces(do, LEFT, paths)
    member.node.kill()
    for each in range(LEFT):
        call = {"command": "DEL", "container_id": f"x{each}", "ifname": f"x{each}"}
        (queue / f"x{each}.x{each}").write_text(json.dumps({"cni": call, "config": ""}))
    member.start()
    return float(
        re.findall(rf"{LEFT} DELs were left while no daemon ran: done in ([0-9.]+) s", member.node.log.read_text())[-1]
    )


class Measured(TypedDict):
    """add, tail, delete: seconds by plugin, median and 95th percentile of ADD, median of DEL.  rate: ADDs a second,
    many at a time.  collection: seconds of a GC.  left_behind: seconds for the DELs that were left.
    """

    add: dict[str, float]
    tail: dict[str, float]
    delete: dict[str, float]
    rate: dict[str, float]
    collection: float
    left_behind: float


def measure() -> Measured:
    """All of it, in one laboratory.  RuntimeError: the other plugins are missing."""
    if why := CniBridge.missing():
        raise RuntimeError(why)
    with Lab() as lab:
        member = Member(lab, 1, "alpha", "10.192.0.0/12")
        member.slice = "10.193.0.0/16"
        member.start()
        member.set_up({"enabled": False})
        directory = member.node.run_directory / "bench"
        directory.mkdir()
        socket = str(member.node.socket.with_name("cni.sock"))
        ours = Plugin(SHIM, json.dumps(CONFIG), directory, OVERLAYD_CNI_SOCKET=socket)
        aside = ours.with_keys({"cniVersion": "1.1.0", "default_route": False})
        calls: dict[str, Call] = {OURS: ours}
        for name, masquerade in (("bridge, host-local", False), ("the same with masquerade", True)):
            bridge = CniBridge(directory / name.replace(" ", "-"), masquerade=masquerade)
            calls[name] = Plugin(bridge.plugins / "bridge", bridge.configuration, directory)
        floor = compiled("plugin", "-static")
        calls[FLOOR] = Plugin(floor, json.dumps(CONFIG), directory, FLOOR_FILE=str(directory / "floor"))
        with open_namespace(member.node.namespace) as own, namespaces(lab, MANY) as paths, netns.entered(own):
            times = one_by_one(calls, paths[0])
            rates: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(TURNS):
                for name, do in calls.items():
                    rates[name].append(many_at_once(do, paths))
            collected = collection(aside, paths)
            worked_off = left_behind(aside, member, paths)
    return {
        "add": {name: median(adds) for name, (adds, _) in times.items()},
        "tail": {name: quantiles(adds, n=20)[-1] for name, (adds, _) in times.items()},
        "delete": {name: median(deletes) for name, (_, deletes) in times.items()},
        "rate": {name: median(each) for name, each in rates.items()},
        "collection": collected,
        "left_behind": worked_off,
    }


def main() -> None:
    if os.geteuid():
        raise SystemExit("bench_cni needs root: it makes network namespaces")
    try:
        found = measure()
    except RuntimeError as error:
        raise SystemExit(f"bench_cni: {error}") from None
    add, tail, delete, rate = (found[key] for key in ("add", "tail", "delete", "rate"))
    print(f"one by one, {ROUNDS} of each in turn (ms)")
    for name in add:
        times = f"ADD {add[name] * 1000:7.2f}  p95 {tail[name] * 1000:7.2f}  DEL {delete[name] * 1000:7.2f}"
        print(f"  {name:26} {times}  {add[name] / add[OURS]:5.1f} x")
    print(f"{TURNS} times {MANY} ADDs in turn, {AT_ONCE} at a time")
    for name in rate:
        print(f"  {name:26} {rate[name]:8.1f} a second  {rate[OURS] / rate[name]:5.1f} x")
    print(f"GC of {ATTACHED} attachments of which {VALID} are valid   {found['collection'] * 1000:6.0f} ms")
    print(f"{LEFT} DELs that were left, at the start   {found['left_behind'] * 1000:6.0f} ms")


@contextmanager
def open_namespace(path: Path) -> Iterator[int]:
    """A descriptor of a network namespace."""
    with closing(path.open("rb")) as file:
        yield file.fileno()


if __name__ == "__main__":
    main()
