"""An edge peer is let in for a while, to what it was granted and nothing else."""

import json
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from lab import CommandFailed, Container, Lab, Node, Refused, ping, roamer
from lab.cluster import PORT, Member, Pair
from lab.frames import request_frame
from lab.patience import until

HOUR = 3600
BAD_ENDPOINTS = {
    "": "not host:port",
    "vpn.example.net": "not host:port",
    "vpn.example.net:0": "not host:port",
    "vpn.example.net:65536": "not host:port",
    "vpn.example.net:wg": "not host:port",
    ":51820": "not host:port",
    "vpn example:51820": "not a DNS name",
    "2001:db8::7:51820": "brackets",
    "[2001:db8::g]:51820": "not an IP address",
    "[fe80::1%eth0]:51820": "zone",
    "0.0.0.0:51820": "nobody can dial",
    "[::]:51820": "nobody can dial",
    "239.1.1.1:51820": "nobody can dial",
    "10.200.9.9:51820": "in the cluster CIDR",
}

# A daemon whose clock is as many seconds ahead as a file says, and which looks at it often.
PROGRAM = """
import pathlib, sys, time
ahead, now = pathlib.Path(sys.argv.pop(1)), time.time
time.time = lambda: now() + float(ahead.read_text())
from overlayd.cli import daemon
from overlayd.daemon.peers import expiry
expiry.LONGEST_SLEEP = 0.1
daemon()
"""


class Edge:
    """Alpha, which mints, and a laptop on the underlay."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.alpha = pair.alpha
        self.laptop = pair.lab.node("laptop")
        self._ahead = pair.lab.directory / "ahead"
        self.set_clock_ahead(0)
        self.alpha.node.stop()
        self.alpha.node.program = [sys.executable, "-c", PROGRAM, str(self._ahead)]
        self.alpha.start()

    def set_clock_ahead(self, seconds: int) -> None:
        """For alpha's daemon."""
        new = self._ahead.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._ahead)

    def mint(self, name: str, *allow: str, ttl: int = HOUR) -> dict[str, Any]:
        return self.alpha.request("mint_edge_peer", name=name, ttl_secs=ttl, allow=list(allow))

    def revoke(self, name: str) -> None:
        assert self.alpha.request("revoke_edge_peer", name=name) == {"result": "ok"}

    def listed(self) -> list[dict[str, Any]]:
        return list(self.alpha.request("list_edge_peers")["peers"])


def answers(source: Node | Container, target: str) -> bool:
    try:
        source.run(["ping", "-n", "-c", "1", "-W", "0.5", target])
    except CommandFailed:
        return False
    return True


@pytest.fixture(scope="module")
def node_with_edges() -> Iterator[Edge]:
    with Lab() as lab:
        yield Edge(Pair(lab))


@pytest.fixture
def edge(node_with_edges: Edge) -> Edge:
    node_with_edges.set_clock_ahead(0)
    return node_with_edges


def test_wg_quick_takes_the_file_and_only_the_grant_is_reachable(edge: Edge) -> None:
    pair, alpha, laptop = edge.pair, edge.alpha, edge.laptop
    before, status = alpha.node.footprint(), alpha.request("status")
    beside = pair.lab.container()
    beside_address = alpha.attach(beside, "web")
    file = laptop.run_directory / "overlay.conf"
    file.write_text(
        alpha.node.overlayctl(
            "edge",
            "mint",
            "laptop",
            "--ttl",
            "1h",
            "--allow",
            f"{pair.web_address}/32",
            "--allow",
            f"{pair.db_address}/32",
            "--format",
            "wg-quick",
        )
    )
    (listed,) = edge.listed()
    assert "last_handshake_unix_secs" not in listed
    assert listed["expires_at_unix"] - listed["minted_at_unix"] == HOUR
    assert listed["allowed"] == [f"{pair.web_address}/32", f"{pair.db_address}/32"]
    assert ip_address(listed["overlay_ip"]) in ip_network(alpha.slice)

    up = ["env", "WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go", "wg-quick"]
    laptop.run([*up, "up", str(file)])
    try:
        ping(laptop, pair.web_address)
        ping(laptop, pair.db_address)
        ping(pair.web, listed["overlay_ip"])
        # The device's owner may ask for more than was granted: the node says no.
        laptop.run(["wg", "set", "overlay", "peer", alpha.public_key, "allowed-ips", "10.200.0.0/16"])
        laptop.run(["ip", "route", "add", "10.200.0.0/16", "dev", "overlay"])
        for target in (beside_address, "10.200.1.1", "10.200.2.1"):
            assert not answers(laptop, target), f"{target} was not granted"
        ping(laptop, pair.web_address, count=1)
        assert 0 <= time.time() - edge.listed()[0]["last_handshake_unix_secs"] < 60

        unseen = alpha.request("status")
        for each in (*unseen["peers"], *status["peers"]):
            each.pop("last_handshake_unix_secs")
        assert unseen == status, "who does not know edge peers does not see them"

        alpha.node.kill()
        alpha.start()
        assert edge.listed()[0]["overlay_ip"] == listed["overlay_ip"]
        ping(laptop, pair.web_address, count=1)
        assert not answers(laptop, beside_address)

        edge.revoke("laptop")
        edge.revoke("laptop")
        assert not answers(laptop, pair.web_address)
    finally:
        laptop.run([*up, "down", str(file)])
    alpha.detach(beside)
    assert edge.listed() == []
    assert alpha.node.footprint() == before


