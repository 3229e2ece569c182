"""`overlayctl inspect` on real nodes: beside the daemon, without it, and what it says of damage."""

import json
import sys
from collections.abc import Iterator

import pytest
from lab import Lab
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.node import CONTROL
from lab.traffic import ping

from overlayd import keys

# A daemon that cannot import pyroute2, and so does not.
PROGRAM = [
    sys.executable,
    "-c",
    "import sys; sys.modules['pyroute2'] = None; from overlayd.cli import daemon; daemon()",
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        pair = Pair(lab)
        pair.alpha.node.stop()
        pair.alpha.node.program = PROGRAM
        pair.alpha.start()
        yield pair


def inspect(member: Member, *words: str) -> tuple[int, dict]:
    """The exit code, and what it prints as JSON."""
    directory = str(member.node.data_dir)
    code, printed, _ = member.node.try_overlayctl("inspect", "--data-dir", directory, "-o", "json", *words)
    return code, json.loads(printed)


def test_it_shows_what_is_there_and_the_daemon_never_has_pyroute2(pair: Pair) -> None:
    alpha = pair.alpha
    box = pair.lab.container()
    address = alpha.attach(box, "web", join_global=True)
    guest = alpha.attach(pair.lab.container(), "web")
    alpha.request("doctor")
    ping(pair.web, pair.db_address)
    code, found = inspect(alpha)
    assert (code, found["differences"], found["uncompared"], found["picture"]["unseen"]) == (0, [], "", {})
    seen = found["picture"]
    bridge = pair.bridges[0]
    device = alpha.request("status")["interface"]
    links = {link["name"]: link for link in seen["links"]}
    assert {device, bridge, f"veth-{box.pid}-s", f"veth-{box.pid}-g"} < links.keys()
    assert "uplink" not in links
    assert links[f"veth-{box.pid}-s"]["master"] == bridge
    assert {"link": device, "address": "10.200.1.1/16"} in seen["addresses"]
    assert any(route["link"] == f"veth-{box.pid}-g" and route["protocol"] == 111 for route in seen["routes"])
    assert {entry["bridge"] for entry in seen["fdb"]} == {bridge}
    assert any(entry["address"] == pair.web_address for entry in seen["neighbours"])
    assert {"protocol": "udp", "local": "0.0.0.0:51820", "remote": "", "state": "unconnected"} in seen["sockets"]
    assert {"protocol": "unix", "local": str(alpha.node.socket), "remote": "", "state": "listening"} in seen["sockets"]
    assert any({pair.web_address, pair.db_address} <= {each["source"], each["target"]} for each in seen["conntrack"])
    assert address != guest
    text = alpha.node.overlayctl("inspect", "--data-dir", str(alpha.node.data_dir), "links", "routes")
    assert text.startswith("links:\n  LINK ")
    assert "conntrack" not in text
    assert text.rstrip().endswith(f"nothing is missing and nothing too much, by {alpha.node.data_dir}/journal")


def test_a_dead_daemon_is_no_obstacle_and_damage_is_told(pair: Pair) -> None:
    beta = pair.beta
    beta.node.stop()
    assert inspect(beta)[0] == 0
    device = next(link["name"] for link in inspect(beta)[1]["picture"]["links"] if link["role"][0] == "device")
    beta.node.run(["ip", "link", "set", f"veth-{pair.db.pid}-s", "nomaster"])
    beta.node.run(["ip", "address", "add", "10.200.2.77/32", "dev", device])
    beta.node.run(["ip", "route", "add", "10.77.0.0/16", "dev", device, "proto", "111"])
    code, found = inspect(beta)
    assert code == 4
    assert sorted(found["differences"]) == [
        [f"device {device}", "has an address that is not wanted: 10.200.2.77/32"],
        ["route 10.77.0.0/16", "is not wanted"],
        [f"veth-{pair.db.pid}-s", f"is on no bridge, not on {pair.bridges[1]}"],
    ]
    assert inspect(beta, "sockets")[1]["picture"]["routes"] == []
    beta.start()
    assert inspect(beta)[0] == 0, "the daemon has put it right"


def test_without_a_journal_it_shows_the_kernel_and_says_so(pair: Pair) -> None:
    node = pair.alpha.node
    code, text, errors = node.try_overlayctl("inspect", "--data-dir", "/nonexistent")
    assert code == 1
    assert "not compared with the journal: /nonexistent/journal: No such file or directory: name the daemon" in errors
    assert pair.bridges[0] in text


@pytest.mark.parametrize("cluster", [CLUSTER, CLUSTER6])
def test_dedicated_devices_guests_and_both_families_are_as_the_journal_has_them(cluster: str) -> None:
    with Lab() as lab:
        member = Member(lab, 3, "gamma", cluster)
        member.start()
        member.set_up()
        member.request("setup_service_overlay", service="own", mode="dedicated")
        peer = {"public_key": keys.text(b"p" * 32), "endpoint": "", "persistent_keepalive_secs": 0}
        member.request(
            "add_peer",
            **peer,
            allowed_ips="192.168.77.0/24" if cluster == CLUSTER else "fd77::/64",
            scope={"scope": "service", "service": "own"},
        )
        member.attach(lab.container(), "own", join_global=True)
        member.set_up_service("web")
        member.attach(lab.container(), "web")
        handle = {"platform": "guest_managed", "id": "vm"}
        member.request("attach_container", handle=handle, service="web", join_global=False)
        for alive in (True, False):
            if not alive:
                member.node.stop()
            code, found = inspect(member)
            assert (code, found["differences"], found["picture"]["unseen"]) == (0, [], {})
            assert len([link for link in found["picture"]["links"] if link["role"][0] == "device"]) == 2
            assert any(each["state"] == "proxy" for each in found["picture"]["neighbours"])


def test_who_may_not_see_all_is_told_what_and_sees_the_rest(pair: Pair) -> None:
    node = pair.alpha.node
    argv = [*CONTROL, "inspect", "--data-dir", node.data_dir, "links", "conntrack"]
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *argv]
    text = node.run(["sh", "-c", '"$@" 2>&1; echo "exit $?"', "sh", *nobody])
    assert text.endswith("exit 1\n")
    assert pair.bridges[0] in text
    assert "conntrack: cannot be read: Operation not permitted (errno 1)" in text
    assert f"not compared with the journal: {node.data_dir}/journal: Permission denied" in text
