"""Nodes that an orchestrator has made into a cluster.

Owns: the requests, in their order, that bring up an overlay between nodes.  Must not know: what is tested on it.
"""

import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from lab.container import Container
from lab.frames import Connection
from lab.lab import Lab
from lab.natbox import NatBox

CLUSTER = "10.200.0.0/16"
CLUSTER6 = "fd00:200::/48"
PORT = 51820
SLICE_PREFIX = {4: 24, 6: 64}  # of a node's part of the cluster


def besides_version(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the doctor finds, without what hangs on this machine alone: its wireguard-go may be an old one, and its
    neighbour tables are those of all tests that run now.
    """
    return [
        finding for finding in found if finding["code"] not in ("device-without-segmentation", "neighbours-crowded")
    ]


class Member:
    """A node of the cluster and the orchestrator's connection to it.  number: its node id, and that of its slice."""

    def __init__(self, lab: Lab, number: int, name: str, cluster: str = CLUSTER, behind: NatBox | None = None) -> None:
        self.lab = lab
        self.number = number
        self.nat = behind
        self.node = lab.node(name, behind)
        self.cluster = cluster
        whole = ip_network(cluster)
        prefix = SLICE_PREFIX[whole.version]
        self.slice = f"{whole.network_address + (number << whole.max_prefixlen - prefix)}/{prefix}"
        self.public_key = ""
        self.connection: Connection

    def start(self, *options: str) -> None:
        """Start the daemon, or the next one on the same directories, and connect."""
        self.node.start(*options)
        self.connection = self.node.connect()

    def request(self, op: str, **keys: Any) -> dict[str, Any]:
        """One request to this node; `Refused` when the answer is `err`."""
        return self.connection.request(op, **keys)

    def set_up(self, nat: dict[str, Any] | None = None) -> dict[str, Any]:
        """Number the node and bring up its device; return its status.  nat: its NatConfig."""
        self.request("set_local_node_id", node_id=self.number)
        self.set_up_overlay(nat)
        status = self.request("status")
        self.public_key = status["public_key"]
        return status

    def set_up_overlay(self, nat: dict[str, Any] | None = None, *, instance_id: str = "") -> None:
        """Bring up its device, or make sure of it.  instance_id: of another orchestrator than usual."""
        self.request(
            "setup_global_overlay",
            deployment="lab",
            instance_id=instance_id or self.node.name,
            cluster_cidr=self.cluster,
            slice_cidr=self.slice,
            wg_port=PORT,
            **({"nat": nat} if nat is not None else {}),
        )

    def introduce(self, other: "Member", **more: Any) -> None:
        """Make the other node a peer of this one.  more: other keys of the request."""
        self.request(
            "add_peer",
            public_key=other.public_key,
            endpoint=other.node.endpoint(PORT),
            allowed_ips=other.slice,
            persistent_keepalive_secs=0,
            **more,
        )

    def findings(self) -> list[dict[str, Any]]:
        """What the doctor finds."""
        return besides_version(self.request("doctor")["findings"])

    def candidates(self, kind: str = "") -> list[dict[str, Any]]:
        """This node's candidates, or those of one type."""
        found: list[dict[str, Any]] = self.request("nat_status").get("candidates", [])
        return [candidate for candidate in found if not kind or candidate["candidate_type"] == kind]

    def introduce_by_candidates(self, other: "Member") -> None:
        """Make the other node a peer of this one, as an orchestrator does that knows nothing but its candidates."""
        self.request(
            "add_peer",
            public_key=other.public_key,
            endpoint="",
            allowed_ips=other.slice,
            persistent_keepalive_secs=0,
            candidates=other.candidates(),
        )

    def set_up_service(self, service: str) -> str:
        """Make the service's bridge; return its name."""
        return str(self.request("setup_service_overlay", service=service, mode="auto")["name"])

    def attach(self, container: Container, service: str, **keys: Any) -> str:
        """Attach a container to a service; return its address."""
        keys = {"join_global": False} | keys
        return str(self.request("attach_container", handle=container.handle, service=service, **keys)["ip"])

    def gateway(self, address: str) -> str:
        """The gateway of the service whose subnet `address` is of: where its containers find the name server."""
        route = json.loads(self.node.run(["ip", "-j", "route", "get", address]))[0]
        return str(route["prefsrc"])

    def detach(self, container: Container) -> None:
        """Detach a container."""
        self.request("detach_container", handle=container.handle)

    def subnet_of(self, address: str) -> str:
        """The subnet of the service that a container's address is from."""
        subnets = [str(each["subnet"]) for each in self.request("status")["services"]]
        return next(each for each in subnets if ip_address(address) in ip_network(each))

    def announce(self, other: "Member", address: str) -> str:
        """Tell the other node that the service subnet around `address` is behind this one; return the subnet."""
        subnet = self.subnet_of(address)
        other.request("add_allowed_ip", pubkey=self.public_key, cidr=subnet)
        return subnet


def join_by_candidates(lab: Lab, alpha: Member, beta: Member) -> tuple[list[Container], list[str]]:
    """Let two nodes know each other by their candidates only, with a container of service web on each.  Returns the
    containers, and their addresses.
    """
    containers, addresses = [lab.container(), lab.container()], []
    for member, other, container in ((alpha, beta, containers[0]), (beta, alpha, containers[1])):
        member.introduce_by_candidates(other)
        member.set_up_service("web")
        addresses.append(member.attach(container, "web"))
    alpha.announce(beta, addresses[0])
    beta.announce(alpha, addresses[1])
    return containers, addresses


class Pair:
    """Two nodes, each the other's peer, and a container on each: `web` on alpha, `db` on beta.

    options: of both daemons.
    """

    def __init__(self, lab: Lab, cluster: str = CLUSTER, options: Sequence[str] = ()) -> None:
        self.lab = lab
        self.alpha, self.beta = Member(lab, 1, "alpha", cluster), Member(lab, 2, "beta", cluster)
        for member in (self.alpha, self.beta):
            member.start(*options)
            member.set_up()
        self.alpha.introduce(self.beta)
        self.beta.introduce(self.alpha)
        self.web, self.db = lab.container(), lab.container()
        self.bridges = (self.alpha.set_up_service("web"), self.beta.set_up_service("db"))
        self.web_address = self.alpha.attach(self.web, "web")
        self.db_address = self.beta.attach(self.db, "db")
        self.alpha.announce(self.beta, self.web_address)
        self.beta.announce(self.alpha, self.db_address)
