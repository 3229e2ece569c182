"""Bridges come and go: orphans are pruned, ephemeral ones leave with their last container, renamed ones stay."""

import json
import signal
import subprocess
import sys

import pytest
from lab import Lab, Ping, Refused, ping
from lab.cluster import CLUSTER, PORT, Member, Pair
from lab.frames import request_frame
from lab.patience import until
from lab.processes import environment, stop

# Opens the tap `tap-vm`, as a virtual machine does (linux/if_tun.h: TUNSETIFF, IFF_TAP).
MACHINE = """
import fcntl, struct, time
with open("/dev/net/tun", "rb+", buffering=0) as tap:
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap-vm", 2))
    print("runs", flush=True)
    time.sleep(60)
"""


def links(member: Member) -> set[str]:
    return {link["ifname"] for link in json.loads(member.node.run(["ip", "-j", "link"]))}


def prune(member: Member, *live: str) -> list[str]:
    return list(member.request("prune_orphan_bridges", live_bridge_names=list(live))["reclaimed"])


def add_bridge(member: Member, name: str, *ports: str) -> None:
    """A bridge that the daemon has no record of, with veths on it."""
    member.node.run(["ip", "link", "add", name, "type", "bridge"])
    for port in ports:
        member.node.run(["ip", "link", "add", port, "master", name, "type", "veth", "peer", f"{port}p"])


def test_bridges_that_are_neither_listed_nor_lived_on_go_with_their_subnets(member: Member, lab: Lab) -> None:
    keep, lose = member.set_up_service("keep"), member.set_up_service("lose")
    kept, other = lab.container(), lab.container()
    member.attach(kept, "keep")
    address = member.attach(other, "lose", join_global=True)
    member.detach(other)
    member.request("allocate_ip", service="lose", join_global=False)
    add_bridge(member, "zl-foreign-b", "veth-foreign")
    add_bridge(member, "br-other", "veth-other")

    assert prune(member, keep, "zl-unknown-b") == sorted([lose, "zl-foreign-b"])

    left = links(member)
    assert {keep, "br-other", "veth-other"} <= left
    assert not {lose, "zl-foreign-b", "veth-foreign", "veth-foreignp", f"veth-{other.pid}-s"} & left
    assert member.request("status")["service_count"] == 1
    with pytest.raises(Refused, match="lose is not set up"):
        member.attach(other, "lose")
    assert prune(member, keep) == []
    assert "pruned zl-foreign-b: it is not among the live bridges" in member.node.log_tail()
    member.set_up_service("lose")
    assert member.attach(other, "lose") == address, "the subnet and its first address are free again"
    ping(kept, address)
    for container in (kept, other):
        member.detach(container)
    assert sorted(prune(member)) == sorted([keep, lose])
    assert member.request("status")["service_count"] == 0
    for name in ("br-other", "veth-other"):
        member.node.run(["ip", "link", "delete", name])


@pytest.mark.parametrize("restarted", [False, True], ids=["alone", "restarted"])
def test_a_bridge_with_a_living_member_survives(member: Member, lab: Lab, restarted: bool) -> None:
    """And no packet of it is lost: an orchestrator prunes every few minutes, and lists only what it has stored."""
    job = member.set_up_service("job")
    idle = member.set_up_service("idle")
    container, fellow = lab.container(), lab.container()
    member.attach(container, "job", ephemeral=True)
    address = member.attach(fellow, "job", ephemeral=True, isolation_network="")
    before = member.node.footprint()
    running = Ping(container, address)
    try:
        running.wait_for(5)
        if restarted:
            member.node.kill()
            member.start()
        assert prune(member) == [idle]
        assert prune(member, "zl-unknown-b") == []
        running.wait_for(10)
    finally:
        assert running.stop() == []
    after = member.node.footprint()
    assert {link[1] for link in before["links"]} - {link[1] for link in after["links"]} == {idle}  # type: ignore[attr-defined]
    assert member.attach(container, "job", ephemeral=True), "it is still the same service"
    fellow.kill()
    assert prune(member) == [], "one of two lives"
    member.detach(container)
    until(lambda: job not in links(member))


