"""Container runtimes that ask for what cannot be, twice at once, or again: each is told by a code and by words, and
what was damaged meanwhile is whole afterwards.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cni.shim import Ended, call, finish, start, variables
from cni.side import SLICE, Side, address
from lab import Lab, ping
from lab.container import Container
from lab.patience import until


@pytest.fixture(scope="module")
def alpha(lab: Lab) -> Side:
    side = Side(lab, 1, "alpha")
    side.member.start()
    side.member.set_up()
    return side


def where(container: Container, **given: str) -> dict[str, str]:
    return {"netns": str(container.namespace), "containerid": f"c{container.pid}"} | given


# --- An ADD again ---

DAMAGES = {
    "address": ["ip address flush dev eth0"],
    "another address": ["ip address add 192.0.2.9/24 dev eth0"],
    "route": ["ip route del default"],
    "down": ["ip link set eth0 down"],
    "name": ["ip link set eth0 down", "ip link set eth0 name eth9", "ip link set eth9 up"],
    "mtu": ["ip link set eth0 mtu 1300"],
    "mac": ["ip link set eth0 address 02:00:00:00:00:09"],
    "link": ["ip link delete eth0"],
    "loopback": ["ip link set lo down"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_interface_that_was_damaged_is_whole_after_the_same_add(
    alpha: Side, container: Container, damage: str
) -> None:
    first = alpha.add(container)
    for command in DAMAGES[damage]:
        container.run(command.split())
    again = alpha.add(container)
    assert again == first
    ping(container, first.told["ips"][0]["gateway"], count=1)
    assert alpha.call("CHECK", {"prevResult": first.told}, **where(container)) == (0, "")
    assert "eth9" not in container.run(["ip", "-br", "link"])
    assert alpha.delete(container) == (0, "")
    assert "eth0" not in container.run(["ip", "-br", "link"])
    assert alpha.member.findings() == []


def test_an_add_again_leaves_what_is_whole_as_it_is(alpha: Side, container: Container) -> None:
    first = alpha.add(container)
    container.run(["ip", "route", "add", "192.0.2.0/24", "via", first.told["ips"][0]["gateway"]])  # another plugin's
    before = container.run(["ip", "link", "show", "eth0"])
    assert alpha.add(container) == first
    assert container.run(["ip", "link", "show", "eth0"]) == before
    assert "192.0.2.0/24" in container.run(["ip", "route"])
    assert "made again" not in "\n".join(
        line for line in alpha.member.node.log.read_text().splitlines() if f"c{container.pid}/" in line
    )
    alpha.delete(container)


def test_an_interface_that_somebody_took_the_place_of(alpha: Side, container: Container) -> None:
    alpha.add(container)
    container.run(["ip", "link", "set", "eth0", "down"])
    container.run(["ip", "link", "set", "eth0", "name", "eth9"])
    container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    code, words = alpha.add(container).error
    assert (code, "already has an interface eth0" in words) == (102, True), words
    assert alpha.delete(container) == (0, "")
    assert "eth9" not in container.run(["ip", "-br", "link"])


def test_the_default_route_is_told_of_the_interface_that_has_it(alpha: Side, container: Container) -> None:
    default = [{"dst": "0.0.0.0/0", "gw": "10.200.1.1"}]
    first = alpha.add(container)
    second = alpha.add(container, ifname="net1")
    assert (first.told["routes"], second.told["routes"]) == (default, [])
    assert (alpha.add(container), alpha.add(container, ifname="net1")) == (first, second)
    container.run(["ip", "route", "del", "default"])
    code, words = alpha.call("CHECK", {"prevResult": first.told}, **where(container)).error
    assert (code in (11, 100), "the route to 0.0.0.0/0 through eth0 is gone" in words) == (True, True), words
    assert alpha.add(container) == first
    assert alpha.delete(container) == (0, "")
    net1 = where(container, ifname="net1")
    assert alpha.call("CHECK", {"prevResult": second.told}, **net1) == (0, "")  # it was told that it has none
    assert alpha.add(container, ifname="net1").told["routes"] == default  # but it does have it now
    assert alpha.delete(container, ifname="net1") == (0, "")


def test_the_same_id_in_two_namespaces(alpha: Side, container: Container, lab: Lab) -> None:
    alpha.add(container, containerid="pod")
    with lab.container() as other:
        code, words = alpha.add(other, containerid="pod").error
        assert (code, "in another network namespace that still lives" in words) == (4, True), words
        container.kill()
        assert address(alpha.add(other, containerid="pod"))
        assert alpha.delete(other, containerid="pod") == (0, "")
    assert alpha.attached() == {}


# --- Two calls at once ---


def test_two_adds_of_a_container_at_once(alpha: Side, container: Container) -> None:
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            ended = [each.result() for each in [pool.submit(alpha.add, container) for _ in range(4)]]
        assert len({each.stdout for each in ended}) == 1, ended
        assert address(ended[0])
        assert len(alpha.attached()) == 1
        assert alpha.delete(container) == (0, "")


def test_a_delete_while_an_add_is_under_way(alpha: Side, container: Container) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            adding = pool.submit(alpha.add, container)
            deleting = [pool.submit(alpha.delete, container) for _ in range(2)]
            assert [each.result() for each in deleting] == [(0, "")] * 2
            assert address(adding.result())
    assert alpha.delete(container) == (0, "")
    assert alpha.attached() == {}
    assert "eth0" not in container.run(["ip", "-br", "link"])
    assert alpha.member.findings() == []


# --- What cannot be ---


@pytest.mark.parametrize(
    ("code", "config", "words"),
    [
        (6, b"", "the network's configuration is not JSON"),
        (6, b"{", "the network's configuration is not JSON"),
        (6, b"[" * 100_000, "the network's configuration is not JSON"),
        (6, b"[]", "the network's configuration is not an object: []"),
        (7, b'{"cniVersion":7}', "cniVersion: Expected `str`, got `int`"),
        (1, b'{"name":"overlay"}', "cniVersion '0.1.0' is none that overlayd-cni speaks"),
        (7, b'{"cniVersion":"1.1.0"}', "name: '' is not the name of a network"),
        (7, b'{"cniVersion":"1.1.0","name":"a\\u0000"}', r"name: 'a\x00' is not the name of a network"),
        (2, b'{"cniVersion":"1.1.0","name":"a","mtu":"' + b"x" * 99_999 + b'"}', "'mtu': 'xxxx"),
        (7, b'{"cniVersion":"1.1.0","name":"a","subnet":"slice","subnet":"10.200.1.0/99"}', "subnet: '10.200.1.0/99'"),
        (7, b'{"cniVersion":"1.1.0","name":"a","runtimeConfig":{"ips":[[]]}}', "runtimeConfig.ips[0]: Expected `str`"),
        (
            7,
            b'{"cniVersion":"1.1.0","name":"a","runtimeConfig":{"portMappings":[{"hostPort":80}]}}',
            "runtimeConfig.portMappings: overlayd-cni maps no ports",
        ),
    ],
)
def test_a_configuration_that_is_none(alpha: Side, container: Container, code: int, config: bytes, words: str) -> None:
    found, message = call("ADD", alpha.path, config, **where(container)).error
    assert (found, message.startswith(words), len(message) < 500) == (code, True, True), message
    assert alpha.attached() == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ifname": "eth0\n"}, r"CNI_IFNAME: 'eth0\n' is not the name of an interface"),
        ({"ifname": "sixteen-bytes-xx"}, "CNI_IFNAME: 'sixteen-bytes-xx' is not"),
        ({"ifname": ""}, "CNI_IFNAME: '' is not"),
        ({"ifname": ".."}, "CNI_IFNAME: '..' is not"),
        ({"ifname": "eth%d"}, "CNI_IFNAME: 'eth%d' is not"),
        ({"ifname": "\x01"}, r"CNI_IFNAME: '\x01' is not"),
        ({"ifname": "lo"}, "CNI_IFNAME: lo is the loopback interface of every namespace"),
        ({"containerid": ""}, "CNI_CONTAINERID: '' is not the id of a container"),
        ({"containerid": "a\nb"}, r"CNI_CONTAINERID: 'a\nb' is not"),
        ({"containerid": "a" * 201}, "CNI_CONTAINERID: 'aaa"),
        ({"args": "IP"}, "CNI_ARGS: 'IP' is not KEY=VALUE"),
        ({"netns": ""}, "CNI_NETNS: ADD needs the path of a network namespace"),
        ({"netns": "/dev/null"}, "CNI_NETNS: /dev/null is no network namespace"),
        ({"netns": "/tmp"}, "CNI_NETNS: /tmp is no network namespace"),
    ],
)
def test_an_environment_that_cannot_be(alpha: Side, container: Container, given: dict[str, str], words: str) -> None:
    code, message = alpha.add(container, **given).error
    assert (code, message.startswith(words)) == (4, True), message
    assert alpha.attached() == {}


def test_what_a_path_leads_to(alpha: Side, container: Container, tmp_path: Path) -> None:
    pipe, plain, link, loop = (tmp_path / name for name in ("pipe", "plain", "link", "loop"))
    os.mkfifo(pipe)
    plain.touch()  # as an unmounted namespace leaves it
    loop.symlink_to(loop)
    assert alpha.call("ADD", netns=str(pipe)).error == (4, f"CNI_NETNS: {pipe} is no network namespace")
    assert alpha.call("CHECK", netns=str(pipe)).error[0] == 4
    assert alpha.call("ADD", netns=str(loop)).error == (4, f"CNI_NETNS: {loop}: Too many levels of symbolic links")
    for gone in (str(plain), "/proc/self/ns/mnt"):
        code, words = alpha.call("ADD", netns=gone).error
        assert (code, words.endswith("it is no network namespace")) == (3, True), words
    link.symlink_to(container.namespace)
    added = alpha.call("ADD", netns=str(link))
    assert added.told["interfaces"][1]["sandbox"] == str(link)
    for nothing in (pipe, plain, loop, tmp_path / "nothing"):
        assert alpha.call("DEL", netns=str(nothing), containerid="other") == (0, "")
    assert alpha.call("DEL", netns=str(link)) == (0, "")
    assert alpha.attached() == {}


def test_a_result_that_is_told_back(alpha: Side, container: Container) -> None:
    result = alpha.add(container).told

    def check(previous: Any) -> Ended:
        return alpha.call("CHECK", {"prevResult": previous}, **where(container))

    older = {**result, "cniVersion": "0.4.0", "ips": [{"version": "4", **result["ips"][0]}]}
    assert check(older) == (0, "")
    assert check({"cniVersion": "1.1.0"}) == (0, "")
    assert check({**result, "ips": [{**result["ips"][0], "interface": 99}]}) == (0, "")
    assert check({**result, "ips": "10.200.1.2"}).error == (7, "prevResult.ips: Expected `array | null`, got `str`")
    assert check(None).error == (7, "prevResult: CHECK needs the result of the ADD")
    assert alpha.call("DEL", {"prevResult": 7}, containerid=f"c{container.pid}") == (0, "")


def test_addresses_that_cannot_be_had(alpha: Side, container: Container, lab: Lab) -> None:
    taken = address(alpha.add(container))

    def ask(*ips: str) -> tuple[int, str]:
        with lab.container() as other:
            return alpha.add(other, {"runtimeConfig": {"ips": list(ips)}}).error

    assert ask(f"{taken}/24") == (
        101,
        f"ip: {taken} is held by netns:c{container.pid}/eth0: ask for another one, or for none",
    )
    for outside in ("10.200.2.7/24", "192.0.2.1", "10.200.1.1", "10.200.1.255"):
        code, words = ask(outside)
        assert (code, outside.partition("/")[0] in words) == (101, True), words
    assert ask("10.200.1.70", "10.200.1.71")[0] == 7
    assert set(alpha.attached()) == {f"netns:c{container.pid}/eth0"}
    alpha.delete(container)


def test_a_host_that_has_a_link_of_that_name(alpha: Side, container: Container) -> None:
    host = alpha.add(container).told["interfaces"][0]["name"]
    alpha.delete(container)
    alpha.member.node.run(["ip", "link", "add", host, "type", "bridge"])
    code, words = alpha.add(container).error
    assert code == 100
    assert words.startswith(f"create veth {host}: File exists")
    assert "the host has a link of that name without our mark: delete or rename it" in words
    assert alpha.attached() == {}
    alpha.member.node.run(["ip", "link", "delete", host])
    assert alpha.add(container).exit == 0
    alpha.delete(container)


# --- Shims that come to no end ---


def test_shims_that_say_nothing_keep_nobody_waiting(alpha: Side, container: Container) -> None:
    silent = []
    for number in range(100):
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(str(alpha.path))
        silent[-1].send(b"\xff\0\0\0{"[: number % 6])
    ended = alpha.add(container)
    assert address(ended)
    for each in silent:
        each.close()
    assert alpha.delete(container) == (0, "")


def test_a_socket_that_is_not_the_daemons(alpha: Side, container: Container, tmp_path: Path) -> None:
    """Replaced by a file, or by a program that is none of ours."""
    elsewhere = tmp_path / "cni.sock"
    elsewhere.touch()
    waiting = start(variables("ADD", elsewhere, **where(container)), SLICE)
    assert call("STATUS", elsewhere).error == (50, f"overlayd is not running ({elsewhere}): Connection refused")
    assert finish(waiting).error == (11, f"overlayd is not running ({elsewhere}): Connection refused")
    long = tmp_path / ("x" * 120)
    assert call("ADD", long, **where(container)).error == (11, f"overlayd is not running ({long}): File name too long")
    assert call("STATUS", long).error[0] == 50


@pytest.fixture
def small(lab: Lab) -> Iterator[Side]:
    """A node whose data directory is a file system of 256 KiB."""
    side = Side(lab, 2, "small")
    disk = side.member.node.data_dir
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", disk], check=True)
    try:
        yield side
        side.member.node.close()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_deletes_are_done_when_the_disk_takes_them(small: Side, lab: Lab) -> None:
    """Left while no daemon ran, refused by a full disk at the start, and done as soon as there is room."""
    node, aside = small.member.node, {"default_route": False}
    small.member.start()
    small.member.set_up({"enabled": False})
    with lab.container() as container, lab.container() as other:
        ids = [f"f{number}" for number in range(40)]
        for id in ids:
            assert small.add(container, aside, containerid=id, ifname=id).exit == 0
        node.kill()
        left = [start(variables("DEL", small.path, containerid=id, ifname=id), SLICE) for id in ids]
        assert [finish(each) for each in left] == [(0, "")] * len(ids)
        filler = node.data_dir / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        small.member.start()
        assert f"{len(ids)} DELs were left while no daemon ran" in node.log.read_text()
        assert set(small.attached()) == {f"netns:{id}/{id}" for id in ids}  # refused together
        more = [f"g{number}" for number in range(40)]  # a few of which fit into the last page
        refused = next(end for id in more if (end := small.add(other, aside, containerid=id, ifname=id)).exit)
        code, words = refused.error
        assert (code, "No space left on device" in words) == (11, True), words
        filler.unlink()
        for id in more:
            assert small.delete(other, containerid=id, ifname=id) == (0, "")
        id = ids[0]
        again = small.add(container, aside, containerid=id, ifname=id)  # the runtime has it anew, and no DEL after that
        assert again.exit == 0, again.stdout
        until(lambda: set(small.attached()) == {f"netns:{id}/{id}"}, node.log_tail)
        until(lambda: list(small.path.with_name("cni-del").iterdir()) == [], "DELs are left")
        assert small.delete(container, containerid=id, ifname=id) == (0, "")
