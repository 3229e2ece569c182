"""Containers that are attached by their network namespace, one interface at a time."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import CommandFailed, Container, Lab, Node, Refused, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.frames import request_frame
from lab.patience import until


def links(place: Node | Container) -> dict[str, dict[str, Any]]:
    """The links of a node or container by name, with their addresses."""
    return {each["ifname"]: each for each in json.loads(place.run(["ip", "-j", "-d", "address"]))}


def attach(member: Member, handle: dict[str, object], service: str = "web", **keys: Any) -> dict[str, Any]:
    return member.request("attach_container", **{"handle": handle, "service": service, "join_global": False, **keys})


def held(member: Member) -> dict[str, str]:
    """Who holds which address."""
    return {each["ip"]: each["holder"] for each in member.request("list", what="addresses").get("addresses", [])}


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def both(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, request.param)


def test_what_is_answered_is_what_is_there(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    container = lab.container()
    answer = attach(alpha, container.interface("net0", "pod-1"))
    told = answer["interface"]
    inside, outside = links(container)["net0"], links(alpha.node)[told["host_name"]]
    assert told == {"name": "net0", "mac": inside["address"], "mtu": inside["mtu"], "host_name": told["host_name"]}
    assert outside["ifalias"] == 'overlayd netns ["","netns:pod-1/net0","net0"]'
    assert outside["ifname"].startswith("zl-c")
    assert len(outside["ifname"]) == 14
    address = next(each for each in inside["addr_info"] if each["local"] == answer["ip"])
    assert address["prefixlen"] == answer["prefix_len"]
    ping(container, both.db_address)
    ping(both.db, answer["ip"])
    assert attach(alpha, container.interface("net0", "pod-1")) == answer, "again is the same"
    (row,) = [each for each in alpha.request("list", what="containers")["containers"] if "pod-1" in each["handle"]]
    assert (row["handle"], row["link"], row["mac"]) == ("netns:pod-1/net0", told["host_name"], told["mac"])
    assert not alpha.findings()
    alpha.request("detach_container", handle=container.interface("net0", "pod-1"))
    assert "net0" not in links(container)
    assert answer["ip"] not in held(alpha)
    alpha.request("detach_container", handle=container.interface("net0", "pod-1"))


def test_a_container_that_dies_gives_everything_back(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    container = lab.container()
    handle = container.interface(id="dies")
    answer = attach(alpha, handle, join_global=True)
    second = next(each for each in links(container)["eth0-g"]["addr_info"] if each["scope"] == "global")["local"]
    assert {held(alpha)[answer["ip"]], held(alpha)[second]} == {"netns:dies/eth0"}
    ping(both.db, second)
    alpha.request("register_dns", name="mortal", ip=answer["ip"])
    container.kill()
    until(lambda: not {answer["ip"], second} & held(alpha).keys(), "the addresses are not given back")
    assert "mortal" not in alpha.node.overlayctl("dns", "list")
    until(lambda: f"netns:dies/eth0 died: {answer['ip']} is free again" in alpha.node.log_tail(), alpha.node.log_tail)
    assert "cannot be put right" not in alpha.node.log_tail()
    alpha.request("detach_container", handle=handle)
    assert not alpha.findings()


def test_one_that_died_while_nobody_looked(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    gone, stays = lab.container(), lab.container()
    answers = [attach(alpha, each.interface()) for each in (gone, stays)]
    alpha.node.kill()
    gone.kill()
    alpha.start()
    assert answers[0]["ip"] not in held(alpha)
    assert answers[1]["ip"] in held(alpha)
    ping(both.db, answers[1]["ip"])
    assert attach(alpha, stays.interface()) == answers[1]


def test_a_restart_keeps_what_lives_and_repairs_what_was_changed(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    first, second = lab.container(), lab.container()
    answers = [attach(alpha, each.interface()) for each in (first, second)]
    host_ends = [each["interface"]["host_name"] for each in answers]
    before = alpha.node.footprint()
    alpha.node.kill()
    alpha.start()
    assert alpha.node.footprint() == before
    alpha.node.kill()
    alpha.node.run(["ip", "link", "set", host_ends[0], "nomaster"])
    alpha.node.run(["ip", "link", "set", host_ends[0], "alias", "nobody's"])
    alpha.node.run(["ip", "link", "delete", host_ends[1]])
    alpha.start()
    for container, answer in zip((first, second), answers, strict=True):
        ping(container, both.db_address)
        assert attach(alpha, container.interface()) == answer
    assert links(alpha.node)[host_ends[0]]["ifalias"].startswith("overlayd ")
    assert not alpha.findings()


def test_a_link_that_somebody_deletes_is_made_again(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    answer = attach(alpha, container.interface())
    alpha.node.run(["ip", "link", "delete", answer["interface"]["host_name"]])
    until(lambda: "eth0" in links(container), "the link does not come back")
    until(lambda: not alpha.findings(), lambda: str(alpha.findings()))
    ping(container, both.db_address)
    assert attach(alpha, container.interface()) == answer


def test_one_out_of_sight_lives_by_its_link(both: Pair) -> None:
    """As in a daemon that has not the runtime's files: it cannot reach the namespace, and needs not."""
    lab, alpha = both.lab, both.alpha
    container = lab.container()
    with subprocess.Popen(container.command(["sleep", "infinity"])) as keeper:
        try:
            until(lambda: Path(f"/proc/{keeper.pid}/comm").read_text() == "sleep\n", "it has not begun")
            answer = attach(alpha, container.interface())
            container.kill()  # the path now leads nowhere, and the namespace lives on
            inside = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net", "--"]
            alpha.node.stop()
            alpha.start()
            assert held(alpha)[answer["ip"]] == f"netns:c{container.pid}/eth0"
            ping(both.db, answer["ip"])
            alpha.node.run(["ip", "link", "set", answer["interface"]["host_name"], "nomaster"])
            until(lambda: links(alpha.node)[answer["interface"]["host_name"]].get("master"), "it is not put back")
            ping(both.db, answer["ip"])
            until(lambda: not alpha.findings(), lambda: str(alpha.findings()))
            alpha.node.run(["ip", "link", "delete", answer["interface"]["host_name"]])
            until(lambda: answer["ip"] not in held(alpha), "what cannot be made again is not given up")
            assert "eth0" not in alpha.node.run([*inside, "ip", "-br", "link"])
        finally:
            keeper.kill()
    assert not alpha.findings()