def test_it_is_shut_out_when_its_time_is_over(edge: Edge) -> None:
    pair, laptop = edge.pair, edge.laptop
    config = edge.mint("brief", f"{pair.web_address}/32")
    roamer.bring_up(laptop, config | {"prefix_len": 16})
    try:
        edge.set_clock_ahead(HOUR // 2)
        ping(laptop, pair.web_address)
        assert edge.listed()
        edge.set_clock_ahead(HOUR)
        until(lambda: not edge.listed())
        assert not answers(laptop, pair.web_address)
    finally:
        roamer.shut_down(laptop)
    until(lambda: "expired" in edge.alpha.node.log_tail(), edge.alpha.node.log_tail)


def test_its_time_runs_while_the_daemon_is_down(edge: Edge) -> None:
    alpha = edge.alpha
    over = edge.mint("over", "10.200.0.0/16")
    soon = edge.mint("soon", "10.200.0.0/16", ttl=2 * HOUR)
    alpha.node.stop()
    edge.set_clock_ahead(HOUR)
    alpha.start()
    shown = alpha.node.run(["wg", "show", alpha.request("status")["interface"], "peers"])
    assert over["public_key"] not in shown and soon["public_key"] in shown
    edge.set_clock_ahead(2 * HOUR)
    until(lambda: not edge.listed())


def test_the_configuration_is_complete_and_the_key_is_given_out_once(edge: Edge) -> None:
    alpha = edge.alpha
    config = edge.mint("phone", "10.200.9.7/16", "10.200.0.0/16", "203.0.113.0/24")
    try:
        assert config == {
            "result": "edge_config",
            "version": 1,
            "name": "phone",
            "overlay_ip": config["overlay_ip"],
            "prefix_len": 32,
            "private_key": config["private_key"],
            "public_key": config["public_key"],
            "peers": [
                {
                    "public_key": alpha.public_key,
                    "endpoint": f"{alpha.node.address}:{PORT}",
                    "allowed_ips": "10.200.0.0/16,203.0.113.0/24",
                    "persistent_keepalive_secs": 25,
                }
            ],
            "dns_server": alpha.gateway(edge.pair.web_address),
            "dns_domain": "overlay.local",
            "expires_at_unix": config["expires_at_unix"],
        }
        with pytest.raises(Refused, match=r"edge peer phone exists.*revoke it"):
            edge.mint("phone", "10.200.0.0/16")
        with pytest.raises(Refused, match="is edge peer phone"):
            alpha.request(
                "add_peer", public_key=config["public_key"], endpoint="", allowed_ips="", persistent_keepalive_secs=0
            )
        with pytest.raises(Refused, match="is edge peer phone"):
            alpha.request("add_allowed_ip", pubkey=edge.pair.beta.public_key, cidr=config["overlay_ip"])
        journal = b"".join(file.read_bytes() for file in alpha.node.data_dir.rglob("*") if file.is_file())
        assert config["private_key"].encode() not in journal
        shown = json.loads(alpha.node.overlayctl("edge", "list", "-o", "json"))
        assert config["private_key"] not in json.dumps(shown)
        assert shown[0]["name"] == "phone"
    finally:
        alpha.node.overlayctl("edge", "revoke", "phone")
    assert edge.listed() == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": ""}, r"request\.name"),
        ({"name": "a\nPostUp = reboot"}, r"request\.name"),
        ({"name": "x" * 65}, r"request\.name"),
        ({"ttl_secs": 0}, r"request\.ttl_secs"),
        ({"ttl_secs": 2**64 - 1}, r"request\.ttl_secs"),
        ({"allow": ["everything"]}, r"request\.allow.*'everything'.* its services: .*web"),
        ({"allow": ["10.200.0.0/16", "wbe"]}, r"request\.allow: 'wbe' is neither a CIDR nor a service"),
        ({"allow": ["10.200.0.0/99"]}, r"request\.allow.*10\.200\.0\.0/99"),
        ({"allow": ["fd00::/8"]}, r"request\.allow.*fd00::/8"),
        *(({"node_endpoint": text}, rf"request\.node_endpoint: .*{says}") for text, says in BAD_ENDPOINTS.items()),
    ],
)
def test_a_bad_mint_names_what_is_bad(edge: Edge, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        edge.alpha.request("mint_edge_peer", **({"name": "bad", "ttl_secs": 9, "allow": ["10.200.0.0/16"]} | keys))
    assert edge.listed() == []


def test_a_list_tells_of_what_was_asked_for_before_it(edge: Edge) -> None:
    """In one go: what was minted is there, and what was revoked is not."""
    connection = edge.alpha.connection
    for round in range(5):
        connection.send(
            request_frame(1, "mint_edge_peer", name=f"quick{round}", ttl_secs=HOUR, allow=["10.200.0.0/16"])
            + request_frame(2, "list_edge_peers")
            + request_frame(3, "revoke_edge_peer", name=f"quick{round}")
            + request_frame(4, "list_edge_peers")
        )
        answers = {message["id"]: message["response"] for message in (connection.receive() for _ in range(4))}
        listed = {id: [peer["name"] for peer in answers[id]["peers"]] for id in (2, 4)}
        assert f"quick{round}" in listed[2]
        assert f"quick{round}" not in listed[4]


def test_minting_needs_the_overlay_and_listing_does_not(lab: Lab) -> None:
    member = Member(lab, 3, "bare")
    member.start()
    with pytest.raises(Refused, match="global overlay not set up"):
        member.request("mint_edge_peer", name="x", ttl_secs=9, allow=["10.0.0.0/8"])
    assert member.request("list_edge_peers")["peers"] == []


def test_a_service_is_granted_by_its_name_as_long_as_it_is_there(edge: Edge) -> None:
    pair, alpha, laptop = edge.pair, edge.alpha, edge.laptop
    before = alpha.node.footprint()
    for service in ("shop", "cart"):
        alpha.set_up_service(service)
    shop, cart = pair.lab.container(), pair.lab.container()
    at = {"shop": alpha.attach(shop, "shop"), "cart": alpha.attach(cart, "cart")}
    config = edge.mint("laptop", "shop")
    (listed,) = edge.listed()
    (subnet,) = listed["allowed"]
    assert ip_address(at["shop"]) in ip_network(subnet)
    assert (config["peers"][0]["allowed_ips"], listed["services"]) == (subnet, ["shop"])
    assert "shop" not in str(config)

    roamer.bring_up(laptop, config | {"prefix_len": 16})
    laptop.run(["wg", "set", "wg0", "peer", alpha.public_key, "allowed-ips", "10.200.0.0/16"])
    try:
        ping(laptop, at["shop"])
        ping(laptop, alpha.gateway(at["shop"]), count=1)
        for target in (at["cart"], "10.200.1.1", pair.web_address):
            assert not answers(laptop, target), f"{target} was not granted"
        alpha.node.kill()
        alpha.start()
        ping(laptop, at["shop"], count=1)
        assert not answers(laptop, at["cart"])

        # Another service may have the subnet after it: that one was not granted.
        alpha.request("teardown_service_overlay", service="shop")
        assert "edge peer laptop reaches nothing of service shop any more" in alpha.node.log_tail()
        assert [peer["allowed"] for peer in edge.listed()] == [[]]
        _, found, _ = alpha.node.try_overlayctl("doctor")
        assert "edge peer laptop may reach service shop, which is not on this node" in found
        alpha.request("setup_service_overlay", service="heir", mode="shared", subnet=subnet)
        heir = pair.lab.container()
        inherited = alpha.attach(heir, "heir")
        assert ip_address(inherited) in ip_network(subnet)
        assert not answers(laptop, inherited)
        alpha.request("teardown_service_overlay", service="heir")

        alpha.set_up_service("shop")
        at["shop"] = alpha.attach(shop, "shop")
        assert edge.listed()[0]["allowed"] == [subnet]
        ping(laptop, at["shop"], count=1)
        alpha.request("prune_orphan_bridges", live_bridge_names=list(pair.bridges))
        edge.revoke("laptop")
    finally:
        roamer.shut_down(laptop)
    for service in ("shop", "cart"):
        alpha.request("teardown_service_overlay", service=service)
    assert alpha.node.footprint() == before


def test_services_and_cidrs_may_overlap(edge: Edge) -> None:
    """Whichever holds the other: the kernel takes no elements that overlap, and a teardown takes only its own."""
    alpha = edge.alpha
    before = alpha.node.footprint()
    alpha.set_up_service("shop")
    subnet = edge.mint("phone", "shop")["peers"][0]["allowed_ips"]
    inside = str(next(ip_network(subnet).hosts()))
    around = str(ip_network(subnet).supernet(4))
    for allow, allowed, left in (
        (["shop", inside], [f"{inside}/32", subnet], [f"{inside}/32"]),
        (["shop", around], [around, subnet], [around]),
        (["shop", subnet], [subnet], [subnet]),
        (["shop", "web"], None, None),
    ):
        edge.revoke("phone")
        edge.mint("phone", *allow)
        shown = edge.listed()[0]["allowed"]
        alpha.request("teardown_service_overlay", service="shop")
        if allowed is not None:
            assert (shown, edge.listed()[0]["allowed"]) == (allowed, left)
        alpha.set_up_service("shop")
        assert edge.listed()[0]["allowed"] == shown
    edge.revoke("phone")
    alpha.request("teardown_service_overlay", service="shop")
    assert alpha.node.footprint() == before


@pytest.mark.parametrize("keys", [{}, {"allow": []}], ids=["left out", "empty"])
def test_without_a_grant_the_whole_cluster_is_reached(edge: Edge, keys: dict[str, Any]) -> None:
    pair, laptop = edge.pair, edge.laptop
    config = edge.alpha.request("mint_edge_peer", name="admin", ttl_secs=HOUR, **keys)
    assert config["peers"][0]["allowed_ips"] == "10.200.0.0/16"
    roamer.bring_up(laptop, config | {"prefix_len": 16})
    try:
        for target in (pair.web_address, pair.db_address, "10.200.1.1", "10.200.2.1"):
            ping(laptop, target, count=1)
    finally:
        roamer.shut_down(laptop)
        edge.revoke("admin")


@pytest.mark.parametrize(
    "endpoint", ["198.51.100.7:4500", "vpn.example.net:51820", "[2001:db8::7]:51820", "127.0.0.1:51820"]
)
def test_it_dials_this_node_where_it_was_told(edge: Edge, endpoint: str) -> None:
    config = edge.alpha.request("mint_edge_peer", name="far", ttl_secs=HOUR, allow=["web"], node_endpoint=endpoint)
    edge.revoke("far")
    assert config["peers"][0]["endpoint"] == endpoint
    shown = edge.alpha.node.overlayctl("edge", "mint", "far", "--ttl", "1h", "--node-endpoint", endpoint)
    edge.revoke("far")
    assert f"\nEndpoint = {endpoint}\n" in shown and "\nAllowedIPs = 10.200.0.0/16\n" in shown


def test_a_node_behind_a_port_forward_is_dialed_there(edge: Edge) -> None:
    """The laptop knows nothing but the address and port that the outside sees."""
    pair, alpha, laptop = edge.pair, edge.alpha, edge.laptop
    seen = "198.51.100.77"
    laptop.run(["ip", "route", "add", f"{seen}/32", "via", str(alpha.node.address)])
    rules = "add table ip forward; add chain ip forward in { type nat hook prerouting priority dstnat; }; "
    rules += f"add rule ip forward in ip daddr {seen} udp dport 4500 dnat to {alpha.node.address}:{PORT}"
    alpha.node.run(["nft", rules])
    config = alpha.request("mint_edge_peer", name="far", ttl_secs=HOUR, allow=["web"], node_endpoint=f"{seen}:4500")
    roamer.bring_up(laptop, config | {"prefix_len": 16})
    try:
        ping(laptop, pair.web_address)
    finally:
        roamer.shut_down(laptop)
        edge.revoke("far")
        alpha.node.run(["nft", "delete table ip forward"])
        laptop.run(["ip", "route", "delete", f"{seen}/32"])


def test_a_node_without_a_way_out_mints_for_those_who_know_one(lab: Lab) -> None:
    member = Member(lab, 4, "stranded")
    member.start()
    member.set_up()
    member.node.run(["ip", "route", "delete", "default"])
    with pytest.raises(Refused, match="no default route"):
        member.request("mint_edge_peer", name="x", ttl_secs=9)
    config = member.request("mint_edge_peer", name="x", ttl_secs=9, node_endpoint="vpn.example.net:51820")
    assert config["peers"][0]["endpoint"] == "vpn.example.net:51820"
