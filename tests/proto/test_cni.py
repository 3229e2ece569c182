"""CNI's calls, errors and results: by version, byte for byte."""

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd import errors
from overlayd.errors import ProtocolError
from overlayd.proto import cni
from overlayd.proto.cni import CniError, Environment, Interface, Made


@pytest.mark.parametrize(
    ("clients", "shims", "queue"),
    [
        ("/run/overlayd/overlayd.sock", "/run/overlayd/cni.sock", "/run/overlayd/cni-del"),
        ("/srv/a.sock", "/srv/a.cni", "/srv/a.cni-del"),
        ("b.sock", "b.cni", "b.cni-del"),
        ("/srv/socket", "/srv/cni.sock", "/srv/cni-del"),
    ],
)
def test_where_shims_and_a_daemon_meet(clients: str, shims: str, queue: str) -> None:
    assert cni.socket_beside(clients) == shims
    assert cni.queue_of(shims) == queue


GOLDEN = Path(__file__).parents[1] / "golden" / "cni"
ID = "b2f7c1d09e"


def made(address: str = "10.200.3.7/24", gateway: str = "10.200.3.1") -> Made:
    everywhere = "::/0" if ":" in address else "0.0.0.0/0"
    return Made(
        host=Interface("zl-c0123456789", "9a:11:22:33:44:55", 1420),
        container=Interface("eth0", "02:00:0a:c8:03:07", 1420, "/var/run/netns/cni-1"),
        address=address,
        gateway=gateway,
        routes=(ip_network(everywhere), ip_network("10.200.0.0/16")),
        dns={"nameservers": [gateway], "domain": "overlay.local"},
    )


def environment(command: str = "ADD", **given: str) -> Environment:
    return Environment(**{"command": command, "container_id": ID, "netns": "/run/netns/x", "ifname": "eth0"} | given)


def refusal(call: Any, *arguments: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        call(*arguments)
    return caught.value


@pytest.mark.parametrize("version", cni.VERSIONS)
def test_a_result_in_the_form_of_each_version(version: str) -> None:
    answer = cni.result(made(), version)
    assert answer.exit == 0
    assert answer.stdout + "\n" == (GOLDEN / f"result-{version}.json").read_text()


def test_a_result_of_ipv6_says_so_where_the_version_does() -> None:
    assert json.loads(cni.result(made("fd00::7/64", "fd00::1"), "0.4.0").stdout)["ips"][0]["version"] == "6"


def test_an_error_in_the_form_of_the_specification() -> None:
    error = CniError(cni.NO_ADDRESS, "service pods has no address left", "remove containers")
    assert cni.failure(error, "0.4.0").stdout + "\n" == (GOLDEN / "error.json").read_text()
    assert json.loads(cni.failure(CniError(cni.TRY_AGAIN, "starting"), "7").stdout) == {
        "cniVersion": cni.NEWEST,
        "code": 11,
        "msg": "starting",
    }


def test_a_frame_of_the_shim() -> None:
    body = json.dumps({"cni": {"command": "ADD", "ifname": "eth0"}, "config": '{"name":"x"}'}).encode()
    call = cni.decode(body)
    assert call.cni == Environment(command="ADD", ifname="eth0")
    assert call.config == '{"name":"x"}'
    assert cni.encode(cni.Answer(1, '{"a":"b"}')) == b'{"exit":1,"stdout":"{\\"a\\":\\"b\\"}"}'


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"cni":{},"config":1}', b'{"cni":{"ifname":3},"config":""}', b"[" * 100_000, b"\xff"]
)
def test_what_no_shim_sends(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a call of the CNI shim"):
        cni.decode(body)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"command": "MIX"}, "CNI_COMMAND: 'MIX' is none of ADD, DEL, CHECK, STATUS, GC"),
        ({"container_id": ""}, "CNI_CONTAINERID: '' is not the id of a container"),
        ({"container_id": "../x"}, "CNI_CONTAINERID: '../x' is not"),
        ({"container_id": "a\n"}, r"CNI_CONTAINERID: 'a\n' is not"),
        ({"container_id": "a" * 201}, "CNI_CONTAINERID: "),
        ({"ifname": ""}, "CNI_IFNAME: '' is not the name of an interface"),
        ({"ifname": "a" * 16}, "CNI_IFNAME: "),
        ({"ifname": "é" * 8}, "CNI_IFNAME: "),
        ({"ifname": ".."}, "CNI_IFNAME: '..'"),
        ({"ifname": "lo"}, "CNI_IFNAME: lo is the loopback interface"),
        ({"ifname": "eth%d"}, "CNI_IFNAME: 'eth%d'"),
        ({"ifname": "\x01"}, r"CNI_IFNAME: '\x01'"),
        ({"ifname": "eth/0"}, "CNI_IFNAME: 'eth/0'"),
        ({"ifname": "eth 0"}, "CNI_IFNAME: 'eth 0'"),
        ({"ifname": "eth:0"}, "CNI_IFNAME: 'eth:0'"),
        ({"netns": ""}, "CNI_NETNS: ADD needs the path of a network namespace"),
        ({"netns": "", "command": "CHECK"}, "CNI_NETNS: CHECK needs"),
    ],
)
def test_an_environment_that_cannot_be(given: dict[str, str], message: str) -> None:
    error = refusal(cni.require_call, environment(**given), "1.1.0")
    assert error.code == 4
    assert error.message.startswith(message)


def test_an_environment_that_can_be() -> None:
    cni.require_call(environment(container_id="a" * 200, ifname="a" * 15), "0.3.0")
    cni.require_call(environment("DEL", netns=""), "")
    cni.require_call(environment("DEL", ifname="lo"), "")  # what was refused is not there, and so is deleted
    cni.require_call(environment("STATUS", container_id="", ifname="", netns=""), "1.1.0")


@pytest.mark.parametrize(("command", "version"), [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "0.4.0")])
def test_a_command_that_the_version_does_not_have(command: str, version: str) -> None:
    error = refusal(cni.require_call, environment(command), version)
    assert (error.code, error.message) == (
        1,
        f"cniVersion {version} does not have {command}: it is there since {cni.SINCE[command]}",
    )


def test_arguments() -> None:
    assert cni.arguments("") == {}
    assert cni.arguments("IP=10.0.0.1;;K8S_POD_NAME=a=b;IP=10.0.0.2;E=") == {
        "IP": "10.0.0.2",
        "K8S_POD_NAME": "a=b",
        "E": "",
    }
    for wrong in ("IP", "=x"):
        error = refusal(cni.arguments, wrong)
        assert (error.code, error.message) == (4, f"CNI_ARGS: {wrong!r} is not KEY=VALUE")


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists, max_leaves=30))
def test_what_is_quoted_is_short(value: Any) -> None:
    assert len(cni.quoted(value)) <= 10 * errors.LONGEST_QUOTED + 6


@given(st.text())
def test_an_interface_name_is_one_that_the_kernel_takes(name: str) -> None:
    """dev_valid_name() of net/core/dev.c."""
    try:
        cni.require_ifname(name, "")
    except CniError:
        return
    raw = name.encode()
    assert 0 < len(raw) < 16
    assert name not in (".", "..")
    assert not set(raw) & set(b"/: \t\n\v\f\r\0")
