"""What a container had before, and what it makes of its own end, is its own affair: routes, names, settings."""

import json
import re
import signal
from collections.abc import Iterator

import pytest
from lab import Lab, Ping, Refused
from lab.cluster import CLUSTER, Member
from lab.container import Container


def give_a_network(container: Container, link: str) -> None:
    """A link of the container's own, with a router, and the container's default route through it."""
    container.run(
        ["sh", "-c", f"ip link set lo up; ip link add {link} type veth peer name peer0; ip link set peer0 up;"
         f"ip addr add 192.0.2.2/24 dev {link}; ip link set {link} up; ip route add default via 192.0.2.1"]
    )  # fmt: skip


def routes(container: Container) -> list[dict[str, object]]:
    """The IPv4 routes through links that are there: a link that is deleted is on its way out for some milliseconds."""
    shown = json.loads(container.run(["ip", "-4", "-j", "route", "show", "table", "all"]))
    return [route for route in shown if re.fullmatch("if[0-9]+", str(route["dev"])) is None]


@pytest.fixture
def serving() -> Iterator[Member]:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        member.set_up_service("web")
        yield member


@pytest.mark.parametrize("ending", ["detach", "restart and detach", "kill, restart and detach", "teardown", "services"])
def test_a_detach_gives_the_default_route_back(serving: Member, ending: str) -> None:
    container = serving.lab.container()
    give_a_network(container, "net1")
    container.run(["ip", "route", "add", CLUSTER, "via", "192.0.2.1"])
    before = routes(container)
    serving.attach(container, "web", join_global=True)
    assert "default via 192.0.2.1" not in container.run(["ip", "route"])
    if "restart" in ending or ending == "teardown":
        _ = serving.node.kill() if "kill" in ending else serving.node.stop()
    if ending == "teardown":
        code, said = serving.node.try_daemon(serving.node.daemon_argv("--teardown"))
        assert code == 0, said
    elif ending == "services":
        serving.request("teardown_service_overlay", service="web")
    else:
        if "restart" in ending:
            serving.start()
        serving.detach(container)
    assert routes(container) == before


def test_a_refused_attach_leaves_the_default_route(serving: Member) -> None:
    container = serving.lab.container()
    give_a_network(container, "eth1")
    before = routes(container)
    with pytest.raises(Refused, match="already has an interface eth1"):
        serving.attach(container, "web", join_global=True)
    assert routes(container) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_renamed_interface_survives_a_restart_under_traffic(serving: Member, number: signal.Signals) -> None:
    one, other = serving.lab.container(), serving.lab.container()
    serving.attach(one, "web", join_global=True)
    target = serving.attach(other, "web")
    gateway = json.loads(one.run(["ip", "-j", "route", "show", "default"]))[0]["gateway"]
    for old, new in (("eth0", "lan0"), ("eth1", "wan0")):
        one.run(["sh", "-c", f"ip link set {old} down; ip link set {old} name {new}; ip link set {new} up"])
    one.run(["ip", "route", "add", "default", "via", gateway])
    shown = one.run(["ip", "-br", "address"])
    running = Ping(one, target, 0.02)
    try:
        running.wait_for(10)
        _ = serving.node.stop() if number == signal.SIGTERM else serving.node.kill()
        serving.start()
        running.wait_for(50)
    finally:
        lost = running.stop()
    assert lost == []
    assert one.run(["ip", "-br", "address"]) == shown
    assert serving.node.overlayctl("doctor").startswith("all is as it should be\n")
    serving.detach(one)
    assert [line.split()[0] for line in one.run(["ip", "-br", "link"]).splitlines()] == ["lo"]


def test_the_routes_of_the_old_cluster_go_when_it_is_renumbered(serving: Member) -> None:
    container = serving.lab.container()
    serving.attach(container, "web", join_global=True)
    wider = "10.200.0.0/15"
    for cluster, restarted in ((wider, False), (CLUSTER, True)):
        serving.request(
            "setup_global_overlay",
            deployment="lab",
            instance_id="alpha",
            cluster_cidr=cluster,
            slice_cidr=serving.slice,
            wg_port=51820,
        )
        if restarted:
            serving.node.kill()
            serving.start()
        ours = json.loads(container.run(["ip", "-j", "route", "show", "proto", "111"]))
        assert {route["dst"] for route in ours} == {"default", cluster, f"{serving.slice.rpartition('.')[0]}.1"}
