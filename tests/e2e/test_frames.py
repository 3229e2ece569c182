"""Everything that a daemon sends while all there is to ask is asked, and much happens.

No kind of message that the contract does not have may reach a client that did not ask for it: to the existing clients
that is a broken frame, and fails whatever they wait for.
"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from lab import Connection, Lab, Refused, ping
from lab.cluster import Member
from lab.frames import ANSWERS, EVENTS, KINDS, Undecodable, frame, kind_of
from lab.patience import until

from overlayd import wire

# From the contract: what each request is answered with, beside `err`.
ANSWER = {
    "setup_global_overlay": {"bridge_name"},
    "setup_service_overlay": {"bridge_name", "service_overlay"},
    "allocate_ip": {"ip"},
    "attach_container": {"attached", "guest_config"},
    "prune_orphan_bridges": {"pruned_bridges"},
    "status": {"status"},
    "nat_status": {"nat_status"},
    "mint_edge_peer": {"edge_config"},
    "list_edge_peers": {"edge_peers"},
} | {op: {answer} for op, answer in ANSWERS.items()}
GHOST = "Z2hvc3QgZ2hvc3QgZ2hvc3QgZ2hvc3QgZ2hvc3QgZ2g="  # the key of a peer that is never there
# A daemon for which a handshake vouches for three seconds.
IMPATIENT = [sys.executable, "-c", "import sys; from overlayd.daemon.main import main; main(sys.argv[1:], fresh=3)"]


class Recorded(Member):
    """A node whose orchestrator keeps every answer, and the request that it is to."""

    said: list[tuple[str, str]]

    def request(self, op: str, **keys: Any) -> dict[str, Any]:
        try:
            answer = super().request(op, **keys)
        except Refused:
            self.said.append((op, "err"))
            raise
        self.said.append((op, answer["result"]))
        return answer


@pytest.fixture
def nodes() -> Iterator[tuple[Recorded, Member]]:
    with Lab() as lab:
        alpha, beta = Recorded(lab, 1, "alpha"), Member(lab, 2, "beta")
        alpha.node.program, alpha.said = IMPATIENT, []
        for member in (alpha, beta):
            member.start()
        yield alpha, beta


def heard(alpha: Recorded) -> set[str]:
    """The events that have reached the orchestrator."""
    alpha.request("status")  # behind those that came before
    return set(map(kind_of, alpha.connection.events))


def ask_everything(alpha: Recorded, beta: Member) -> None:
    """Every request of the contract with an answer of each kind, and what goes on in between."""
    lab, scope = alpha.lab, {"scope": "service", "service": "vault"}
    for each in (alpha, beta):
        each.set_up()
        each.request("set_local_wg_pubkey", pubkey=each.public_key)
        each.set_up_service("web")
    alpha.introduce(beta)
    beta.introduce(alpha)
    ping(alpha.node, "10.200.2.1")
    for service, mode in (("apart", "isolated"), ("vault", "dedicated")):
        alpha.request("setup_service_overlay", service=service, mode=mode)
    peer = {"public_key": GHOST, "endpoint": "nobody.invalid:51820", "allowed_ips": "10.200.9.0/24"}
    alpha.request("add_peer", **peer, persistent_keepalive_secs=0, scope=scope)
    for op in ("add_allowed_ip", "remove_allowed_ip"):
        alpha.request(op, pubkey=GHOST, cidr="10.200.10.0/24", scope=scope)
    alpha.request("remove_peer", pubkey=GHOST, scope=scope)
    alpha.request("release_ip", ip=alpha.request("allocate_ip", service="web", join_global=False)["ip"])
    handles = [{"platform": "guest_managed", "id": "vm"}, {"platform": "host_shared", "id": "agent"}]
    handles += [lab.container().handle, lab.container().handle]
    for handle in handles:
        alpha.request("attach_container", handle=handle, service="apart", join_global=True)
    for handle in handles[:-1]:
        alpha.request("detach_container", handle=handle)
    with contextlib.suppress(Refused):
        alpha.request("attach_container", handle={"platform": "windows_container", "container_id": "x"}, service="w")
    alpha.request("register_dns", name="web", ip="10.200.1.9")
    alpha.request("unregister_dns", name="web")
    alpha.request("write_scoped_resolver", zone="example.org", node_ip="10.200.1.1")
    alpha.request("remove_scoped_resolver", zone="example.org")
    alpha.request("mint_edge_peer", name="laptop", ttl_secs=3600, allow=["10.200.0.0/16"])
    for op in (
        "list_edge_peers",
        "list_dns",
        "flush_dns",
        "nat_tick",
        "nat_status",
        "hello",
        "doctor",
        "renew_devices",
        "status",
    ):
        alpha.request(op)
    alpha.request("query_dns", name="web")
    with contextlib.suppress(Refused):  # it needs a cluster
        alpha.request("rotate_key")
    with alpha.node.connect() as watcher:
        watcher.further.add("changed")
        alpha.said.append(("watch", watcher.request("watch")["result"]))
    for what in ("services", "containers", "pools", "addresses", "networks", "peers"):
        alpha.request("list", what=what)
    alpha.request("revoke_edge_peer", name="laptop")
    alpha.request("prune_orphan_bridges", live_bridge_names=[])
    beta.node.run(["ip", "address", "delete", f"{beta.node.address}/24", "dev", "uplink"])
    beta.node.run(["ip", "address", "add", "172.31.0.77/24", "dev", "uplink"])
    beta.request("remove_peer", pubkey=alpha.public_key)
    beta.introduce(alpha)
    ping(beta.node, "10.200.1.1")
    until(lambda: "nat_endpoint_changed" in heard(alpha))
    beta.request("remove_peer", pubkey=alpha.public_key)
    unanswered = ["sh", "-c", "ping -c 1 -W 0.2 10.200.2.1 || true"]  # only this makes a peer ill
    until(lambda: bool(alpha.node.run(unanswered)) and heard(alpha) == EVENTS)
    alpha.request("teardown_service_overlay", service="vault")
    alpha.request("teardown_global_overlay")


def test_a_client_hears_nothing_that_it_did_not_ask_for(nodes: tuple[Recorded, Member]) -> None:
    alpha, beta = nodes
    with alpha.node.connect() as bystander:
        ask_everything(alpha, beta)
        bystander.request("status")  # behind all the events that came before
        alpha.request("shutdown")
        with pytest.raises(EOFError):
            bystander.receive()
    wrong = [(op, result) for op, result in alpha.said if result not in {"err", *ANSWER.get(op, {"ok"})}]
    assert not wrong
    ops = {str(each.__struct_config__.tag) for each in get_args(wire.Request)}
    assert {op for op, _ in alpha.said} == {op for op in ops if not op.startswith("cluster_")}  # which need one
    assert {result for _, result in alpha.said} == KINDS - EVENTS | set(ANSWERS.values())
    assert {kind_of(event) for event in bystander.events} == EVENTS


@pytest.mark.parametrize(
    "body",
    [
        b'{"frame":"event","event":"disk_full"}',
        b'{"frame":"response","id":1,"response":{"result":"diagnosis","findings":[]}}',
    ],
)
def test_the_laboratorys_client_is_as_strict_as_the_existing_ones(tmp_path: Path, body: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with Connection(tmp_path / "s") as client, server.accept()[0] as daemon:
            daemon.sendall(frame(body))
            with pytest.raises(Undecodable):
                client.receive()
