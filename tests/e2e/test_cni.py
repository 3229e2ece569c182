"""What container runtimes get by CNI, through the shim: each command, each fault with its code and its words."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cni.shim import SHIM, call, finish, start, variables
from cni.side import SLICE, Side, address
from lab import Lab, Ping, ping
from lab import netns as names
from lab.container import Container
from lab.node import DAEMON
from lab.patience import until
from lab.processes import run

ONE_OF_MANY = {"default_route": False}


@pytest.fixture(scope="module")
def alpha(lab: Lab) -> Side:
    side = Side(lab, 1, "alpha")
    side.member.start()
    assert side.call("STATUS").error == (50, "no container can be attached: the global overlay is not set up")
    with lab.container() as early:
        assert side.add(early).error == (
            11,
            "overlayd cannot attach containers yet: the global overlay is not set up",
        )
    side.member.set_up()
    return side


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_an_interface_comes_is_checked_and_goes(alpha: Side, container: Container, version: str) -> None:
    config = {"cniVersion": version}
    added = alpha.add(container, config)
    result = added.told
    assert list(result) == ["cniVersion", "interfaces", "ips", "routes", "dns"]
    assert result["cniVersion"] == version
    host, inner = result["interfaces"]
    link = json.loads(container.run(["ip", "-j", "address", "show", "eth0"]))[0]
    assert (inner["name"], inner["mac"], inner["sandbox"]) == ("eth0", link["address"], str(container.namespace))
    outer = json.loads(alpha.member.node.run(["ip", "-j", "link", "show", host["name"]]))[0]
    assert host["mac"] == outer["address"]
    assert "sandbox" not in host
    assert ("mtu" in inner) == (version == "1.1.0")
    assert ("version" in result["ips"][0]) == (version < "1.0.0")
    assert result["ips"][0]["address"].endswith("/24")
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": result["ips"][0]["gateway"]}]
    assert result["dns"]["nameservers"] == [result["ips"][0]["gateway"]]
    assert alpha.add(container, config) == added  # a runtime must not, but tries again
    ping(container, result["ips"][0]["gateway"], count=1)
    if version >= "0.4.0":
        told = {"netns": str(container.namespace), "containerid": f"c{container.pid}"}
        assert alpha.call("CHECK", {**config, "prevResult": result}, **told) == (0, "")
    else:
        assert alpha.call("CHECK", {**config, "prevResult": result}, netns=str(container.namespace)).error[0] == 1
    assert alpha.delete(container) == (0, "")
    assert alpha.delete(container) == (0, "")  # containerd sends it twice
    assert f"netns:c{container.pid}/eth0" not in alpha.attached()
    assert "eth0" not in container.run(["ip", "-br", "link"])


def test_what_is_refused_and_how(alpha: Side, container: Container, tmp_path: Path) -> None:
    own = f"/run/netns/{alpha.member.node.netns}"
    assert alpha.call("ADD", netns=own).error[0] == 3
    assert "the host's own" in alpha.call("ADD", netns=own).error[1]
    assert alpha.call("ADD", netns="/dev/null").error[0] == 4
    assert alpha.add(container, containerid="../x").error == (
        4,
        "CNI_CONTAINERID: '../x' is not the id of a container: letters, digits, _, . and -, beginning with a letter or "
        "digit",
    )
    assert alpha.add(container, ifname="lo:1").error[0] == 4
    assert alpha.add(container, {"ipam": {"type": "host-local"}}).error == (
        2,
        'ipam: {"type":"host-local"}: overlayd allocates by itself',
    )
    assert alpha.add(container, {"prevResult": {}}).error == (
        7,
        "prevResult: overlayd-cni makes the interface: put it first in the list of plugins",
    )
    assert alpha.add(container, {"cniVersion": "0.2.0"}).error[0] == 1
    assert alpha.add(container, {"subnet": "10.99.0.0/24", "service": "far"}).error == (
        7,
        "subnet: 10.99.0.0/24 is not inside the cluster CIDR 10.200.0.0/16",
    )
    assert call("ADD", alpha.path, b"{", netns=str(container.namespace)).error[0] == 6
    assert alpha.attached() == {}
    until(lambda: "refused, code 7, prevResult" in "\n".join(alpha.ended()), alpha.ended)  # after its answer


def test_an_interface_that_is_there_already(alpha: Side, container: Container) -> None:
    alpha.add(container)
    assert alpha.add(container, containerid="another").error[0] == 102
    assert alpha.call("DEL", containerid="another") == (0, "")
    second = alpha.add(container, ONE_OF_MANY, ifname="net1")
    assert second.told["routes"] == []
    routes = container.run(["ip", "route"])
    assert routes.count("default") == 1
    assert "dev eth0" in next(line for line in routes.splitlines() if line.startswith("default"))
    assert alpha.delete(container, ifname="net1").exit == 0
    assert alpha.delete(container).exit == 0


def test_an_address_a_mac_and_names_that_are_asked_for(alpha: Side, container: Container, lab: Lab) -> None:
    runtime = {
        "ips": ["10.200.1.77/24"],
        "mac": "02:00:00:00:00:4d",
        "aliases": {"overlay": ["seventy-seven", "-bad-"]},
    }
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    result = alpha.add(container, {"runtimeConfig": runtime}, args=pod).told
    assert result["ips"][0]["address"] == "10.200.1.77/24"
    assert result["interfaces"][1]["mac"] == "02:00:00:00:00:4d"
    listed = alpha.attached()[f"netns:c{container.pid}/eth0"]
    assert sorted(listed["names"]) == ["seventy-seven", "web-0.shop"]
    assert "-bad-" in alpha.member.node.log.read_text()
    with lab.container() as other:
        code, message = alpha.add(other, args="IP=10.200.1.77").error
        assert code == 101
        assert f"netns:c{container.pid}/eth0" in message
        assert alpha.add(other, args="IP=10.200.2.1").error[0] == 101
        assert alpha.add(other, args="IP=fd00::1").error[0] == 101
        assert alpha.add(other, args="IP=10.200.1.78").told["ips"][0]["address"] == "10.200.1.78/24"
        alpha.delete(other)
    alpha.delete(container)
    names = alpha.member.request("list_dns").get("names", [])
    assert [each["name"] for each in names if "seventy" in each["name"] or "web-0" in each["name"]] == []


def test_a_service_that_is_full(alpha: Side, lab: Lab) -> None:
    small = {"name": "small", "subnet": "10.200.128.0/29", "default_route": False}
    with lab.container() as container:
        ids = [f"s{number}" for number in range(9)]
        ended = [alpha.add(container, small, containerid=id, ifname=id) for id in ids]
        full = [each for each in ended if each.exit]
        assert {each.error[0] for each in full} == {101}, full[0]
        assert 0 < len(full) < 9
        code, message = alpha.call("STATUS", small).error
        assert code == 50
        assert message.startswith("service small has no address left: all ")
        assert alpha.call("STATUS") == (0, "")
        alpha.call("GC", {**small, "cni.dev/valid-attachments": None})
    assert alpha.attached() == {}
    assert alpha.call("STATUS", small) == (0, "")


def test_isolation_that_a_pod_asks_for(alpha: Side, lab: Lab) -> None:
    with lab.container() as red, lab.container() as blue, lab.container() as blue_too:
        for pod, network in ((red, "red"), (blue, "blue"), (blue_too, "blue")):
            annotations = {"io.kubernetes.cri.pod-annotations": {"overlayd.io/isolation": network}}
            alpha.add(pod, {"isolation": "annotation", "runtimeConfig": annotations})
        at = alpha.attached()
        ping(blue, at[f"netns:c{blue_too.pid}/eth0"]["ip"], count=1)
        with pytest.raises(AssertionError):
            ping(red, at[f"netns:c{blue.pid}/eth0"]["ip"], count=1, seconds=1)
        for pod in (red, blue, blue_too):
            alpha.delete(pod)


@pytest.mark.parametrize("network", ["blue\n2026-01-01 info forged", "\x1b[2J", "\0", "\u202eeulb", "b" * 239])
def test_isolation_that_cannot_be_shown_is_refused(alpha: Side, container: Container, network: str) -> None:
    annotations = {"io.kubernetes.cri.pod-annotations": {"overlayd.io/isolation": network}}
    for config in ({"isolation": "annotation", "runtimeConfig": annotations}, {"isolation": network}):
        code, words = alpha.add(container, config).error
        assert (code, words.partition(":")[0]) == (7, "isolation")
        assert words.isprintable()
    assert alpha.attached() == {}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["link", "set", "eth0", "mtu", "1300"], "eth0 has the MTU 1300, not "),
        (["address", "flush", "dev", "eth0"], "eth0 does not have 10.200.1."),
        (["address", "add", "192.0.2.9/24", "dev", "eth0"], "as its only address"),
        (["route", "del", "default"], "the route to 0.0.0.0/0 through eth0 is gone"),
        (["link", "set", "eth0", "address", "02:00:00:00:00:09"], "eth0 has the MAC 02:00:00:00:00:09, not "),
        (["link", "set", "eth0", "name", "eth9"], "eth0 is called eth9"),
    ],
    ids=["mtu", "address", "another-address", "route", "mac", "name"],
)
def test_a_check_names_what_differs(alpha: Side, container: Container, damage: list[str], words: str) -> None:
    result = alpha.add(container).told
    where = {"netns": str(container.namespace), "containerid": f"c{container.pid}"}
    if damage[1] == "set" and damage[3] == "name":
        container.run(["ip", "link", "set", "eth0", "down"])
    container.run(["ip", *damage])
    code, message = alpha.call("CHECK", {"prevResult": result}, **where).error
    assert code in (11, 100)  # 11: the daemon is putting something right at the moment
    assert words in message
    alpha.delete(container)


def test_a_host_end_with_another_name_is_made_anew(alpha: Side, container: Container) -> None:
    result = alpha.add(container).told
    host, run = result["interfaces"][0]["name"], alpha.member.node.run
    run(["ip", "link", "set", host, "down"])
    run(["ip", "link", "set", host, "name", "elsewhere0", "up"])
    until(lambda: host in run(["ip", "-br", "link"]), "it has its name no more")
    until(lambda: "elsewhere0" not in run(["ip", "-br", "link"]), "the other one stays")
    ping(container, result["ips"][0]["gateway"], count=1)
    alpha.delete(container)
    assert "eth0" not in container.run(["ip", "-br", "link"])


def test_a_check_knows_whose_what_is(alpha: Side, container: Container, lab: Lab) -> None:
    result = alpha.add(container).told
    where = {"netns": str(container.namespace), "containerid": f"c{container.pid}"}
    container.run(["ip", "route", "add", "192.0.2.0/24", "via", result["ips"][0]["gateway"]])  # another plugin's
    result["ips"].append({"address": "192.0.2.7/24", "interface": 0})
    assert alpha.call("CHECK", {"prevResult": result}, **where) == (0, "")
    result["ips"][0]["address"] = "10.200.1.250/24"
    assert "not 10.200.1.250" in alpha.call("CHECK", {"prevResult": result}, **where).error[1]
    assert alpha.call("CHECK", {"prevResult": result}, **{**where, "containerid": "nobody"}).error == (
        100,
        "netns:nobody/eth0 is not attached",
    )
    with lab.container() as other:
        elsewhere = {**where, "netns": str(other.namespace)}
        assert "in another network namespace" in alpha.call("CHECK", {"prevResult": result}, **elsewhere).error[1]
    alpha.delete(container)


def test_a_namespace_that_is_gone_frees_its_address(alpha: Side, lab: Lab) -> None:
    with lab.container() as container:
        alpha.add(container)
    until(lambda: alpha.attached() == {}, "its address is not free")
    assert alpha.call("DEL", containerid=f"c{container.pid}", netns=str(container.namespace)) == (0, "")
    assert call("DEL", alpha.path, b"not a configuration any more", containerid="c1") == (0, "")


def test_the_collection_of_what_nobody_lists(alpha: Side, lab: Lab) -> None:
    with lab.container() as one, lab.container() as two, lab.container() as third:
        for each in (one, two):
            alpha.add(each)
        alpha.member.attach(third, "overlay")  # not by CNI
        other = {"name": "other", "service": "overlay", "default_route": False}
        assert alpha.add(third, other, ifname="net1").exit == 0
        assert alpha.call("GC") == (0, "")  # nobody said who is valid: the dead go alone
        assert len(alpha.attached()) == 4
        listed = [{"containerID": f"c{one.pid}", "ifname": "eth0"}]
        assert alpha.call("GC", {"cni.dev/valid-attachments": listed}) == (0, "")
        assert set(alpha.attached()) == {f"netns:c{one.pid}/eth0", f"netns:c{third.pid}/net1", f"pid:{third.pid}"}
        assert alpha.call("GC", {"cni.dev/attachments": []}) == (0, "")
        assert set(alpha.attached()) == {f"netns:c{third.pid}/net1", f"pid:{third.pid}"}
        alpha.call("GC", {"name": "other", "cni.dev/valid-attachments": None})
        alpha.member.detach(third)
    assert alpha.attached() == {}


def test_many_at_once_and_a_collection_under_way(alpha: Side, lab: Lab) -> None:
    with lab.container() as container, lab.container() as valid, ThreadPoolExecutor(32) as pool:
        pinging = Ping(alpha.member.node, address(alpha.add(valid)))
        ids = [f"m{number}" for number in range(200)]
        added = list(pool.map(lambda id: alpha.add(container, ONE_OF_MANY, containerid=id, ifname=id), ids))
        assert len({address(each) for each in added}) == len(ids)
        kept = [{"containerID": id, "ifname": id} for id in ids[:120]]
        kept.append({"containerID": f"c{valid.pid}", "ifname": "eth0"})
        assert alpha.call("GC", {"cni.dev/valid-attachments": kept}) == (0, "")
        assert len(alpha.attached()) == 121
        pinging.wait_for(5)
        assert pinging.stop() == []
        assert alpha.delete(valid) == (0, "")
        assert container.run(["ip", "-o", "link"]).count("\n") == 121
        for ended in pool.map(lambda id: alpha.delete(container, containerid=id, ifname=id), ids):
            assert ended == (0, "")
    assert alpha.attached() == {}
    assert alpha.member.findings() == []


def test_a_restart_goes_unnoticed_and_deletes_that_were_left_are_done(alpha: Side, lab: Lab) -> None:
    member = alpha.member
    with lab.container() as container, lab.container() as late:
        ids = [f"q{number}" for number in range(50)]
        for id in ids:
            assert alpha.add(container, ONE_OF_MANY, containerid=id, ifname=id).exit == 0
        member.node.kill()
        left = [start(variables("DEL", alpha.path, containerid=id, ifname=id), SLICE) for id in ids[:25]]
        assert [finish(each) for each in left] == [(0, "")] * 25
        queue = alpha.path.with_name("cni-del")
        assert len(list(queue.iterdir())) == 25
        (queue / "nonsense").write_text("{")
        waiting = start(variables("ADD", alpha.path, containerid="late", netns=str(late.namespace)), SLICE)
        member.start()
        assert finish(waiting).exit == 0
        assert list(queue.iterdir()) == []
        assert set(alpha.attached()) == {f"netns:{id}/{id}" for id in ids[25:]} | {"netns:late/eth0"}
        log = member.node.log.read_text()
        assert "25 DELs were left while no daemon ran" in log
        assert "nonsense is no DEL" in log
    until(lambda: alpha.attached() == {}, "the dead are not reclaimed")


def test_a_shim_that_is_killed_leaves_a_change_whole(alpha: Side, lab: Lab) -> None:
    with lab.container() as container:
        for number in range(20):
            process = start(variables("ADD", alpha.path, containerid="killed", netns=str(container.namespace)), SLICE)
            time.sleep(number / 5000)  # somewhere on its way
            process.kill()
            process.communicate()
            assert alpha.call("DEL", containerid="killed") == (0, "")
            assert alpha.attached() == {}
    assert alpha.member.findings() == []


def test_what_is_no_shim_is_dropped(alpha: Side, hostile: Callable[[bytes], bytes]) -> None:
    assert hostile(b"\xff\xff\xff\xff{}") == b""
    assert hostile(b"\x02\0\0\0[]") == b""
    assert hostile(b"\x02\0\0\0{}more") == b""
    assert alpha.path.stat().st_mode & 0o777 == 0o600
    dropped = "CNI call dropped: its frame has a length of 4294967295 bytes"
    until(lambda: dropped in alpha.member.node.log.read_text(), alpha.member.node.log_tail)
    assert alpha.call("STATUS") == (0, "")


@pytest.fixture
def hostile(alpha: Side) -> Callable[[bytes], bytes]:
    def send(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(alpha.path))
            connection.sendall(data)
            return connection.recv(100)

    return send


def test_descriptors_are_closed_whatever_comes(alpha: Side) -> None:
    assert alpha.member.node.daemon is not None
    pid = alpha.member.node.daemon.pid
    before = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    code = (
        "import socket, sys, array\n"
        "for number in range(300):\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "    socket.send_fds(s, [b'\\x09\\0\\0\\0{'], [0, 1, 2])\n"
        "    s.close()\n"
    )
    subprocess.run(["python3", "-c", code, alpha.path], check=True)
    assert alpha.call("STATUS") == (0, "")
    until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= before, "descriptors are left open")
    assert SHIM.exists()


def test_a_daemon_that_sees_neither_the_namespace_nor_its_processes(lab: Lab) -> None:
    """As in a DaemonSet: a mount and a pid namespace of its own; the descriptor is all that it gets."""
    side = Side(lab, 5, "hidden")
    side.member.node.program = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", *DAEMON]
    side.member.start()
    side.member.set_up()
    name = f"{lab.prefix}-unseen"
    run(["ip", "netns", "add", name])
    path = str(names.DIRECTORY / name)
    try:
        assert "unseen" not in side.member.node.run(["ls", "/run"])
        result = side.call("ADD", netns=path)
        inside = json.loads(run(["ip", "-n", name, "-j", "address", "show", "eth0"]))[0]
        assert address(result) == inside["addr_info"][0]["local"]
        assert side.call("CHECK", {"prevResult": result.told}, netns=path) == (0, "")
        assert side.call("DEL", netns=path) == (0, "")
        assert "eth0" not in run(["ip", "-n", name, "-br", "link"])
    finally:
        run(["ip", "netns", "del", name])
        side.member.node.kill()


def test_a_node_without_wireguard_says_that_little_is_reached(lab: Lab) -> None:
    side = Side(lab, 6, "bare")
    side.member.node.program = ["env", "PATH=/usr/sbin:/sbin", sys.executable, *DAEMON[1:]]  # finds no wireguard-go
    side.member.start()
    side.member.set_up()
    code, message = side.call("STATUS").error
    assert (code, message) == (51, "there is no WireGuard on this node: containers reach no other node")
    with lab.container() as container:
        assert side.add(container).exit == 0  # and an attach does succeed
        assert side.delete(container) == (0, "")


def test_a_second_default_route_is_left_to_the_first(alpha: Side, container: Container) -> None:
    alpha.add(container)
    second = alpha.add(container, ifname="net1")
    assert container.run(["ip", "route"]).count("default") == 1
    where = {"netns": str(container.namespace), "containerid": f"c{container.pid}", "ifname": "net1"}
    assert alpha.call("CHECK", {"prevResult": second.told}, **where) == (0, "")
    for ifname in ("net1", "eth0"):
        assert alpha.delete(container, ifname=ifname) == (0, "")
