"""A dedicated service has a tunnel of its own, with its own key and port, beside the shared one."""

import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Container, Lab, Refused, ping
from lab.capture import Capture
from lab.cluster import PORT, Member, Pair

VAULT_PORT = PORT + 1
ON_VAULT = {"scope": "service", "service": "vault"}


class Vault:
    """The dedicated service `vault` on both nodes of a pair, next to the pair's shared services."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.members = (pair.alpha, pair.beta)
        self.infos = [set_up(member, "vault") for member in self.members]
        self.join()
        self.containers = [pair.lab.container() for _ in self.members]
        self.addresses = [
            member.attach(container, "vault") for member, container in zip(self.members, self.containers, strict=True)
        ]

    def join(self) -> None:
        """Make each node's device the other's peer, in the scope of the service."""
        for member, other, info in zip(self.members, reversed(self.members), reversed(self.infos), strict=True):
            member.request("add_peer", **peer_of(other, info), scope=ON_VAULT)

    def talk(self) -> None:
        """Both containers reach each other."""
        ping(self.containers[0], self.addresses[1])
        ping(self.containers[1], self.addresses[0])


def set_up(member: Member, service: str) -> dict[str, Any]:
    return member.request("setup_service_overlay", service=service, mode="dedicated")


def peer_of(member: Member, info: dict[str, Any]) -> dict[str, Any]:
    return {
        "public_key": info["wg_public_key"],
        "endpoint": member.node.endpoint(info["wg_port"]),
        "allowed_ips": info["subnet"],
        "persistent_keepalive_secs": 0,
    }


def dedicated(member: Member) -> list[dict[str, Any]]:
    return list(member.request("status").get("dedicated_services", []))


def device_of(member: Member) -> str:
    (service,) = dedicated(member)
    return str(service["interface"])


@pytest.fixture(scope="module")
def vault() -> Iterator[Vault]:
    with Lab(mtu=1400) as lab:
        yield Vault(Pair(lab))


def test_why_asks_the_other_node_about_that_tunnel_through_the_shared_one(vault: Vault) -> None:
    """Also when the tunnel of the service is what is broken there."""
    vault.talk()
    alpha, beta = vault.members
    way = ("why", str(vault.containers[0].pid), vault.addresses[1])
    said = alpha.node.overlayctl(*way)
    assert re.search(rf"ok +on node .*: device {device_of(beta)} is up", said), said
    beta.request("remove_peer", pubkey=vault.infos[0]["wg_public_key"], scope=ON_VAULT)
    try:
        code, said, _ = alpha.node.try_overlayctl(*way)
        assert code == 4
        assert re.search(rf"BROKEN +on node .*: peers of device {device_of(beta)} lack", said), said
    finally:
        alpha.request(
            "remove_peer", pubkey=vault.infos[1]["wg_public_key"], scope=ON_VAULT
        )  # else its session lives on
        vault.join()
    vault.talk()


def test_its_containers_talk_through_its_own_port_and_the_others_do_not(vault: Vault) -> None:
    underlay = vault.pair.lab.capture(vault.pair.alpha.node)
    with underlay:
        vault.talk()
    assert tunnels_of(underlay) == {VAULT_PORT}
    with underlay:
        ping(vault.pair.web, vault.pair.db_address)
    assert tunnels_of(underlay) == {PORT}


def tunnels_of(underlay: Capture) -> set[int]:
    """The ports through whose tunnels packets went; each may send its handshakes at any time."""
    packets = underlay.packets()
    ports = {port for port in (PORT, VAULT_PORT) if any(each.is_carried(port) for each in packets)}
    assert all(any(each.is_wireguard(port) for port in (PORT, VAULT_PORT)) for each in packets)
    return ports


def test_it_has_a_key_of_its_own_and_only_its_own_peers(vault: Vault) -> None:
    alpha, (info, other) = vault.pair.alpha, vault.infos
    assert info["mode"] == "dedicated"
    assert len({info["wg_public_key"], other["wg_public_key"], alpha.public_key, vault.pair.beta.public_key}) == 4
    (service,) = dedicated(alpha)
    assert service == {
        "service": "vault",
        "interface": service["interface"],
        "public_key": info["wg_public_key"],
        "listen_port": VAULT_PORT,
        "overlay_ip": info["overlay_ip"],
        "subnet": info["subnet"],
        "peer_count": 1,
    }
    status = alpha.request("status")
    assert (status["peer_count"], status["service_count"]) == (1, 2)
    shown = alpha.node.run(["wg", "show", service["interface"]])
    assert f"listening port: {VAULT_PORT}" in shown
    assert f"public key: {info['wg_public_key']}" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("peer:")] == [other["wg_public_key"]]
    assert f"{info['overlay_ip']}/32" in alpha.node.run(["ip", "-br", "address", "show", service["interface"]])
    assert other["subnet"] in alpha.node.run(["ip", "route", "show", "dev", service["interface"]])


def test_a_second_setup_answers_the_same_and_another_mode_is_refused(vault: Vault) -> None:
    alpha = vault.pair.alpha
    kernel = alpha.node.footprint()
    assert set_up(alpha, "vault") == vault.infos[0]
    with pytest.raises(Refused, match=r"dedicated.*tear it down"):
        alpha.set_up_service("vault")
    with pytest.raises(Refused, match=r"shared.*tear it down"):
        set_up(alpha, "web")
    assert alpha.node.footprint() == kernel


@pytest.mark.parametrize("lost", ["bridge", "device"])
def test_a_second_setup_restores_what_was_deleted(vault: Vault, lost: str) -> None:
    alpha = vault.pair.alpha
    alpha.node.run(["ip", "link", "delete", vault.infos[0]["name"] if lost == "bridge" else device_of(alpha)])
    assert set_up(alpha, "vault") == vault.infos[0]
    vault.talk()


def test_a_restart_keeps_port_key_subnet_and_traffic(vault: Vault) -> None:
    alpha = vault.pair.alpha
    before, kernel, processes = dedicated(alpha), alpha.node.footprint(), alpha.node.wireguard_pids()
    assert len(processes) == 2
    assert alpha.node.kill() == -signal.SIGKILL
    alpha.start()
    assert (dedicated(alpha), alpha.node.footprint(), alpha.node.wireguard_pids()) == (before, kernel, processes)
    vault.talk()


def test_one_allowed_ip_comes_and_goes_with_its_route(vault: Vault) -> None:
    alpha, key = vault.pair.alpha, vault.infos[1]["wg_public_key"]
    kernel = alpha.node.footprint()
    alpha.request("add_allowed_ip", pubkey=key, cidr="192.168.77.0/24", scope=ON_VAULT)
    assert f"dev {device_of(alpha)}" in alpha.node.run(["ip", "route", "get", "192.168.77.1"])
    alpha.request("remove_allowed_ip", pubkey=key, cidr="192.168.77.0/24", scope=ON_VAULT)
    assert alpha.node.footprint() == kernel


def test_an_allowed_ip_that_holds_everything_takes_nobody_elses_traffic(vault: Vault) -> None:
    alpha, key = vault.pair.alpha, vault.infos[1]["wg_public_key"]
    kernel = alpha.node.footprint()
    for cidr in ("0.0.0.0/0", "10.200.0.0/16"):
        alpha.request("add_allowed_ip", pubkey=key, cidr=cidr, scope=ON_VAULT)
    assert alpha.node.footprint() == kernel
    for cidr in ("0.0.0.0/0", "10.200.0.0/16"):
        alpha.request("remove_allowed_ip", pubkey=key, cidr=cidr, scope=ON_VAULT)


def test_a_destination_leads_into_one_dedicated_service(vault: Vault) -> None:
    alpha = vault.pair.alpha
    set_up(alpha, "second")
    try:
        with pytest.raises(Refused, match=r"service vault already"):
            alpha.request(
                "add_peer", **peer_of(vault.pair.beta, vault.infos[1]), scope={"scope": "service", "service": "second"}
            )
        with pytest.raises(Refused, match=r"is the subnet of service web"):
            web = vault.pair.web_address
            own = next(line for line in alpha.node.run(["ip", "route"]).splitlines() if vault.pair.bridges[0] in line)
            assert web.rpartition(".")[0] in own
            key = vault.infos[1]["wg_public_key"]
            alpha.request("add_allowed_ip", pubkey=key, cidr=own.split()[0], scope=ON_VAULT)
    finally:
        alpha.request("teardown_service_overlay", service="second")


@pytest.mark.parametrize("service", ["web", "nowhere"])
def test_a_scope_without_a_device_is_named(vault: Vault, service: str) -> None:
    with pytest.raises(Refused, match=f"no dedicated overlay for service {service}"):
        vault.pair.alpha.request("remove_peer", pubkey="A" * 43 + "=", scope={"scope": "service", "service": service})


def test_a_port_that_another_program_has_is_passed_over(vault: Vault) -> None:
    alpha = vault.pair.alpha
    with alpha.node.open_socket(kind=socket.SOCK_DGRAM) as squatter:
        squatter.bind(("0.0.0.0", VAULT_PORT + 1))
        assert set_up(alpha, "late")["wg_port"] == VAULT_PORT + 2
    alpha.request("teardown_service_overlay", service="late")
    with pytest.raises(Refused, match=r"wg_port 51821 is that of the dedicated service vault"):
        alpha.request(
            "setup_global_overlay",
            deployment="lab",
            instance_id="alpha",
            cluster_cidr="10.200.0.0/16",
            slice_cidr=alpha.slice,
            wg_port=VAULT_PORT,
        )


def test_teardown_frees_all_of_it(lab: Lab, member: Member) -> None:
    before, status = member.node.footprint(), member.request("status")
    info = set_up(member, "passing")
    member.request(
        "add_peer",
        **(peer_of(member, info) | {"public_key": member.public_key, "allowed_ips": "10.200.99.0/28"}),
        scope={"scope": "service", "service": "passing"},
    )
    container: Container = lab.container()
    member.attach(container, "passing")
    for _ in range(2):
        member.request("teardown_service_overlay", service="passing")
    assert member.node.footprint() == before
    assert member.request("status") == status
    assert len(member.node.wireguard_pids()) == 1
    again = set_up(member, "passing")
    assert (again["wg_port"], again["subnet"]) == (info["wg_port"], info["subnet"])
    assert again["wg_public_key"] != info["wg_public_key"]
    assert dedicated(member)[0]["peer_count"] == 0
    member.request("teardown_service_overlay", service="passing")
