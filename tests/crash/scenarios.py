"""The requests under test, each with what happened before it.

Owns: the table.  Must not know: where a scenario is disturbed.  A new request needs an entry here, and its meaning in
`model`.

A step is a request as on the wire, or one of these, whose names start with "!":

    !container pid   a container starts, as process `pid`
    !die pid         it ends, and the daemon reclaims what it held
    !orphan pid      it ends while the daemon is down; then the daemon starts
    !replace pid     the same, and a container that is none of ours gets its pid before the daemon starts
    !restart         the daemon is killed and started
    !reboot          the machine
    !teardown        the daemon is killed, and `overlayd --teardown` run, again if it does not come to its end
    !damage what     somebody else does what `damage` says, and the daemon puts it right
    !displace how    the same to the journal; if the daemon dies before it has, the journal is brought back by hand
    !stranger        the daemon is killed, one that knows nothing of this machine tried, and the daemon started
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crash.damage import DAMAGES, DISPLACEMENTS

Step = dict[str, Any]

A, B, C = (letter * 43 + "=" for letter in "AEI")  # public keys of peers: all base64 digits are good for one
KEYS = frozenset({A, B, C})
FIRST, SECOND = 30001, 30002  # containers


@dataclass(frozen=True)
class Scenario:
    """name: unique.  before: steps that are not disturbed.  act: the one that is.  parts: it may be done in part, if
    repeating it does the rest: foreign links are removed, which nobody could bring back.
    """

    name: str
    before: Sequence[Step]
    act: Step
    parts: bool = False

    @property
    def asked(self) -> bool:
        """Whether somebody asks for the act, rather than it happening."""
        return not self.act["op"].startswith("!")

    @property
    def starts_daemon(self) -> bool:
        """Whether it is not the daemon of the steps before that does the act."""
        return self.act["op"] in STARTS


STARTS = ("!orphan", "!replace", "!restart", "!reboot", "!stranger", "!teardown")


def step(op: str, **keys: Any) -> Step:
    return {"op": op, **keys}


def overlay(**keys: Any) -> Step:
    usual = {"deployment": "c", "instance_id": "1", "cluster_cidr": "10.200.0.0/16", "slice_cidr": "10.200.1.0/24"}
    return step("setup_global_overlay", **{**usual, "wg_port": 51820, **keys})


def service(name: str = "w", **keys: Any) -> Step:
    return step("setup_service_overlay", **{"service": name, "mode": "auto", **keys})


def attach(pid: int = FIRST, name: str = "w", **keys: Any) -> Step:
    return step("attach_container", **{"handle": _handle(pid), "service": name, "join_global": False, **keys})


def detach(pid: int = FIRST) -> Step:
    return step("detach_container", handle=_handle(pid))


def enter(pid: int = SECOND, name: str = "w", ifname: str = "net0", **keys: Any) -> Step:
    """Attach an interface of a container's namespace."""
    return attach(pid, name, **{"handle": interface(pid, ifname), **keys})


def leave(pid: int = SECOND, ifname: str = "net0") -> Step:
    return step("detach_container", handle=interface(pid, ifname))


def interface(pid: int, ifname: str = "net0") -> dict[str, Any]:
    return {"platform": "linux_netns", "id": f"c{pid}", "path": f"/proc/{pid}/ns/net", "ifname": ifname}


def peer(key: str = A, allowed_ips: str = "10.200.7.0/24", **keys: Any) -> Step:
    usual = {"endpoint": "192.0.2.1:51820", "persistent_keepalive_secs": 0}
    return step("add_peer", **{"public_key": key, "allowed_ips": allowed_ips, **usual, **keys})


def guest(platform: str = "guest_managed", name: str = "w") -> Step:
    handle = {"platform": platform, "id": "vm"}
    return step("attach_container", handle=handle, service=name, join_global=True)


def container(pid: int = FIRST) -> Step:
    return step("!container", pid=pid)


def _handle(pid: int) -> dict[str, Any]:
    return {"platform": "linux_pid", "pid": pid}


