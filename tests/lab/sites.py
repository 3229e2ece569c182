"""Nodes that find each other by an etcd.

Owns: starting them with the options of such a cluster, and what is asked of them.  Must not know: what is tested.
"""

import json
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import Any

from lab.cluster import CLUSTER
from lab.container import Container
from lab.etcd import Etcd
from lab.lab import Lab
from lab.patience import until
from lab.traffic import Ping


class Site:
    """A node of the cluster.  options: of the daemon, beside those of the etcd."""

    def __init__(self, lab: Lab, etcd: Etcd, name: str, options: Sequence[str] = ()) -> None:
        self.lab = lab
        self.etcd = etcd
        self.node = lab.node(name)
        self.options = [*etcd.options, "--cluster", "prod", "--node", name, *options]
        self.container: Container
        self.address = ""  # of the container
        self.attached = ""  # what the last attach gave

    def start(self, *options: str) -> None:
        self.node.start(*self.options, *options)

    def request(self, op: str, **keys: Any) -> dict[str, Any]:
        connection = self.node.connect()
        try:
            return connection.request(op, **keys)
        finally:
            connection.close()

    @property
    def status(self) -> dict[str, Any]:
        return self.request("status")

    @property
    def part(self) -> dict[str, Any]:
        """Its part in the cluster, as `status` has it."""
        part: dict[str, Any] = self.status["cluster"]
        return part

    def join(self) -> None:
        """Wait until it has a block and an address of it."""
        until(lambda: self.status.get("node_ip"), lambda: f"{self.node.name} has not joined\n{self.node.log_tail()}")

    def is_present(self) -> None:
        """Wait until the store has that it lives, which is put after it has joined."""
        until(lambda: "lease" in self._presence(), lambda: f"{self.node.name} is not present\n{self.node.log_tail()}")

    def lose_presence(self) -> None:
        """As if its lease had run out, which takes a minute."""
        self.etcd.ctl("lease", "revoke", f"{int(json.loads(self._presence())['lease']):x}")

    def _presence(self) -> str:
        name = self.options[self.options.index("--node") + 1]
        return self.etcd.ctl("get", "--print-value-only", f"/overlayd/prod/p/{name}").strip()

    def knows(self, others: int) -> None:
        """Wait until it has so many peers."""
        until(
            lambda: self.status["peer_count"] == others,
            lambda: f"{self.node.name}: {self.status['peer_count']} peers, not {others}\n{self.node.log_tail()}",
        )

    def state(self, wanted: str) -> None:
        """Wait for a state of its part in the cluster."""
        until(
            lambda: self.part["state"] == wanted,
            lambda: f"{self.node.name}: {self.part}, not {wanted}\n{self.node.log_tail()}",
        )

    def serve(self, service: str = "web") -> Container:
        """A service, and a container of it, registered as NAME-SERVICE."""
        self.request("setup_service_overlay", service=service, mode="auto")
        self.container = self.attach(service)
        self.address = self.attached
        self.request("register_dns", name=f"{self.node.name}-{service}", ip=self.address)
        return self.container

    def attach(self, service: str = "web") -> Container:
        container = self.lab.container()
        answer = self.request("attach_container", handle=container.handle, service=service, join_global=False)
        self.attached = str(answer["ip"])
        return container

    def resolve(self, name: str) -> str:
        """What the container's name server says."""
        version, kind = ("-6", "AAAA") if ":" in self.address else ("-4", "A")
        gateway = json.loads(self.container.run(["ip", "-j", version, "route", "show", "default"]))[0]["gateway"]
        return self.container.run(["dig", "+short", "+tries=1", "+time=20", f"@{gateway}", name, kind]).strip()

    def resolves(self, name: str, address: str) -> bool:
        return self.resolve(name) == address

    def device_peers(self) -> list[str]:
        """The peers of the device, by key and allowed IPs, without what traffic changes."""
        interface = self.status["interface"]
        return sorted(self.node.run(["wg", "show", interface, "allowed-ips"]).splitlines())


def sites(
    lab: Lab, etcd: Etcd, names: Sequence[str], making: Sequence[str] = ("--cluster-cidr", CLUSTER)
) -> list[Site]:
    """Nodes that are started together, the first of which makes the cluster (with the options `making`); each has
    joined, and knows the others.
    """
    made = [Site(lab, etcd, name) for name in names]
    for number, each in enumerate(made):
        each.start(*(making if not number else ()))
    for each in made:
        each.join()
    for each in made:
        each.knows(len(made) - 1)
    return made


def serve(sites: Sequence[Site]) -> None:
    """A container on each, whose name is known on all of them, which are present: all that happens after an answer."""
    for each in sites:
        each.serve()
    for one, other in permutations(sites, 2):
        name, address = f"{other.node.name}-web", other.address
        until(partial(one.resolves, name, address), one.node.log_tail)
    for each in sites:
        each.is_present()


def pinging(sites: Sequence[Site], interval: float = 0.01) -> list[Ping]:
    """Echoes from each site's container to each other one's, all of which are answered.

    One begins after the other: where both ends of a tunnel begin it at once, each gives its own handshake up for the
    other's, and WireGuard tries again after five seconds.
    """
    pings = []
    for one, other in permutations(sites, 2):
        pings.append(Ping(one.container, other.address, interval))
        pings[-1].wait_for(3)
    return pings
