"""The tables of the reference, and the addresses in them.

Owns: what a state consists of, and handing out addresses.  Must not know: the requests (`model`, `model_peers`).
"""

import subprocess
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

Network = IPv4Network | IPv6Network

# The version of the program that serves the devices here.
WIREGUARD_GO = subprocess.check_output(["wireguard-go", "--version"], text=True).split()[1].removeprefix("v")

GLOBAL = ""  # the scope of the global device
NODE_POOL = ""


class Refused(Exception):
    """The request must get `err`, and change nothing."""


class State:
    """The state of a node.

    containers: the processes that live, attached or not.  services: `device` is empty but for a dedicated one.  peers:
    by scope and key; a key that the daemon made is named by `made_for`.  attachments: by handle
    ("pid:71", "netns:c71/net0", "guest:vm", "host:vm").
    """

    def __init__(self) -> None:
        self.node_id = 0
        self.announced = ""
        self.overlay: dict[str, Any] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.peers: dict[tuple[str, str], dict[str, Any]] = {}
        self.edges: dict[str, dict[str, Any]] = {}
        self.leases: dict[str, dict[str, Any]] = {}
        self.attachments: dict[str, dict[str, Any]] = {}
        self.isolation: dict[str, int] = {}
        self.records: dict[str, list[str]] = {}
        self.releases = 0
        self.containers: set[int] = set()
        self.boots = 1

    @property
    def node_address(self) -> str:
        """Of an overlay that has been set up, if not for ever."""
        return str(ip_network(self.overlay["slice"] or self.overlay["cluster"])[1])

    def _require(self) -> None:
        if not self.overlay or not self.overlay["up"]:
            raise Refused

    def _lease(self, pool: str, holder: str) -> str:
        if not self.overlay:
            raise Refused
        within, excluded = self._pool(pool)
        released = []
        last = within.num_addresses - (1 if within.version == 4 else 0)
        for at in range(2, min(last, 1 << 16)):  # 0 is the network's, 1 the gateway's or the node's
            address = str(within[at])
            if any(ip_address(address) in other for other in excluded):
                continue
            lease = self.leases.get(address)
            if lease is None:
                break
            if not lease["holder"]:
                released.append((lease["released"], address))
        else:
            if not released:
                raise Refused
            address = min(released)[1]
        self.leases.pop(address, None)
        self.leases[address] = {"pool": pool, "holder": holder}
        return address

    def _pool(self, pool: str) -> tuple[Network, list[Network]]:
        if pool:
            return ip_network(self.services[pool]["subnet"]), []
        shared = self.overlay.get("slice_service")
        subnets = [ip_network(service["subnet"]) for name, service in self.services.items() if name != shared]
        return ip_network(self.overlay["slice"] or self.overlay["cluster"]), subnets

    def pool_of(self, service: str) -> str:
        """Whose pool a service's containers have their addresses from."""
        return NODE_POOL if service == self.overlay.get("slice_service") else service

    def _claim(self, pool: str, address: str, holder: str) -> str:
        lease = self.leases.get(address, {"holder": ""})
        if lease["holder"] or ip_address(address) not in self._pool(pool)[0]:
            raise Refused
        self.leases.pop(address, None)
        self.leases[address] = {"pool": pool, "holder": holder}
        return address

    def _release(self, address: str) -> None:
        self.releases += 1
        self.leases[address] = {"pool": self.leases[address]["pool"], "holder": "", "released": self.releases}
        self._withdraw(address)

    def _withdraw(self, address: str) -> None:
        """An address that has lost its holder leaves every name."""
        for name, addresses in list(self.records.items()):
            if address in addresses:
                addresses.remove(address)
                if not addresses:
                    del self.records[name]


def container_of(handle: str) -> int:
    """The container that a handle names; 0 for a guest or one in the host's network."""
    kind, _, name = handle.partition(":")
    return int(name.partition("/")[0].removeprefix("c")) if kind in ("pid", "netns") else 0


def made_for(holder: str) -> str:
    """What stands for the public key that the daemon made for an attachment, an edge peer or a service."""
    return f"(of {holder})"


def host_network(address: str) -> str:
    """An address as an allowed IP."""
    return str(ip_network(address))
