"""Services over the socket: their modes, what is told of their subnets, and those that an earlier version left."""

import json
import shutil
from ipaddress import ip_network
from pathlib import Path

import pytest
from lab import CommandFailed, Lab, Refused, ping
from lab.cluster import CLUSTER6, Member

from overlayd.proto import log

JOURNALS = Path(__file__).parent.parent / "golden" / "journals"


def listed(member: Member) -> dict[str, dict[str, str]]:
    """The services in the status, by name."""
    return {each["service"]: each for each in member.request("status").get("services", [])}


def unisolated(member: Member) -> list[str]:
    findings = member.request("doctor")["findings"]
    return [finding["object"] for finding in findings if finding.get("code") == "not-isolated"]


@pytest.mark.parametrize("cluster", ["", CLUSTER6], ids=["ipv4", "ipv6"])
def test_every_answer_tells_the_same_subnet(member: Member, lab: Lab, cluster: str) -> None:
    if cluster:
        member = Member(lab, 6, "six", cluster)
        member.start()
        member.set_up()
    made = member.request("setup_service_overlay", service="told", mode="shared")
    container = lab.container()
    attached = member.request("attach_container", handle=container.handle, service="told", join_global=False)
    subnet = ip_network(made["subnet"])
    known = {"subnet": str(subnet), "gateway": str(subnet[1]), "prefix_len": subnet.prefixlen}
    assert made == {"result": "bridge_name", "name": made["name"], **known}
    assert attached == {"result": "attached", "ip": str(subnet[2]), **known}
    assert member.request("attach_container", handle=container.handle, service="told", join_global=False) == attached
    told = {
        "service": "told",
        "mode": "shared",
        "bridge": made["name"],
        "subnet": str(subnet),
        "gateway": str(subnet[1]),
    }
    assert listed(member)["told"] == told
    (leg,) = json.loads(container.run(["ip", "-j", "address", "show", "dev", "eth0"]))
    assert {"local": attached["ip"], "prefixlen": subnet.prefixlen}.items() <= leg["addr_info"][0].items()
    assert str(subnet) in member.node.overlayctl("status")

    host = {"platform": "host_shared", "id": "exporter"}
    answer = member.request("attach_container", handle=host, service="told", join_global=False)
    assert answer.keys() == {"result", "ip"}, "it is in no service's subnet"
    member.request("detach_container", handle=host)
    member.request("teardown_service_overlay", service="told")
    assert "told" not in listed(member)


def test_an_isolated_service(member: Member, lab: Lab) -> None:
    made = member.request("setup_service_overlay", service="apart", mode="isolated")
    assert member.request("setup_service_overlay", service="apart", mode="isolated") == made
    red, fellow, blue, stray = (lab.container() for _ in range(4))
    address = member.attach(red, "apart", isolation_network="red")
    other = member.attach(fellow, "apart", isolation_network="red")
    third = member.attach(blue, "apart", isolation_network="blue")
    ping(red, other)
    for target in (address, other):
        with pytest.raises(CommandFailed):
            blue.run(["ping", "-c", "1", "-W", "0.3", target])
    ping(red, made["gateway"])
    assert not unisolated(member)

    member.attach(stray, "apart")
    told = f"pid:{stray.pid} joins the isolated service apart without an isolation_network: not isolated"
    assert told in member.node.log_tail()
    assert unisolated(member) == [f"pid:{stray.pid}"]
    with pytest.raises(CommandFailed):
        stray.run(["ping", "-c", "1", "-W", "0.3", third])

    member.node.kill()
    member.start()
    assert listed(member)["apart"]["mode"] == "isolated"
    with pytest.raises(Refused, match="service apart is set up as isolated: tear it down first to change its mode"):
        member.request("setup_service_overlay", service="apart", mode="dedicated")
    before = member.node.footprint()
    assert member.request("setup_service_overlay", service="apart", mode="auto") == made
    assert listed(member)["apart"]["mode"] == "shared"
    assert member.node.footprint() == before
    assert not unisolated(member), "a shared one may have members without a network"
    ping(red, other)
    member.request("teardown_service_overlay", service="apart")
    made = member.request("setup_service_overlay", service="apart", mode="dedicated")
    with pytest.raises(Refused, match="set up as dedicated"):
        member.request("setup_service_overlay", service="apart", mode="isolated")
    member.request("teardown_service_overlay", service="apart")


def test_services_of_28_that_an_earlier_version_left_stay_and_serve(lab: Lab) -> None:
    """The journal was written by the version that gave a service a /28: web, the dedicated vault, and one whose subnet
    was asked for; an address of web is held, another one was released, and a name is registered.
    """
    old, new = Member(lab, 1, "alpha28"), Member(lab, 2, "beta26")
    old.node.data_dir.mkdir()
    shutil.copy(JOURNALS / "services_of_28", old.node.data_dir / "journal")
    for member in (old, new):
        member.start()
    written = (JOURNALS / "services_of_28").read_bytes()
    rows = (old.node.data_dir / "journal").read_bytes()
    assert rows.startswith(written), "nothing is written anew"
    assert set(log.recover(rows).rows.keys() - log.recover(written).rows.keys()) <= {("host", "")}
    left = {"web": "10.200.74.16/28", "vault": "10.200.171.48/28", "fixed": "10.200.99.0/28"}
    assert {name: each["subnet"] for name, each in listed(old).items()} == left

    new.set_up()
    old.request("set_local_node_id", node_id=1)
    old.request(
        "setup_global_overlay",
        deployment="lab",
        instance_id="alpha",
        cluster_cidr=old.cluster,
        slice_cidr=old.slice,
        wg_port=51820,
    )
    old.public_key = old.request("status")["public_key"]
    old.introduce(new)
    new.introduce(old)
    made = old.request("setup_service_overlay", service="web", mode="auto")
    assert (made["subnet"], made["gateway"], made["prefix_len"]) == ("10.200.74.16/28", "10.200.74.17", 28)
    vault = old.request("setup_service_overlay", service="vault", mode="dedicated")
    assert (vault["subnet"], vault["wg_port"]) == ("10.200.171.48/28", 51821)
    crowd = [lab.container() for _ in range(12)]
    held = "10.200.74.19"
    addresses = [old.attach(container, "web") for container in crowd]
    assert {held, *addresses} == {f"10.200.74.{last}" for last in range(18, 31)}
    with pytest.raises(Refused, match=r"all of 10\.200\.74\.16/28 is taken, 13 held"):
        old.attach(lab.container(), "web")

    theirs = new.request("setup_service_overlay", service="web", mode="auto")
    assert ip_network(theirs["subnet"]).prefixlen == 26
    far = lab.container()
    address = new.attach(far, "web")
    new.request("add_allowed_ip", pubkey=old.public_key, cidr=made["subnet"])
    old.request("add_allowed_ip", pubkey=new.public_key, cidr=theirs["subnet"])
    ping(crowd[0], address)
    ping(far, addresses[-1])
    assert far.run(["dig", f"@{theirs['gateway']}", "+short", "-x", address]) == ""
    assert crowd[0].run(["dig", f"@{made['gateway']}", "+short", "web"]).split() == [held]
    fresh = ip_network(old.request("setup_service_overlay", service="fresh", mode="auto")["subnet"])
    assert fresh.prefixlen == 26 and not any(fresh.overlaps(ip_network(each)) for each in left.values())
    kernel = old.node.footprint()
    old.node.kill()
    old.start()
    assert old.node.footprint() == kernel
    old.request("teardown_service_overlay", service="web")
    assert old.request("setup_service_overlay", service="web", mode="auto")["prefix_len"] == 26