def test_what_cannot_be_repaired_is_told(both: Pair) -> None:
    """The MTU of an interface follows the way out, and a namespace out of sight cannot be told of it."""
    lab, alpha = both.lab, both.alpha
    container = lab.container()
    with subprocess.Popen(container.command(["sleep", "infinity"])) as keeper:
        try:
            until(lambda: Path(f"/proc/{keeper.pid}/comm").read_text() == "sleep\n", "it has not begun")
            answer = attach(alpha, container.interface(id="hidden"))
            link = answer["interface"]["host_name"]
            container.kill()
            inside = ["nsenter", f"--net=/proc/{keeper.pid}/ns/net", "--"]
            alpha.node.run(["ip", "link", "set", "uplink", "mtu", "1400"])
            until(lambda: [each for each in alpha.findings() if each["object"] == link], "nobody tells")
            found = next(each for each in alpha.findings() if each["object"] == link)
            assert "has mtu" in found["problem"]
            path = str(container.namespace)
            assert path in found["remedy"], "why it cannot be put right"
            alpha.node.run([*inside, "ip", "link", "set", "eth0", "mtu", str(answer["interface"]["mtu"] - 100)])
            # Whoever attaches it again has the namespace, and so all is put right.
            handle = {**container.interface(id="hidden"), "path": f"/proc/{keeper.pid}/ns/net"}
            assert attach(alpha, handle)["ip"] == answer["ip"]
            until(lambda: not alpha.findings(), lambda: str(alpha.findings()))
        finally:
            keeper.kill()
            alpha.node.run(["ip", "link", "set", "uplink", "mtu", "1500"])
    until(lambda: alpha.request("status")["mtu"] == answer["interface"]["mtu"], "the MTU does not come back")
    until(lambda: answer["ip"] not in held(alpha), "the dead keep their address")