def test_a_bridge_goes_at_the_next_prune_after_its_last_member_has_died(member: Member, lab: Lab) -> None:
    bridge = member.set_up_service("dies")
    container = lab.container()
    member.attach(container, "dies")
    stop(member.node.daemon.pid)  # it does not hear of the death before the prune  # type: ignore[union-attr]
    member.connection.send(request_frame(1, "prune_orphan_bridges", live_bridge_names=[]))
    container.kill()
    member.node.daemon.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
    assert member.connection.receive()["response"]["reclaimed"] == [bridge]
    assert f"veth-{container.pid}-s" not in links(member)


def test_a_member_that_came_under_an_older_name_of_the_bridge_keeps_it(member: Member, lab: Lab) -> None:
    old = member.set_up_service("elder")
    container = lab.container()
    address = member.attach(container, "elder")
    try:
        member.set_up_overlay(instance_id="another")
        assert prune(member) == [], "before the service is set up again"
        new = member.set_up_service("elder")
        assert new != old
        assert prune(member) == []
        member.node.run(["ip", "link", "show", old])
        ping(member.node, address)
        # As where the kernel cannot rename a running link: the old name stays, the new one is beside it.
        member.node.run(["ip", "link", "property", "del", "dev", new, "altname", old])
        member.node.run(["ip", "link", "set", "dev", new, "name", old])
        assert prune(member) == []
        ping(member.node, address)
    finally:
        member.set_up_overlay()
    member.detach(container)
    assert len(prune(member)) == 1
    assert not {old, new} & links(member)


def test_a_bridge_that_nobody_has_a_record_of_is_kept_by_who_lives_behind_it(member: Member, lab: Lab) -> None:
    """As another daemon left it, or an older state: a process lives in the namespace of the veth's other end."""
    container, gone = lab.container(), lab.container()
    add_bridge(member, "zl-theirs-b", "veth-theirs")
    add_bridge(member, "zl-empty-b", "veth-empty")
    member.node.run(["ip", "link", "set", "veth-theirsp", "netns", str(container.pid)])
    member.node.run(["ip", "link", "set", "veth-emptyp", "netns", str(gone.pid)])
    with gone.namespace.open():  # keeps the namespace, as runtimes do by a mount
        gone.kill()
        assert {"veth-theirs", "veth-empty"} <= links(member)
        assert prune(member) == ["zl-empty-b"], "a namespace without a process is no living container"
    assert {"zl-theirs-b", "veth-theirs"} <= links(member)
    container.kill()
    until(lambda: "veth-theirs" not in links(member))
    assert prune(member) == ["zl-theirs-b"]


def test_a_bridge_is_known_by_its_mark_while_its_name_is_gone(member: Member) -> None:
    """A guest has no port on it, so nothing but the record says who lives there; and its name may be listed."""
    bridge = member.set_up_service("marked")
    member.node.run(["ip", "link", "add", "spare", "type", "veth", "peer", "sparep"])
    guest = {"platform": "guest_managed", "id": "vm"}
    member.request("attach_container", handle=guest, service="marked", join_global=False)
    assert member.node.daemon is not None
    stop(member.node.daemon.pid)  # it would give the bridge its name back at once
    member.node.run(["ip", "link", "set", bridge, "name", "zl-astray-b"])
    member.node.run(["ip", "link", "property", "add", "dev", "spare", "altname", bridge])  # taken
    member.node.daemon.send_signal(signal.SIGCONT)
    assert prune(member, "zl-unknown-b") == []
    member.request("detach_container", handle=guest)
    assert prune(member, bridge) == []
    member.node.run(["ip", "link", "del", "spare"])
    until(lambda: bridge in links(member))
    assert prune(member) == [bridge]


