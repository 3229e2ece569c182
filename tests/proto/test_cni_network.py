"""Network configurations of CNI: what they may hold, what counts of several sources, and how it is refused."""

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.proto import cni, cni_network
from overlayd.proto.cni import CniError, Environment
from overlayd.proto.cni_network import POD_ANNOTATIONS, Asked, Dns

BASE = {"cniVersion": "1.1.0", "name": "overlay", "type": "overlayd-cni"}


def asked(command: str = "ADD", cni_args: str = "", /, **keys: Any) -> Asked:
    environment = Environment(command=command, container_id="c1", netns="/run/netns/x", ifname="eth0", args=cni_args)
    return cni_network.parse(environment, json.dumps({**BASE, **keys}))


def refused(*arguments: Any, **keys: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        asked(*arguments, **keys)
    return caught.value


def test_what_counts_when_nothing_is_said() -> None:
    found = asked()
    assert (found.network, found.service, found.version) == ("overlay", "overlay", "1.1.0")
    assert found.subnet is None
    assert found.isolation == ""
    assert not found.join_global
    assert found.default_route
    assert found.addresses == ()
    assert found.names == ()
    assert found.dns is None
    assert found.valid is None


def test_all_that_can_be_said() -> None:
    found = asked(
        service="pods",
        subnet="10.200.3.0/24",
        isolation="blue",
        join_global=True,
        default_route=False,
        dns={"nameservers": ["10.0.0.53"], "search": ["a.b"]},
        capabilities={"ips": True},
        ipMasq=True,
        disableCheck=False,
        runtimeConfig={"ips": ["10.200.3.9/24"], "mac": "02:00:00:00:00:0A", "aliases": {"overlay": ["a", "b", "a"]}},
        args={"cni": {"ips": ["10.200.3.10"]}, "other": 1},
        **{"cni.dev/whatever": 1},
    )
    assert found.service == "pods"
    assert found.subnet == ip_network("10.200.3.0/24")
    assert found.isolation == "blue"
    assert found.join_global
    assert not found.default_route
    assert found.dns == Dns(nameservers=("10.0.0.53",), search=("a.b",))
    assert found.addresses == (ip_address("10.200.3.9"),)
    assert found.mac == "02:00:00:00:00:0a"
    assert found.names == ("a", "b")


def test_the_slice_is_a_subnet() -> None:
    assert asked(subnet="slice").subnet == cni_network.SLICE


def test_whose_address_and_mac_count() -> None:
    args = "IgnoreUnknown=1;IP=10.0.0.3,fd00::3;MAC=02-00-00-00-00-03"
    assert asked("ADD", args).addresses == (ip_address("10.0.0.3"), ip_address("fd00::3"))
    assert asked("ADD", args).mac == "02:00:00:00:00:03"
    both = {"args": {"cni": {"ips": ["10.0.0.2"]}}}
    assert asked("ADD", args, **both).addresses == (ip_address("10.0.0.2"),)
    assert asked("ADD", args, **both, runtimeConfig={"ips": ["10.0.0.1"], "mac": "02:00:00:00:00:01"}).addresses == (
        ip_address("10.0.0.1"),
    )
    assert asked("ADD", args, **both, runtimeConfig={"ips": []}).addresses == (ip_address("10.0.0.2"),)


def test_names_of_a_pod_and_of_podman() -> None:
    pod = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1"
    assert asked("ADD", pod).names == ("web-0.shop",)
    assert asked("ADD", "K8S_POD_NAME=web-0").names == ()
    assert asked(runtimeConfig={"aliases": {"other": ["x"], "overlay": None}}).names == ()


def test_isolation_by_a_pods_annotation() -> None:
    annotations = {POD_ANNOTATIONS: {"overlayd.io/isolation": "blue", "x": "y"}}
    assert asked(isolation="annotation", runtimeConfig=annotations).isolation == "blue"
    assert asked(isolation="annotation", runtimeConfig={}).isolation == ""
    assert asked(isolation="none", runtimeConfig=annotations).isolation == ""


def test_dns_of_the_runtime_is_told_beside_ours() -> None:
    runtime = {"dns": {"servers": ["10.0.0.1"], "searches": ["s"], "options": ["ndots:5"]}}
    found = asked(runtimeConfig=runtime)
    assert found.dns == Dns(nameservers=("10.0.0.1",))
    assert (found.searches, found.options) == (("s",), ("ndots:5",))
    assert asked(dns={}, runtimeConfig=runtime).dns == Dns()


@pytest.mark.parametrize(
    ("code", "message", "keys"),
    [
        (1, "cniVersion '0.2.0' is none that overlayd-cni speaks", {"cniVersion": "0.2.0"}),
        (1, "cniVersion '2.0.0' is none", {"cniVersion": "2.0.0"}),
        (2, 'ipam: {"type":"host-local"}: overlayd allocates by itself', {"ipam": {"type": "host-local"}}),
        (2, "'bridge': 'cni0': overlayd-cni does not know this key", {"bridge": "cni0"}),
        (2, "'mtu': 1400: overlayd-cni", {"mtu": 1400}),
        (7, "name: '' is not the name of a network", {"name": ""}),
        (7, "name: '../x' is not", {"name": "../x"}),
        (7, "service: Expected `str | null`, got `int`", {"service": 7}),
        (7, "join_global: Expected `bool`", {"join_global": "yes"}),
        (7, "runtimeConfig.ips[0]: Expected `str`", {"runtimeConfig": {"ips": [1]}}),
        (7, "prevResult: overlayd-cni makes the interface: put it first", {"prevResult": {"ips": []}}),
        (7, "runtimeConfig.portMappings: overlayd-cni maps no ports", {"runtimeConfig": {"portMappings": [{}]}}),
        (7, "subnet: '10.0.0.1/24': 10.0.0.1/24 has host bits set", {"subnet": "10.0.0.1/24"}),
        (7, "subnet: 'x': ", {"subnet": "x"}),
        (7, "args.cni.ips: 'x' is not an IP address", {"args": {"cni": {"ips": ["x"]}}}),
        (7, "args.cni.ips: '10.0.0.1/x' is not", {"args": {"cni": {"ips": ["10.0.0.1/x"]}}}),
        (7, "args.cni.ips: 'fe80::1%eth0' is not", {"args": {"cni": {"ips": ["fe80::1%eth0"]}}}),
        (7, "runtimeConfig.ips: 10.0.0.1, 10.0.0.2: one", {"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}}),
        (7, "runtimeConfig.mac: '01:00:00:00:00:00' is not", {"runtimeConfig": {"mac": "01:00:00:00:00:00"}}),
        (7, "runtimeConfig.mac: '00:00:00:00:00:00' is not", {"runtimeConfig": {"mac": "00:00:00:00:00:00"}}),
        (7, "runtimeConfig.mac: '02:00' is not", {"runtimeConfig": {"mac": "02:00"}}),
    ],
)
def test_a_configuration_that_cannot_be(code: int, message: str, keys: dict[str, Any]) -> None:
    error = refused(**keys)
    assert error.code == code
    assert error.message.startswith(message)


def test_an_empty_ipam_is_none() -> None:
    assert asked(ipam={}).service == "overlay"


@pytest.mark.parametrize("config", ["", "{", "[]", "7", "[" * 100_000, '{"a":' * 100_000, '"\\ud800"'])
def test_what_is_no_configuration(config: str) -> None:
    with pytest.raises(CniError) as caught:
        cni_network.parse(Environment(command="ADD"), config)
    assert caught.value.code == 6
    assert cni_network.version_of(config) == ""


def test_the_version_of_an_answer() -> None:
    assert cni_network.version_of('{"cniVersion":"0.4.0","mtu":1}') == "0.4.0"
    assert cni_network.version_of('{"cniVersion":4}') == ""
    assert refused(cniVersion=None).code == 7  # null is no version


def test_a_check_needs_the_result_of_the_add() -> None:
    assert refused("CHECK").message == "prevResult: CHECK needs the result of the ADD"
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "zl-c1", "mac": "x"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.0.0.7/24", "interface": 1, "gateway": "10.0.0.1"}, {"address": "10.9.0.1/24"}],
        "dns": {},
    }
    found = asked("CHECK", prevResult=previous).previous
    assert found is not None
    assert found.interfaces is not None
    assert found.ips is not None
    assert [each.name for each in found.interfaces] == ["zl-c1", "eth0"]
    assert [each.interface for each in found.ips] == [1, None]


@pytest.mark.parametrize(
    ("routes", "leads"),
    [
        (None, True),
        ([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}], True),
        ([{"dst": "10.9.0.0/16"}, {"dst": "::/0"}], True),
        ([{"dst": "10.9.0.0/16"}], False),
        ([], False),
    ],
)
def test_whether_an_earlier_result_leads_outside(routes: Any, leads: bool) -> None:
    previous = asked("CHECK", prevResult={"cniVersion": "1.1.0", "routes": routes}).previous
    assert previous is not None
    assert previous.leads_outside == leads


def test_who_is_valid() -> None:
    listed = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]
    both = frozenset({("a", "eth0"), ("b", "net1")})
    assert asked("GC").valid is None  # nobody said anything: only the dead go
    assert asked("GC", **{"cni.dev/valid-attachments": listed}).valid == both
    assert asked("GC", **{"cni.dev/attachments": listed}).valid == both
    assert asked("GC", **{"cni.dev/valid-attachments": [], "cni.dev/attachments": listed}).valid == frozenset()
    assert asked("GC", **{"cni.dev/valid-attachments": None}).valid == frozenset()
    assert asked("STATUS", **{"cni.dev/valid-attachments": listed}).valid is None


