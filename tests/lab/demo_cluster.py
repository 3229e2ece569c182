"""`make demo-cluster`: five nodes that find each other by an etcd of three members, told step by step.

Owns: the story and how it reads.  Must not know: how nodes and members are made (`lab.lab`, `lab.etcd`).  There is no
orchestrator in it: nobody tells a node of another.
"""

import itertools
import sys
from functools import partial

from lab import Lab, Ping, ping
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import Site, sites
from lab.story import Story, tell

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
STEPS = 8


class Demo(Story):
    """The story, a method a step; every claim it prints was checked before."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(STEPS)
        self.lab = lab
        self.sites: list[Site] = []

    def run(self) -> None:
        """All of it, in order."""
        etcd = Etcd(self.lab, 3)
        with self.step("Three members of etcd, in three namespaces"):
            etcd.start()
            self.fact(etcd.urls)
        try:
            self.join(etcd)
            self.attach()
            self.ping_all()
            self.resolve()
            self.lose_etcd(etcd)
            self.remove_node(etcd)
        finally:
            etcd.kill()
        with self.step("Everything is removed"):
            self.lab.close()

    def join(self, etcd: Etcd) -> None:
        with self.step("overlayd --etcd ... --cluster prod on five nodes, and nothing else"):
            self.sites = sites(self.lab, etcd, NAMES)
            self.fact(self.sites[0].node.overlayctl("cluster", "nodes"))

    def attach(self) -> None:
        with self.step("A service and a container on each"):
            for site in self.sites:
                site.serve()
            self.fact(", ".join(f"{site.node.name} {site.address}" for site in self.sites))

    def ping_all(self) -> None:
        with self.step("Every container pings every other"):
            pairs = list(itertools.permutations(self.sites, 2))
            for one, other in pairs:
                ping(one.container, other.address, count=1)
            self.fact(f"{len(pairs)} of {len(pairs)} pairs")

    def resolve(self) -> None:
        with self.step("A name that was registered on epsilon resolves everywhere"):
            for site in self.sites:
                until(partial(self._resolves, site), "it does not resolve")
            self.fact(f"epsilon-web is {self.sites[-1].address} on all five")

    def _resolves(self, site: Site) -> bool:
        return site.resolve("epsilon-web") == self.sites[-1].address

    @staticmethod
    def _lost(site: Site) -> bool:
        return not site.resolve("epsilon-web")

    def lose_etcd(self, etcd: Etcd) -> None:
        with self.step("One member of etcd is killed, then all of them, under ping and attaches"):
            running = Ping(self.sites[0].container, self.sites[1].address)
            running.wait_for(50)
            etcd.members[0].kill()
            self.sites[2].attach()
            running.wait_for(50)
            etcd.kill()
            for site in self.sites:
                site.attach()
            self.sites[3].state("disconnected")
            self.sites[3].node.stop()
            self.sites[3].start()
            ping(self.sites[3].container, self.sites[4].address, count=2)
            running.wait_for(50)
            sent, lost = max(running.received), running.stop()
            assert not lost, lost
            self.fact(f"{sent} echoes, {len(lost)} lost; six containers attached; delta restarted as it was")
            etcd.start()
            for site in self.sites:
                site.state("connected")
            self.fact("etcd is back, and so are all five")

    def remove_node(self, etcd: Etcd) -> None:
        with self.step("A node leaves: the others drop it, and its block is free"):
            leaving = self.sites.pop()
            leaving.request("cluster_leave", force=True)
            for site in self.sites:
                site.knows(len(self.sites) - 1)
                until(partial(self._lost, site), "its name stays")
            self.fact(self.sites[0].node.overlayctl("cluster", "nodes"))


if __name__ == "__main__":
    sys.exit(tell(lambda lab: Demo(lab).run()))
