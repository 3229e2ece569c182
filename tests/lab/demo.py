"""`make demo`: two nodes, a container on each, one encrypted overlay between them, told step by step.

Owns: the story and how it reads.  Must not know: how nodes are made (`lab.lab`).  The requests are those that an
orchestrator sends, over the daemon's socket; the tables at the end are what `overlayctl status` prints.
"""

import sys
import time

from lab import Lab, ping, transfer
from lab.cluster import CLUSTER, PORT, Member
from lab.lab import OUTSIDE
from lab.story import Story, tell
from lab.traffic import MARKER

MEGABYTES = 32
STEPS = 9


class Side:
    """One of the two: a node, the service it runs, and the container in it."""

    def __init__(self, lab: Lab, number: int, name: str, service: str) -> None:
        self.member = Member(lab, number, name)
        self.node = self.member.node
        self.service = service
        self.container = lab.container()
        self.address = ""  # of the container


class Demo(Story):
    """The story, a method a step; every claim it prints was checked before."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(STEPS)
        self.lab = lab

    def run(self) -> None:
        """All of it, in order."""
        print("overlayd demo: two nodes, a container on each, one encrypted overlay between them")
        self.build()
        self.start_daemons()
        self.set_up_overlay()
        self.attach_containers()
        self.ping()
        self.transfer()
        self.show_status()
        self.take_down()

    def build(self) -> None:
        with self.step("A laboratory of network namespaces: two nodes joined by veths, and a host outside"):
            self.alpha = Side(self.lab, 1, "alpha", "web")
            self.beta = Side(self.lab, 2, "beta", "db")
            self.sides = (self.alpha, self.beta)
            ping(self.alpha.node, str(self.beta.node.address), count=2)
            nodes = ", ".join(f"{side.node.name} {side.node.address}" for side in self.sides)
            self.fact(f"{nodes}, outside {OUTSIDE.ip}; MTU {self.lab.mtu}")

    def start_daemons(self) -> None:
        with self.step("A daemon on each node"):
            for side in self.sides:
                began = time.monotonic()
                side.member.start()
                self.fact(f"{side.node.name}: overlayd answers on its socket after {time.monotonic() - began:.2f} s")

    def set_up_overlay(self) -> None:
        with self.step(f"The global overlay {CLUSTER}: a WireGuard device on each node, each the other's peer"):
            for side in self.sides:
                status = side.member.set_up()
                self.fact(f"{side.node.name}: {status['interface']} {status['node_ip']}, key {status['public_key']}")
            for side, other in (self.sides, self.sides[::-1]):
                side.member.introduce(other.member)

    def attach_containers(self) -> None:
        with self.step("A service on each node, and a container in it: a process in a network namespace of its own"):
            for side, other in (self.sides, self.sides[::-1]):
                bridge = side.member.set_up_service(side.service)
                began = time.monotonic()
                side.address = side.member.attach(side.container, side.service)
                took = (time.monotonic() - began) * 1000
                subnet = side.member.announce(other.member, side.address)
                self.fact(f"{side.service} on {side.node.name}: bridge {bridge}, subnet {subnet};")
                self.fact(f"    process {side.container.pid} attached as {side.address} in {took:.1f} ms")

    def ping(self) -> None:
        with self.step("Echoes from container to container, and to the host outside"):
            running = ping(self.alpha.container, self.beta.address, count=20)
            self.fact(f"web -> db: 20 of 20 answered, {running.round_trip():.2f} ms on average, through the tunnel")
            running = ping(self.alpha.container, str(OUTSIDE.ip), count=5)
            self.fact(f"web -> outside: 5 of 5 answered, {running.round_trip():.2f} ms on average, masqueraded")

    def transfer(self) -> None:
        underlay = self.lab.capture(self.alpha.node)
        inside = self.lab.capture(self.beta.container, "eth0")
        with self.step(f"{MEGABYTES} MB over TCP from web to db, a known text in every block, recorded on both sides"):
            with underlay, inside:
                result = transfer(self.alpha.container, self.beta.container, self.beta.address, MEGABYTES)
            self.fact(f"{result.size:,} bytes arrived intact, {result.megabits:,.0f} Mbit/s while recorded")

        with self.step("What crossed the underlay meanwhile"):
            packets = underlay.packets()
            foreign = [packet for packet in packets if not packet.is_wireguard(PORT)]
            largest = max(packet.size for packet in packets)
            assert not foreign, f"packets that are not WireGuard's: {foreign[:3]}"
            assert largest <= self.lab.mtu, f"a packet of {largest} bytes on an underlay of {self.lab.mtu}"
            assert inside.holds(MARKER), "the text is not even in the container: the search proves nothing"
            assert not underlay.holds(MARKER), "plaintext on the underlay"
            self.fact(f"{len(packets):,} packets, every one a WireGuard message over UDP port {PORT}")
            self.fact(f"the largest has {largest} bytes, the underlay takes {self.lab.mtu}")
            self.fact("the known text: found inside the container, not found on the underlay")

    def show_status(self) -> None:
        with self.step("Both nodes, as `overlayctl status` shows them"):
            for side in self.sides:
                self.fact(f"--- {side.node.name} ---\n{side.node.overlayctl('status')}\n")

    def take_down(self) -> None:
        with self.step("Taking everything down"):
            for side in self.sides:
                side.member.detach(side.container)
                side.member.request("shutdown")
                code = side.node.wait()
                assert code == 0, f"{side.node.name}: exit code {code}"
                self.fact(f"{side.node.name}: container detached, daemon asked to shut down, exit code {code}")


if __name__ == "__main__":
    sys.exit(tell(lambda lab: Demo(lab).run()))