UP = (overlay(),)
DEDICATED = service("d", mode="dedicated")
OWN = {"scope": {"scope": "service", "service": "d"}}
EDGE = step("mint_edge_peer", name="laptop", ttl_secs=3600, allow=["10.200.0.0/16"])
GRANTED = (
    *UP,
    service(),
    service("v"),
    step("mint_edge_peer", name="laptop", ttl_secs=3600, allow=["w", "v", "10.200.8.0/24"]),
)
SERVED = (*UP, service(), container())
ATTACHED = (*SERVED, attach())
BUSY = (
    step("set_local_node_id", node_id=3),
    *UP,
    service(),
    service("v"),
    peer(),
    peer(B, "10.200.8.0/24,10.201.0.0/16"),
    step("allocate_ip", service="w", join_global=False),
    step("allocate_ip", service="", join_global=True),
    container(),
    attach(join_global=True, isolation_network="red"),
    container(SECOND),
    attach(SECOND, "v", isolation_network="red"),
)
ENTERED = (*SERVED, container(SECOND), enter())
SLICE = service("s", subnet="10.200.1.0/24")
SLICED = (*UP, service(), SLICE, container(), container(SECOND), guest(name="w"), guest("host_shared"), EDGE)
SIXES = overlay(cluster_cidr="fd00:1::/64", slice_cidr="fd00:1::1:0/112")

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("node id", (), step("set_local_node_id", node_id=7)),
        Scenario("announced key", (), step("set_local_wg_pubkey", pubkey=A)),
        Scenario("overlay first", (), overlay()),
        Scenario("overlay again", BUSY, overlay()),
        Scenario("overlay with another port", BUSY, overlay(wg_port=51821)),
        Scenario("overlay of another instance", BUSY, overlay(instance_id="2")),
        Scenario("overlay of another instance and port", BUSY, overlay(instance_id="2", wg_port=51821)),
        Scenario("overlay gets a slice", (overlay(slice_cidr=None), service(), peer()), overlay()),
        Scenario("overlay moves", (*UP, peer()), overlay(cluster_cidr="10.210.0.0/16", slice_cidr="10.210.1.0/24")),
        Scenario("overlay of IPv6", (), SIXES),
        Scenario("overlay down", BUSY, step("teardown_global_overlay")),
        Scenario("overlay up again", (*BUSY, step("teardown_global_overlay")), overlay()),
        Scenario("service first", UP, service()),
        Scenario("service of a given subnet", UP, service(subnet="10.200.77.0/24")),
        Scenario("service again", SERVED, service()),
        Scenario("service becomes isolated", ATTACHED, service(mode="isolated")),
        Scenario("service of IPv6", (SIXES,), service()),
        Scenario("service down", (*UP, service()), step("teardown_service_overlay", service="w")),
        Scenario("service down with containers", BUSY, step("teardown_service_overlay", service="w")),
        Scenario("allocate from a service", SERVED, step("allocate_ip", service="w", join_global=False)),
        Scenario("allocate from the node", UP, step("allocate_ip", service="", join_global=True)),
        Scenario(
            "release",
            (*SERVED, step("allocate_ip", service="w", join_global=False)),
            step("release_ip", ip="10.200.16.66"),
        ),
        Scenario(
            "release what kept an ephemeral service",
            (
                *SERVED,
                attach(ephemeral=True),
                step("allocate_ip", service="w", join_global=False),
                detach(),
            ),
            step("release_ip", ip="10.200.16.67"),
        ),
        Scenario("attach", SERVED, attach()),
        Scenario("attach again", ATTACHED, attach()),
        Scenario("attach with join_global", SERVED, attach(join_global=True)),
        Scenario("attach ephemeral", SERVED, attach(ephemeral=True)),
        Scenario("attach isolated", SERVED, attach(isolation_network="red")),
        Scenario("attach isolated with join_global", SERVED, attach(isolation_network="red", join_global=True)),
        Scenario("attach second", (*ATTACHED, container(SECOND)), attach(SECOND)),
        Scenario("attach over IPv6", (SIXES, service(), container()), attach(join_global=True)),
        Scenario("detach", ATTACHED, detach()),
        Scenario("detach with join_global", (*SERVED, attach(join_global=True)), detach()),
        Scenario("detach the last ephemeral", (*SERVED, attach(ephemeral=True)), detach()),
        Scenario("detach the last isolated", (*SERVED, attach(isolation_network="red")), detach()),
        Scenario("detach one of a network", BUSY, detach()),
        Scenario("interface", (*SERVED, container(SECOND)), enter()),
        Scenario("interface again", ENTERED, enter()),
        Scenario("interface in place of a container's way out", SERVED, enter(FIRST)),
        Scenario("interface with join_global", (*SERVED, container(SECOND)), enter(join_global=True)),
        Scenario("interface isolated", (*SERVED, container(SECOND)), enter(isolation_network="red")),
        Scenario("interface of a given address", (*SERVED, container(SECOND)), enter(ip="10.200.16.99")),
        Scenario("interface without a default route", SERVED, enter(FIRST, default_route=False)),
        Scenario("interface second", (*ENTERED, service("v")), enter(SECOND, "v", "net1", default_route=False)),
        Scenario("interface over IPv6", (SIXES, service(), container(SECOND)), enter(join_global=True)),
        Scenario("interface leaves", ENTERED, leave()),
        Scenario("interface leaves that has the container's way out", (*SERVED, enter(FIRST)), leave(FIRST)),
        Scenario("interface leaves with join_global", (*SERVED, container(SECOND), enter(join_global=True)), leave()),
        Scenario("interface restart", ENTERED, step("!restart")),
        Scenario("interface reboot", ENTERED, step("!reboot")),
        Scenario("interface dies", ENTERED, step("!die", pid=SECOND)),
        Scenario("interface dies unseen", ENTERED, step("!orphan", pid=SECOND)),
        Scenario("interface is replaced unseen", ENTERED, step("!replace", pid=SECOND)),
        Scenario("interface of a teardown", ENTERED, step("!teardown")),
        Scenario("slice of a service", (*SLICED[:2], *SLICED[3:]), SLICE),
        Scenario("slice again", SLICED, SLICE),
        Scenario("slice of IPv6", (SIXES,), service("s", subnet="fd00:1::1:0/112")),
        Scenario("slice attach", SLICED, attach(name="s")),
        Scenario("slice interface", SLICED, enter(SECOND, "s", join_global=True)),
        Scenario("slice beside join_global", SLICED, attach(join_global=True)),
        Scenario("slice guest", SLICED[:5], guest(name="s")),
        Scenario("slice down", (*SLICED, enter(SECOND, "s")), step("teardown_service_overlay", service="s")),
        Scenario("slice and overlay down", SLICED, step("teardown_global_overlay")),
        Scenario("slice of another instance", SLICED, overlay(instance_id="2")),
        Scenario("slice restart", (*SLICED, enter(SECOND, "s")), step("!restart")),
        Scenario("slice reboot", (*SLICED, enter(SECOND, "s")), step("!reboot")),
        Scenario("peer first", UP, peer()),
        Scenario("peer of a name", UP, peer(endpoint="nobody.invalid:51820")),
        Scenario("peer again", (*UP, peer()), peer()),
        Scenario(
            "peer changes",
            (*UP, peer(), step("add_allowed_ip", pubkey=A, cidr="10.200.9.0/24")),
            peer(A, "10.200.7.0/25,10.200.10.0/24", endpoint="192.0.2.2:51820", persistent_keepalive_secs=25),
        ),
        Scenario("peer takes from another", (*UP, peer(), peer(B, "10.200.8.0/24")), peer(B, "10.200.7.0/24")),
        Scenario(
            "allowed IP becomes this node's own",
            (*UP, peer(A, "10.200.16.64/26,10.200.77.0/26,10.201.0.0/16")),
            overlay(slice_cidr="10.200.77.0/24"),
        ),
        Scenario("peer gone", BUSY, step("remove_peer", pubkey=B)),
        Scenario(
            "allowed IP that is this node's own",
            UP,
            peer(A, "10.200.7.0/24,10.200.1.0/24,10.201.0.0/16"),
        ),
        Scenario("allowed IP", (*UP, peer()), step("add_allowed_ip", pubkey=A, cidr="10.200.9.0/24")),
        Scenario(
            "allowed IP moves",
            (*UP, peer(), peer(B, "10.200.8.0/24")),
            step("add_allowed_ip", pubkey=B, cidr="10.200.7.0/24"),
        ),
        Scenario(
            "allowed IP gone",
            (*UP, peer(A, "10.200.7.0/24,10.200.8.0/24")),
            step("remove_allowed_ip", pubkey=A, cidr="10.200.8.0/24"),
        ),
        Scenario("dedicated service first", UP, DEDICATED),
        Scenario("dedicated service again", (*UP, DEDICATED), DEDICATED),
        Scenario(
            "dedicated service down", (*UP, DEDICATED, peer(**OWN)), step("teardown_service_overlay", service="d")
        ),
        Scenario("dedicated peer", (*UP, DEDICATED), peer(**OWN)),
        Scenario(
            "dedicated peer changes", (*UP, DEDICATED, peer(**OWN)), peer(A, "10.200.9.0/24,10.200.8.0/24", **OWN)
        ),
        Scenario("dedicated peer gone", (*UP, DEDICATED, peer(**OWN)), step("remove_peer", pubkey=A, **OWN)),
        Scenario(
            "dedicated allowed IP",
            (*UP, DEDICATED, peer(**OWN)),
            step("add_allowed_ip", pubkey=A, cidr="10.200.9.0/24", **OWN),
        ),
        Scenario(
            "dedicated allowed IP gone",
            (*UP, DEDICATED, peer(**OWN)),
            step("remove_allowed_ip", pubkey=A, cidr="10.200.7.0/24", **OWN),
        ),
        Scenario("dedicated attach", (*UP, DEDICATED, container()), attach(FIRST, "d")),
        Scenario("dedicated of another instance", (*UP, DEDICATED, peer(**OWN)), overlay(instance_id="2")),
        Scenario("dedicated restart", (*UP, DEDICATED, peer(**OWN)), step("!restart")),
        Scenario(
            "devices renewed", (*BUSY, DEDICATED, peer(C, "10.202.0.0/24", **OWN)), step("renew_devices", force=True)
        ),
        Scenario("dedicated reboot", (*UP, DEDICATED, peer(**OWN)), step("!reboot")),
        Scenario("guest", SERVED, guest()),
        Scenario("guest again", (*SERVED, guest()), guest()),
        Scenario("guest without a service", UP, guest()),
        Scenario("guest leaves", (*SERVED, guest()), step("detach_container", handle=guest()["handle"])),
        Scenario("guest reboot", (*SERVED, guest()), step("!reboot")),
        Scenario("host container", UP, guest("host_shared")),
        Scenario(
            "host container leaves",
            (*UP, guest("host_shared")),
            step("detach_container", handle=guest("host_shared")["handle"]),
        ),
        Scenario("host container over a teardown", (*UP, guest("host_shared")), step("teardown_global_overlay")),
        Scenario(
            "bridges pruned",
            (*BUSY, service("x"), service("y", mode="dedicated"), step("allocate_ip", service="x", join_global=False)),
            step("prune_orphan_bridges", live_bridge_names=["zl-c-1-v-b"]),
            parts=True,
        ),
        Scenario(
            "bridges of an older instance pruned",
            (*BUSY, service("x"), overlay(instance_id="2")),
            step("prune_orphan_bridges", live_bridge_names=["zl-c-2-v-b"]),
            parts=True,
        ),
        Scenario("name", (), step("register_dns", name="web.example", ip="10.200.1.9")),
        Scenario(
            "another address of a name",
            (step("register_dns", name="web.example", ip="10.200.1.9"),),
            step("register_dns", name="web.example", ip="fd00::9"),
        ),
        Scenario(
            "name gone",
            (step("register_dns", name="web.example", ip="10.200.1.9"),),
            step("unregister_dns", name="web.example"),
        ),
        Scenario("edge peer", UP, EDGE),
        Scenario("edge peer of services", GRANTED[:-1], GRANTED[-1]),
        Scenario("edge peer of services revoked", GRANTED, step("revoke_edge_peer", name="laptop")),
        Scenario("edge peer whose service goes", GRANTED, step("teardown_service_overlay", service="w")),
        Scenario(
            "edge peer whose service comes back", (*GRANTED, step("teardown_service_overlay", service="w")), service()
        ),
        Scenario("edge peer revoked", (*UP, EDGE), step("revoke_edge_peer", name="laptop")),
        Scenario("edge peer reboot", (*UP, EDGE), step("!reboot")),
        Scenario("shutdown", BUSY, step("shutdown")),
        Scenario("first start", (), step("!restart")),
        Scenario("restart", BUSY, step("!restart")),
        Scenario("reboot", BUSY, step("!reboot")),
        Scenario("start with another state", BUSY, step("!stranger")),
        Scenario("container dies", BUSY, step("!die", pid=FIRST)),
        Scenario("ephemeral container dies", (*SERVED, attach(ephemeral=True)), step("!die", pid=FIRST)),
        Scenario("container dies unseen", BUSY, step("!orphan", pid=FIRST)),
        Scenario("container is replaced unseen", BUSY, step("!replace", pid=FIRST)),
        Scenario("teardown of everything", (*BUSY, DEDICATED, EDGE), step("!teardown")),
        *(Scenario(f"journal {how}", BUSY, step("!displace", how=how)) for how in DISPLACEMENTS),
        *(Scenario(f"damage to {what}", BUSY, step("!damage", what=what)) for what in DAMAGES),
    )
}