def test_the_tap_of_a_running_machine_keeps_a_bridge(member: Member) -> None:
    bridge = member.set_up_service("emulated")
    member.node.run(["ip", "tuntap", "add", "dev", "tap-vm", "mode", "tap"])
    member.node.run(["ip", "link", "set", "tap-vm", "master", bridge, "up"])
    machine = subprocess.Popen(
        member.node.command([sys.executable, "-c", MACHINE]),
        stdout=subprocess.PIPE,
        env=environment(member.node.prefix),
    )
    assert machine.stdout is not None
    with machine.stdout as said:
        assert said.readline() == b"runs\n"
    assert prune(member) == []
    machine.kill()
    machine.wait()
    assert prune(member) == [bridge], "nobody has it open"
    member.node.run(["ip", "link", "del", "tap-vm"])


def test_guests_and_containers_of_the_hosts_network_are_members_too(member: Member) -> None:
    bridge = member.set_up_service("machines")
    guest = {"platform": "guest_managed", "id": "vm"}
    shared = {"platform": "host_shared", "id": "exporter"}
    for handle in (guest, shared):
        member.request("attach_container", handle=handle, service="machines", join_global=False)
        assert prune(member) == []
        member.request("detach_container", handle=handle)
    assert prune(member) == [bridge]


def test_any_name_of_a_bridge_spares_it(member: Member) -> None:
    bridge = member.set_up_service("named")
    member.node.run(["ip", "link", "property", "add", "dev", bridge, "altname", "zl-also-b"])
    assert prune(member, "zl-also-b") == []
    assert prune(member, bridge) == []
    add_bridge(member, "something")
    member.node.run(["ip", "link", "property", "add", "dev", "something", "altname", "zl-some-b"])
    assert prune(member, bridge) == ["zl-some-b"]
    assert prune(member) == [bridge]


def test_what_is_set_up_right_after_a_prune_is_there_and_what_was_set_up_right_before_is_not(member: Member) -> None:
    """In one go, as an orchestrator that starts may send it."""
    setup = request_frame(2, "setup_service_overlay", service="after", mode="auto")
    orphan = member.set_up_service("after")
    member.connection.send(request_frame(1, "prune_orphan_bridges", live_bridge_names=[]) + setup)
    answers = [member.connection.receive() for _ in range(2)]
    assert [answer["id"] for answer in answers] == [1, 2], "the prune, which came first, is done first"
    assert answers[0]["response"] == {"result": "pruned_bridges", "reclaimed": [orphan]}
    assert (answers[1]["response"]["result"], answers[1]["response"]["name"]) == ("bridge_name", orphan)
    assert orphan in links(member)
    member.connection.send(setup + request_frame(4, "prune_orphan_bridges", live_bridge_names=[]))
    assert [member.connection.receive()["response"]["result"] for _ in range(2)] == ["bridge_name", "pruned_bridges"]
    assert orphan not in links(member)


def test_an_ephemeral_bridge_goes_with_its_last_container(member: Member, lab: Lab) -> None:
    bare = member.node.footprint()
    bridge = member.set_up_service("brief")
    first, second = lab.container(), lab.container()
    for container in (first, second):
        member.attach(container, "brief", ephemeral=True)
    member.detach(first)
    assert bridge in links(member)
    member.detach(second)
    assert bridge not in links(member)
    assert member.node.footprint() == bare
    with pytest.raises(Refused, match="brief is not set up"):
        member.attach(first, "brief", ephemeral=True)

    member.set_up_service("brief")
    member.attach(first, "brief", ephemeral=True)
    member.attach(second, "brief")
    member.detach(second)
    member.detach(first)
    assert bridge in links(member), "an attach that was not ephemeral keeps it"
    member.request("teardown_service_overlay", service="brief")


def test_an_ephemeral_bridge_that_addresses_kept_goes_with_the_last_of_them(member: Member, lab: Lab) -> None:
    bare = member.node.footprint()
    member.set_up_service("brief")
    container = lab.container()
    member.attach(container, "brief", ephemeral=True)
    first, second = (member.request("allocate_ip", service="brief", join_global=False)["ip"] for _ in range(2))
    member.connection.send(  # in one go: what may be given up is known only when the detach is done
        request_frame(1, "release_ip", ip=first)
        + request_frame(2, "detach_container", handle=container.handle)
        + request_frame(3, "release_ip", ip=second)
    )
    assert {member.connection.receive()["response"]["result"] for _ in range(3)} == {"ok"}
    assert member.node.footprint() == bare

    bridge = member.set_up_service("brief")
    member.request("release_ip", ip=member.request("allocate_ip", service="brief", join_global=False)["ip"])
    assert bridge in links(member), "nobody has been there yet"
    member.request("teardown_service_overlay", service="brief")


