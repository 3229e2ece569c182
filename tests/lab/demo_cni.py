"""`make demo-cni`: two nodes with Debian's containerd on each, and the overlay as the network of its containers.

Owns: the story and how it reads.  Must not know: how containerd is run (`lab.runtimes`).
"""

import subprocess
import sys
from functools import partial

from lab import Lab
from lab.cluster import Member
from lab.patience import LIMIT, until
from lab.runtimes import CONTAINERD, IMAGE, RuntimeHost
from lab.story import Story, tell

STEPS = 7


class Side:
    """A node, its containerd, and the container on it."""

    def __init__(self, lab: Lab, number: int, name: str, container: str) -> None:
        self.member = Member(lab, number, name)
        self.name = name
        self.container = container
        self.handle = f"netns:default-{container}/eth0"
        self.host: RuntimeHost
        self.running: subprocess.Popen[bytes]

    def attached(self) -> dict[str, str]:
        """The addresses of what is attached, by handle."""
        listed = self.member.request("list", what="containers").get("containers", [])
        return {each["handle"]: each["ip"] for each in listed}

    def is_running(self) -> bool:
        """Whether the container is attached, and its process has begun."""
        states = [line.split()[::2] for line in self.host.ctr("tasks", "ls").splitlines()]
        return [self.container, "RUNNING"] in states and self.handle in self.attached()


class Demo(Story):
    """The story, a method a step; every claim it prints was checked before."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(STEPS)
        self.sides = (Side(lab, 1, "alpha", "web"), Side(lab, 2, "beta", "db"))

    def run(self) -> None:
        """All of it, in order."""
        print("overlayd demo: containerd's containers on an encrypted overlay, by CNI")
        self.set_up()
        with RuntimeHost(self.sides[0].member.node) as one, RuntimeHost(self.sides[1].member.node) as other:
            self.sides[0].host, self.sides[1].host = one, other
            self.install()
            self.start_containerd()
            self.start_containers()
            self.ping()
            self.remove()
        self.take_down()

    def set_up(self) -> None:
        with self.step("Two nodes with overlayd, each the other's peer"):
            for side in self.sides:
                side.member.start()
                status = side.member.set_up()
                self.fact(f"{side.name}: {status['interface']} {status['node_ip']}, its slice {side.member.slice}")
            for side, other in (self.sides, self.sides[::-1]):
                side.member.introduce(other.member)

    def install(self) -> None:
        with self.step("overlayctl cni install: the plugin, and the network's configuration, on each"):
            for side in self.sides:
                printed = side.host.install("portmap", "bandwidth")
                assert "the network overlay" in printed
                self.fact("\n".join(f"{side.name}: {line.rpartition('/')[2]}" for line in printed.splitlines()))

    def start_containerd(self) -> None:
        with self.step("Debian's containerd on each, in namespaces of its own"):
            for side in self.sides:
                side.host.start_containerd()
                self.fact(f"{side.name}: {side.host.run(CONTAINERD / 'containerd', '--version').strip()}")

    def start_containers(self) -> None:
        with self.step("ctr run --cni: a container on each"):
            words = ("run", "--cni", "--rm", "--snapshotter", "native", IMAGE)
            for side in self.sides:
                side.running = subprocess.Popen(side.host.command([CONTAINERD / "ctr", *words, side.container]))
                until(side.is_running, "the container does not run")
                self.fact(f"{side.name}: {side.container} has {side.attached()[side.handle]}")

    def ping(self) -> None:
        with self.step("They reach each other across the nodes"):
            for side, other in (self.sides, self.sides[::-1]):
                there = other.attached()[other.handle]
                words = ("tasks", "exec", "--exec-id", "ping", side.container, "/bin/ping", "-c", "3", there)
                printed = side.host.ctr(*words)
                assert "3 packets received" in printed, printed
                self.fact(f"{side.container} -> {other.container}: {printed.splitlines()[-1]}")

    def remove(self) -> None:
        with self.step("The containers end, and their namespaces with them, before anybody calls DEL"):
            for side in self.sides:
                side.host.ctr("tasks", "kill", "-s", "9", side.container)
                side.running.wait(LIMIT)
                until(partial(self._is_free, side), "an address is held")
                log = side.member.node.log.read_text()
                assert f"cni_del {side.handle}: done" in log, "containerd called no DEL"
                self.fact(f"{side.name}: DEL succeeded without the namespace, all addresses are free")

    @staticmethod
    def _is_free(side: Side) -> bool:
        return not side.attached()

    def take_down(self) -> None:
        with self.step("Taking everything down"):
            for side in self.sides:
                assert side.member.findings() == [], side.member.findings()
                side.member.request("shutdown")
                code = side.member.node.wait()
                assert code == 0, f"{side.name}: exit code {code}"
                self.fact(f"{side.name}: nothing was amiss, exit code {code}")


if __name__ == "__main__":
    sys.exit(tell(lambda lab: Demo(lab).run()))
