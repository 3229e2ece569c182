"""A node whose blocks are full claims another one, until there is none left: then that is told, and nothing stops."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from lab import Lab, Refused, ping
from lab.container import Container
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import Site, serve, sites


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Site]]:
    """Four blocks of 128 addresses: each with a slice of 64 and one service of 64."""
    with Lab() as lab, Etcd(lab) as etcd:
        made = sites(lab, etcd, ["alpha", "beta"], ["--cluster-cidr", "10.200.0.0/23", "--block-prefix", "25"])
        serve(made)
        yield made


def blocks(site: Site) -> list[str]:
    return [site.part["block"], *site.part.get("blocks", [])]


def told(site: Site) -> str:
    """What the doctor says of a node that is full; empty when it is not."""
    findings = site.request("doctor")["findings"]
    return next((str(each["problem"]) for each in findings if each["code"] == "cluster-full"), "")


def allocate(site: Site) -> str:
    return str(site.request("allocate_ip", service="", join_global=True)["ip"])


def join_global(site: Site) -> tuple[Container, str]:
    """A container with a second address of the node."""
    container = site.lab.container()
    site.request("attach_container", handle=container.handle, service="web", join_global=True)
    listed = site.request("list", what="containers")["containers"]
    return container, next(each["global_ip"] for each in listed if each["handle"] == f"pid:{container.pid}")


def test_services_and_containers_go_on_in_a_further_block(nodes: list[Site]) -> None:
    alpha, beta = nodes
    until(lambda: len(blocks(alpha)) == 2, lambda: alpha.part)  # a block has room for one service
    first, further = map(ip_network, blocks(alpha))
    taken = [allocate(alpha) for _ in range(61)]
    assert all(ip_address(each) in first for each in taken)
    container, address = join_global(alpha)
    assert ip_address(address) in further
    until(lambda: any(str(further) in each for each in beta.device_peers()), beta.device_peers)
    ping(beta.container, address, count=2)
    alpha.request("setup_service_overlay", service="db", mode="auto")
    assert ip_network(subnet(alpha, "db")).subnet_of(further)  # type: ignore[arg-type]
    alpha.node.kill()
    alpha.start()
    alpha.state("connected")
    ping(beta.container, address, count=2)
    alpha.request("detach_container", handle=container.handle)
    for each in taken:
        alpha.request("release_ip", ip=each)


def subnet(site: Site, service: str) -> str:
    return next(each["subnet"] for each in site.status["services"] if each["service"] == service)


def test_a_cluster_without_free_blocks_is_told_and_nothing_stops(nodes: list[Site]) -> None:
    alpha, beta = nodes
    held: dict[str, list[str]] = {"alpha": [], "beta": []}

    def is_full() -> bool:
        for site in nodes:
            try:
                while True:
                    held[site.node.name].append(allocate(site))
            except Refused as error:
                assert "no free address" in str(error), error
        return all(map(told, nodes))

    until(is_full, lambda: [(blocks(site), told(site)) for site in nodes])
    assert sum(len(blocks(site)) for site in nodes) == 4
    for site in nodes:
        assert "cluster address space exhausted: 4 blocks, 4 used" in told(site)
        assert "cluster address space exhausted" in site.part["error"]
        assert site.part["state"] == "connected"
    ping(alpha.container, beta.address, count=2)
    gamma = Site(alpha.lab, alpha.etcd, "gamma")
    gamma.start()
    until(lambda: "cluster address space exhausted" in gamma.part.get("error", ""), lambda: gamma.part)
    assert "cluster address space exhausted" in told(gamma)
    assert "cluster address space exhausted" in gamma.node.log_tail()
    # What is given up on a node is used there again, and a node that leaves frees its blocks for others.
    for address in held["alpha"]:
        alpha.request("release_ip", ip=address)
    until(lambda: "addresses" not in told(alpha), lambda: told(alpha))
    beta.request("cluster_leave", force=True)
    gamma.join()
    until(lambda: not told(alpha) and not told(gamma), lambda: (told(alpha), told(gamma)))
    # Each has the other, or WireGuard's first words are lost, and the next ones follow after five seconds.
    for one, other in ((alpha, gamma), (gamma, alpha)):
        key = other.status["public_key"]
        until(lambda one=one, key=key: any(key in each for each in one.device_peers()), one.device_peers)
    ping(alpha.container, gamma.status["node_ip"], count=2)
