"""Containers attached and detached, one after the other and a hundred at once, on an empty bridge and on a full one.

Owns: those cases, and hand-packed kernel work as their yardstick.  Must not know: how a version does it.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

from lab import Lab
from lab.crowd import Crowd
from smoke import SMOKE

from check import machine
from check.cases import YARDSTICK, Case, Group, Subjects
from check.daemon import Daemon, laboratory, request
from check.kernel_work import BareHost
from check.meter import metered, percentile
from check.tree import Tree
from check.verdict import Sample

AT_ONCE, IN_TURN, STANDING, BRIDGES = (4, 4, 4, 1) if SMOKE else (100, 40, 300, 8)
DETACHED = 1 if SMOKE else 16  # in turn: each may take the kernel 20 ms
SUBNET = "10.200.64.0/20"


def attach(pid: int) -> bytes:
    handle = {"platform": "linux_pid", "pid": pid}
    return request("attach_container", handle=handle, service="web", join_global=False)


def detach(pid: int) -> bytes:
    return request("detach_container", handle={"platform": "linux_pid", "pid": pid})


class Version:
    """A daemon with a service, and containers for it.  standing: those that stay attached."""

    def __init__(self, lab: Lab, tree: Tree, name: str, pids: Sequence[int], standing: Sequence[int] = ()) -> None:
        self.daemon = Daemon(lab, tree, name)
        self.daemon.set_up()
        self.client = self.daemon.client()
        self.client.ask(request("setup_service_overlay", service="web", mode="shared", subnet=SUBNET))
        self.client.ask_all([attach(pid) for pid in standing])
        self.pids = pids
        self._warm_up()

    def close(self) -> None:
        self.client.close()

    def _warm_up(self) -> None:
        some = self.pids[:10]
        self.client.ask_all([attach(pid) for pid in some])
        self.client.ask_all([detach(pid) for pid in some])

    def attach(self) -> Sample:
        pids = self.pids[:IN_TURN]
        with metered(self.daemon.pid, len(pids)) as meter:
            times = self.client.ask_each([attach(pid) for pid in pids])
        meter.sample |= {"time": statistics.median(times), "tail": percentile(times, 0.99)}
        self.client.ask_all([detach(pid) for pid in pids])
        return meter.sample

    def detach(self) -> Sample:
        pids = self.pids[:DETACHED]
        self.client.ask_all([attach(pid) for pid in pids])
        with metered(self.daemon.pid, len(pids)) as meter:
            times = self.client.ask_each([detach(pid) for pid in pids])
        meter.sample |= {"time": statistics.median(times), "tail": percentile(times, 0.99)}
        return meter.sample

    def attach_100(self) -> Sample:
        frames = [attach(pid) for pid in self.pids]
        with metered(self.daemon.pid, len(frames)) as meter:
            self.client.ask_all(frames)
        self.client.ask_all([detach(pid) for pid in self.pids])
        return meter.sample

    def detach_100(self) -> Sample:
        self.client.ask_all([attach(pid) for pid in self.pids])
        frames = [detach(pid) for pid in self.pids]
        with metered(self.daemon.pid, len(frames)) as meter:
            self.client.ask_all(frames)
        return meter.sample

    def set_up_service(self) -> Sample:
        names = [f"s{number}" for number in range(BRIDGES)]
        with metered(self.daemon.pid, len(names)) as meter:
            times = self.client.ask_each(
                [request("setup_service_overlay", service=name, mode="auto") for name in names]
            )
        meter.sample["time"] = statistics.median(times)
        self.client.ask_all([request("teardown_service_overlay", service=name) for name in names])
        return meter.sample


class KernelWork:
    """The same by hand, with one sync for what is answered one by one."""

    def __init__(self, lab: Lab, pids: Sequence[int], standing: Sequence[int] = ()) -> None:
        self.host = BareHost(lab.node("bare"))
        self.pids = pids
        for place, pid in enumerate(standing, len(pids)):
            self.host.attach(pid, place, second=True)

    def close(self) -> None:
        self.host.close()

    def _each(self, work: Callable[[int], None], count: int) -> Sample:
        """The median of one operation after the other, each with a sync."""
        times = []
        for place in range(count):
            start = time.perf_counter()
            work(place)
            self.host.sync()
            times.append(time.perf_counter() - start)
        return {"time": statistics.median(times), "tail": percentile(times, 0.99)}

    def _attach(self, place: int) -> None:
        self.host.attach(self.pids[place], place)

    def attach(self) -> Sample:
        sample = self._each(self._attach, IN_TURN)
        self.host.detach(range(IN_TURN))
        return sample

    def detach(self) -> Sample:
        for place in range(DETACHED):
            self._attach(place)
        return self._each(lambda place: self.host.detach([place]), DETACHED)

    def attach_100(self) -> Sample:
        start = time.perf_counter()
        for place in range(AT_ONCE):
            self._attach(place)
        took = time.perf_counter() - start
        self.host.detach(range(AT_ONCE))
        return {"time": took / AT_ONCE}

    def detach_100(self) -> Sample:
        for place in range(AT_ONCE):
            self._attach(place)
        start = time.perf_counter()
        self.host.detach(range(AT_ONCE))
        return {"time": (time.perf_counter() - start) / AT_ONCE}

    def set_up_service(self) -> Sample:
        sample = self._each(lambda place: self.host.add_bridge(f"s{place}"), BRIDGES)
        for place in range(BRIDGES):
            self.host.delete_link(f"s{place}")
        return sample


def _on_server(measure: Callable[[], Sample]) -> Callable[[], Sample]:
    """The yardstick works in this process: where the daemons work, not where their load does."""

    @functools.wraps(measure)
    def run() -> Sample:
        machine.pin(machine.SERVER)
        try:
            return measure()
        finally:
            machine.pin(machine.LOAD)

    return run


@contextmanager
def empty_bridge(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        pids = stack.enter_context(Crowd(lab.prefix, AT_ONCE)).pids
        subjects: dict[str, dict[str, Callable[[], Sample]]] = {}
        for name, tree in trees.items():
            version = stack.enter_context(closing(Version(lab, tree, name, pids)))
            subjects[name] = {
                "attach": version.attach,
                "attach_100": version.attach_100,
                "detach": version.detach,
                "detach_100": version.detach_100,
                "set_up_service": version.set_up_service,
            }
        bare = stack.enter_context(closing(KernelWork(lab, pids)))
        by_hand = (bare.attach, bare.attach_100, bare.detach, bare.detach_100, bare.set_up_service)
        subjects[YARDSTICK] = {each.__name__: _on_server(each) for each in by_hand}
        yield subjects


@contextmanager
def full_bridge(trees: Mapping[str, Tree]) -> Iterator[Subjects]:
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        pids = stack.enter_context(Crowd(lab.prefix, IN_TURN)).pids
        subjects: dict[str, dict[str, Callable[[], Sample]]] = {}
        for name, tree in trees.items():
            standing = stack.enter_context(Crowd(lab.prefix, STANDING)).pids
            version = stack.enter_context(closing(Version(lab, tree, name, pids, standing)))
            subjects[name] = {"attach_among_300": version.attach}
        bare = stack.enter_context(closing(KernelWork(lab, pids, standing)))
        subjects[YARDSTICK] = {"attach_among_300": _on_server(bare.attach)}
        yield subjects


BY_HAND = "the kernel's work by hand-packed messages"
EMPTY = Group(
    "containers",
    (
        Case("attach", "one attach, answered", f"{BY_HAND}, and one fdatasync"),
        Case("attach_100", "an attach of 100 pipelined", f"{BY_HAND}, 100 of them, without a sync"),
        Case("detach", "one detach, answered", f"{BY_HAND}, and one fdatasync"),
        Case("detach_100", "a detach of 100 pipelined", f"{BY_HAND}, 100 by their link group"),
        Case("set_up_service", "one setup_service_overlay, answered", "a bridge by hand, and one fdatasync"),
    ),
    empty_bridge,
)
FULL = Group(
    "containers among 300",
    (Case("attach_among_300", "one attach on a bridge with 300 containers", f"{BY_HAND} there, and one fdatasync"),),
    full_bridge,
)