def test_the_last_ephemeral_container_may_die(member: Member, lab: Lab) -> None:
    bridge = member.set_up_service("dying")
    container = lab.container()
    member.attach(container, "dying", ephemeral=True)
    container.kill()
    member.request("status")
    until(lambda: bridge not in links(member), "the bridge outlives its only container")


def test_join_global_gives_an_interface_of_the_whole_overlay(pair: Pair) -> None:
    container = pair.lab.container()
    container.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter"])
    try:
        address = pair.alpha.attach(container, "web", join_global=True)
        (leg,) = json.loads(container.run(["ip", "-j", "-4", "address", "show", "eth1"]))
        global_address = leg["addr_info"][0]["local"]
        assert (leg["addr_info"][0]["prefixlen"], leg["mtu"]) == (32, mtu_of(pair.web, "eth0"))
        assert global_address.startswith("10.200.1.")
        (route,) = json.loads(container.run(["ip", "-j", "route", "show", CLUSTER]))
        assert route["dev"] == "eth1"
        for target in (global_address, address):
            ping(pair.beta.node, target)
            ping(pair.db, target)
            ping(pair.web, target)
        ping(container, pair.db_address)
        ping(container, "198.51.100.1")
        with pytest.raises(Refused, match="with join_global"):
            pair.alpha.attach(container, "web")
    finally:
        pair.alpha.detach(container)
    assert "eth1" not in container.run(["ip", "-br", "link"])


def mtu_of(place: object, interface: str) -> int:
    shown = place.run(["ip", "-j", "link", "show", interface])  # type: ignore[attr-defined]
    return int(json.loads(shown)[0]["mtu"])


def test_a_new_instance_renames_everything_under_traffic(pair: Pair) -> None:
    alpha = pair.alpha
    vault = alpha.request("setup_service_overlay", service="vault", mode="dedicated")
    ping(pair.web, pair.db_address)
    before = alpha.request("status")
    running = Ping(pair.web, pair.db_address)
    beside_it = Ping(alpha.node, str(pair.beta.node.address))
    try:
        running.wait_for(30)
        interface = alpha.request(
            "setup_global_overlay",
            deployment="lab",
            instance_id="another",
            cluster_cidr=CLUSTER,
            slice_cidr=alpha.slice,
            wg_port=PORT,
        )["name"]
        running.wait_for(30)
        bridge = alpha.set_up_service("web")
        renamed = alpha.request("setup_service_overlay", service="vault", mode="dedicated")
        running.wait_for(30)
    finally:
        lost, lost_beside = running.stop(), beside_it.stop()
    assert len(lost) <= len(lost_beside), f"echoes {lost} lost while renaming"
    assert interface != before["interface"] and bridge != pair.bridges[0]
    assert renamed == vault | {"name": renamed["name"]} and renamed["name"] != vault["name"]
    after = alpha.request("status")
    device = after["dedicated_services"][0]["interface"]
    assert device != before["dedicated_services"][0]["interface"]
    for name, key in ((interface, alpha.public_key), (device, vault["wg_public_key"])):
        assert f"public key: {key}" in alpha.node.run(["wg", "show", name])
    for name in (bridge, *pair.bridges[:1], renamed["name"], vault["name"], interface, before["interface"]):
        alpha.node.run(["ip", "link", "show", name])
    kernel = alpha.node.footprint()
    alpha.node.kill()
    alpha.start()
    assert alpha.node.footprint() == kernel
    assert prune(alpha, pair.bridges[0], renamed["name"]) == [], "either name spares a bridge"
    alpha.request("teardown_service_overlay", service="vault")
    ping(pair.web, pair.db_address)