def test_a_lost_state_is_made_anew_with_the_namespaces(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    plain, own, joined = (lab.container() for _ in range(3))
    answers = [
        attach(alpha, plain.interface()),
        attach(alpha, own.interface("net1"), mac="06:00:00:00:07:01", default_route=False),
        attach(alpha, joined.interface(), join_global=True),
    ]
    before = alpha.node.footprint()
    alpha.node.kill()
    shutil.rmtree(alpha.node.data_dir)
    alpha.start("--adopt")
    assert alpha.node.footprint() == before
    log = alpha.node.log_tail(20)
    assert not [line for line in log.splitlines() if "not adopted" in line and "netns:" in line]
    alpha.set_up()
    assert attach(alpha, plain.interface()) == answers[0]
    assert attach(alpha, own.interface("net1"), mac="06:00:00:00:07:01", default_route=False) == answers[1]
    assert attach(alpha, joined.interface(), join_global=True) == answers[2]
    alpha.introduce(both.beta)
    ping(both.db, answers[0]["ip"])
    assert alpha.node.footprint() == before


def test_why_tells_of_its_interface(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    attach(alpha, container.interface("net0", "pod"))
    told = alpha.node.overlayctl("why", "netns:pod/net0", both.web_address)
    assert "net0 of netns:pod/net0" in told
    container.run(["ip", "link", "set", "net0", "down"])
    with pytest.raises(CommandFailed) as failed:
        alpha.node.overlayctl("why", "netns:pod/net0", both.web_address)
    assert f"nsenter --net={container.namespace} ip link set net0 up" in str(failed.value)


def test_teardown_removes_its_links(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    container.run(["ip", "link", "add", "own0", "type", "bridge"])
    container.run(["ip", "address", "add", "192.0.2.2/24", "dev", "own0"])
    container.run(["ip", "link", "set", "own0", "up"])
    container.run(["ip", "route", "add", "default", "via", "192.0.2.1"])
    own = container.run(["ip", "route"])
    answer = attach(alpha, container.interface("net0"))
    alpha.node.kill()
    code, said = alpha.node.try_daemon([*alpha.node.program, "--teardown"])
    assert code == 0, said
    assert answer["interface"]["host_name"] not in links(alpha.node)
    assert container.run(["ip", "route"]) == own
    alpha.start()
    until(lambda: "net0" in links(container), "the next daemon does not make it again")
    alpha.introduce(both.beta)


def test_several_interfaces_of_one_namespace(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    alpha.set_up_service("side")
    main = attach(alpha, container.interface("eth0"))
    side = attach(alpha, container.interface("net1"), "side", default_route=False)
    again = attach(alpha, container.interface("net2", "another"), "side", default_route=False)
    assert {"eth0", "net1", "net2"} <= links(container).keys()
    ping(container, both.db_address)
    ping(container, side["gateway"])
    version = "-6" if ":" in main["ip"] else "-4"
    routes = json.loads(container.run(["ip", version, "-j", "route"]))
    assert [each["dev"] for each in routes if each["dst"] == "default"] == ["eth0"]
    alpha.request("detach_container", handle=container.interface("net1"))
    assert {"eth0", "net2"} <= links(container).keys()
    assert "net1" not in links(container)
    assert held(alpha)[again["ip"]] == "netns:another/net2"
    alpha.node.kill()
    container.kill()
    alpha.start()
    assert not {main["ip"], again["ip"]} & held(alpha).keys()
    alpha.request("teardown_service_overlay", service="side")


def test_of_two_default_routes_the_first_one_counts(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    main = attach(alpha, container.interface("eth0"))
    attach(alpha, container.interface("net1"))
    version = "-6" if ":" in main["ip"] else "-4"
    routes = json.loads(container.run(["ip", version, "-j", "route", "show", "default"]))
    assert [each["dev"] for each in routes] == ["eth0"]
    before = alpha.node.footprint()
    alpha.node.kill()
    alpha.start()
    assert alpha.node.footprint() == before
    assert not alpha.findings()


def test_an_interface_without_the_default_route_is_reached_from_elsewhere_by_a_rule_inside(both: Pair) -> None:
    """As docs/cni.md has it; without the rule, answers would leave with a foreign address, and `why` says so."""
    container, alpha = both.lab.container(), both.alpha
    ip = ["ip", "-6" if ":" in both.web_address else "-4"]
    alpha.set_up_service("second")
    attach(alpha, container.interface("net0", "two"))
    second = attach(alpha, container.interface("net1", "two"), "second", default_route=False)
    alpha.announce(both.beta, second["ip"])
    code, told, _ = alpha.node.try_overlayctl("why", both.web_address, second["ip"])
    assert (code, "routes of netns:two/net1 lead net0, not through net1 back" in told) == (4, True), told
    container.run([*ip, "rule", "add", "from", second["ip"], "table", "77"])
    container.run([*ip, "route", "add", "default", "via", second["gateway"], "dev", "net1", "table", "77"])
    for place in (both.db, both.web):
        ping(place, second["ip"])
    for each in ("net0", "net1"):
        alpha.request("detach_container", handle=container.interface(each, "two"))


def test_the_same_id_in_another_namespace(both: Pair) -> None:
    lab, alpha = both.lab, both.alpha
    before, after = lab.container(), lab.container()
    attach(alpha, before.interface(id="pod"))
    with pytest.raises(Refused, match="in another network namespace that still lives: detach that one first"):
        attach(alpha, after.interface(id="pod"))
    before.kill()
    answer = attach(alpha, after.interface(id="pod"))  # at once: the kernel may not have removed the links yet
    ping(after, both.db_address)
    assert [ip for ip, holder in held(alpha).items() if holder == "netns:pod/eth0"] == [answer["ip"]]
    assert not alpha.findings()


def test_an_interface_that_the_container_renames(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    answer = attach(alpha, container.interface())
    container.run(["ip", "link", "set", "eth0", "name", "lan0"])
    alpha.node.kill()
    alpha.start()
    ping(both.db, answer["ip"])
    assert attach(alpha, container.interface()) == answer
    assert "eth0" not in links(container)
    alpha.request("detach_container", handle=container.interface())
    assert "lan0" not in links(container)


def refusal(member: Member, handle: dict[str, object], **keys: Any) -> tuple[str, str]:
    """The code of a refused attach, and its words."""
    with member.node.connect() as connection:
        asked = {"handle": handle, "service": "web", "join_global": False, **keys}
        connection.send(request_frame(1, "attach_container", **asked))
        answer = connection.receive()["response"]
    assert answer["result"] == "err", answer
    return answer["code"], answer["message"]


def test_refusals_tell_themselves_apart(both: Pair, tmp_path: Path) -> None:
    alpha, container = both.alpha, both.lab.container()
    container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    code, words = refusal(alpha, container.interface())
    assert (code, "already has an interface eth0" in words) == ("interface_exists", True), words
    answer = attach(alpha, container.interface("net0"))
    code, words = refusal(alpha, container.interface("net1"), ip=both.web_address)
    assert (code, f"held by pid:{both.web.pid}" in words) == ("address_unavailable", True), words
    code, words = refusal(alpha, container.interface("net1"), ip=answer["gateway"])
    assert code == "address_unavailable", words
    code, words = refusal(alpha, container.interface("net1"), ip="192.0.2.1")
    assert (code, "192.0.2.1" in words) == ("address_unavailable", True), words
    code, words = refusal(alpha, {**container.interface(), "path": "/proc/1/ns/nothing"})
    assert (code, "/proc/1/ns/nothing: No such file" in words) == ("namespace_gone", True), words
    (tmp_path / "file").touch()
    code, words = refusal(alpha, {**container.interface(), "path": str(tmp_path / "file")})
    assert (code, "no network namespace" in words) == ("namespace_gone", True), words
    code, words = refusal(alpha, {**container.interface(), "path": "/proc/thread-self/ns/net"})
    assert code == "own_namespace", words
    for bad in ({"ifname": "a/b"}, {"ifname": "sixteen-bytes-xx"}, {"ifname": "lo"}, {"path": "relative"}):
        code, words = refusal(alpha, {**container.interface(), **bad})
        assert code in ("invalid_value", "refused"), words
    for mac in ("01:00:00:00:00:01", "00:00:00:00:00:00", "02:6f:01:02:03:04", "fe:00:00:00:00:01", "02:00"):
        assert refusal(alpha, container.interface("net1"), mac=mac)[0] == "invalid_value"
    alpha.request("detach_container", handle=container.interface("net0"))
    assert not alpha.findings()


def test_an_address_and_a_mac_of_ones_own(both: Pair) -> None:
    alpha, container = both.alpha, both.lab.container()
    free = attach(alpha, container.interface("probe"))["ip"]
    alpha.request("detach_container", handle=container.interface("probe"))
    answer = attach(alpha, container.interface(), ip=free, mac="06:00:00:AB:cd:01", default_route=False)
    assert (answer["ip"], answer["interface"]["mac"]) == (free, "06:00:00:ab:cd:01")
    assert links(container)["eth0"]["address"] == "06:00:00:ab:cd:01"
    ping(container, both.web_address)
    assert not json.loads(container.run(["ip", "-j", "route", "show", "default"]) or "[]")
    assert refusal(alpha, container.interface("net1"), mac="02:00:00:ab:cd:01")[0] == "invalid_value"
    before = alpha.node.footprint()
    alpha.node.kill()
    alpha.start()
    assert alpha.node.footprint() == before
    assert not alpha.findings()
