"""`list` shows what a node holds, and the names that peers were given, also after a restart."""

import time

import pytest
from lab import Lab, Refused, ping
from lab.cluster import Member, Pair
from lab.patience import LIMIT

from overlayd import __version__

KEY = "C" * 42 + "A="


def test_what_two_nodes_hold(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    alpha.request("setup_service_overlay", service="vault", mode="dedicated")
    second = pair.lab.container()
    address = alpha.attach(second, "web", join_global=True, isolation_network="blue")
    held = alpha.request("allocate_ip", service="", join_global=True)["ip"]
    alpha.request("register_dns", name="blue-1", ip=address)
    alpha.request(
        "attach_container", handle={"platform": "guest_managed", "id": "vm"}, service="web", join_global=False
    )
    ping(alpha.node, str(beta.node.address), count=1)

    services = {each["service"]: each for each in alpha.request("list", what="services")["services"]}
    assert services.keys() == {"web", "vault"}
    assert (services["web"]["members"], services["web"]["held"], services["web"]["mode"]) == (3, 3, "shared")
    assert services["vault"]["device"].endswith("-d")
    assert abs(services["web"]["since_unix"] - time.time()) < 3600

    containers = {each["handle"]: each for each in alpha.request("list", what="containers")["containers"]}
    mine = containers[f"pid:{second.pid}"]
    assert (mine["ip"], mine["isolation_network"], mine["names"]) == (address, "blue", ["blue-1"])
    assert mine["mac"] in second.run(["ip", "link", "show", "eth0"])
    assert mine["global_ip"] in second.run(["ip", "address", "show", "eth1"])
    assert mine["link"] in alpha.node.run(["ip", "link"])
    assert "link" not in containers["guest:vm"]

    pools = {each.get("service", ""): each for each in alpha.request("list", what="pools")["pools"]}
    assert (pools["web"]["size"], pools["web"]["held"]) == (61, 3)
    assert (pools[""]["subnet"], pools[""]["size"], pools[""]["held"]) == (alpha.slice, 253, 2)
    holders = {each["ip"]: each["holder"] for each in alpha.request("list", what="addresses")["addresses"]}
    assert holders[held] == "allocate_ip"
    assert holders[mine["global_ip"]] == f"pid:{second.pid}"

    assert alpha.request("list", what="networks")["networks"] == [
        {"network": "blue", "members": 1, "services": ["web"]}
    ]
    alpha.detach(second)
    assert "networks" not in alpha.request("list", what="networks")


def test_traffic_and_path_of_peers(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    alpha.request("remove_peer", pubkey=beta.public_key)
    alpha.introduce(beta)
    pair.web.run(["ping", "-c", "1", "-w", str(int(LIMIT)), beta.slice.replace(".0/24", ".1")])
    (peer,) = [each for each in alpha.request("list", what="peers")["peers"] if each["kind"] == "node"]
    assert (peer["public_key"], peer["allowed_ips"], peer["path"]) == (beta.public_key, [beta.slice], "direct")
    assert peer["endpoint"] == beta.node.endpoint(51820)


@pytest.mark.parametrize("cluster", ["10.200.0.0/16", "fd00:200::/48"])
def test_a_name_stays_until_it_is_taken_back(cluster: str) -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha", cluster)
        member.start()
        status = member.set_up()
        assert (status["version"], status["findings"], status["node_id"], status["wg_port"]) == (
            __version__,
            0,
            1,
            51820,
        )
        assert status["mtu"] >= 1280
        peer = {"public_key": KEY, "endpoint": "", "allowed_ips": "", "persistent_keepalive_secs": 0}

        def names() -> set[object]:
            return {
                member.request("status")["peers"][0].get("name"),
                member.request("nat_status")["peers"][0].get("name"),
                member.request("list", what="peers")["peers"][0].get("name"),
            }

        member.request("add_peer", **peer)
        assert names() == {None}
        member.request("add_peer", **peer, name="node-7")
        assert names() == {"node-7"}
        member.request("add_peer", **peer)  # from an orchestrator that knows of no names
        assert names() == {"node-7"}
        member.node.kill()
        member.start()
        assert names() == {"node-7"}
        with pytest.raises(Refused, match=r"request\.name: .*cannot be shown"):
            member.request("add_peer", **peer, name="a\x1b[2J")
        member.request("add_peer", **peer, name="")
        assert names() == {None}