@pytest.mark.parametrize(
    ("code", "listed"),
    [
        (7, "a"),
        (7, [{"containerID": "a"}]),
        (7, [{"containerID": 1, "ifname": "eth0"}]),
        (4, [{"containerID": "", "ifname": "eth0"}]),
        (4, [{"containerID": "a", "ifname": ""}]),
    ],
)
def test_a_list_of_the_valid_that_cannot_be_read_removes_nobody(code: int, listed: Any) -> None:
    assert refused("GC", **{"cni.dev/valid-attachments": listed}).code == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ["service", "subnet", "isolation", "join_global", "default_route", "dns", "args", "runtimeConfig", "prevResult"]


@given(
    st.sampled_from(cni.COMMANDS),
    st.text(max_size=40),
    st.dictionaries(st.sampled_from([*KEYS, "cniVersion", "name", "cni.dev/valid-attachments"]), JSON),
)
def test_any_value_of_any_key_is_taken_or_refused(command: str, args: str, keys: dict[str, Any]) -> None:
    try:
        found = asked(command, args, **keys)
    except CniError as error:
        assert error.code in (1, 2, 4, 6, 7)
        assert json.loads(cni.failure(error, "1.0.0").stdout)["msg"] == error.message
    else:
        assert found.version in cni.VERSIONS
        assert found.service
