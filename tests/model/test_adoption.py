"""The rows that a layout implies: of what a state wants of the kernel, a state that wants the same."""

from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from decisions import FACTS, KEYS, OWN, attach, change, enter, ready, serve
from msgspec import structs

from overlayd.errors import StateError
from overlayd.model import attachments, edges, labels, peers
from overlayd.model.adoption import Adoption, adopt
from overlayd.model.attachments import AttachSpec
from overlayd.model.layout import Layout, layout
from overlayd.model.objects import GLOBAL, Bridge, Device, DevicePeer, Fence, Netns, Veth
from overlayd.model.rows import Attachment, Edge, Host, Isolation, Lease, Node, Overlay, Service
from overlayd.model.state import State

SIX = {"cluster": ip_network("fd00:200::/48"), "slice": ip_network("fd00:200:0:7::/64")}


def peer(state: State, key: bytes, *allowed: str, scope: str = GLOBAL) -> None:
    keys: Any = {"own_key": OWN, "endpoint": "192.0.2.1:51820", "keepalive": 25, "candidates": ()}
    networks = tuple(map(ip_network, allowed))
    change(state, lambda draft: peers.add_peer(draft, scope, key, allowed_ips=networks, **keys))


def busy(**options: Any) -> State:
    state = ready(**options)
    serve(state, "own", dedicated_key=b"d" * 32)
    far = "fd00:200:0:9::/64" if options else "10.200.9.0/24"
    peer(state, KEYS[0], far)
    peer(state, KEYS[1], "172.20.0.0/16", scope="own")
    attach(state, 71)
    attach(state, 72, join_global=True)
    attach(state, 73, "own")
    return state


def adopted(found: Layout) -> tuple[State, Adoption]:
    adoption = adopt(found, "boot", b"n" * 32)
    return State(adoption.rows), adoption


@pytest.mark.parametrize("options", [{}, SIX], ids=["IPv4", "IPv6"])
def test_the_state_wants_what_is_there(options: dict[str, Any]) -> None:
    state = busy(**options)
    change(state, lambda draft: draft.put(Host(boot_id="boot", closed=(6,), bridged=(4, 6))))
    found = layout(state, FACTS)
    anew, adoption = adopted(found)
    assert layout(anew, FACTS) == found
    assert anew.get(Host) == state.get(Host)
    assert anew.table(Lease) == state.table(Lease)
    overlay = state.get(Overlay)
    assert overlay is not None and anew.get(Overlay) == structs.replace(overlay, nat={"enabled": False})
    assert anew.node == state.node
    assert [line for line in adoption.lost if "NAT" not in line and "allocate_ip" not in line] == []


@pytest.mark.parametrize("options", [{}, SIX], ids=["IPv4", "IPv6"])
def test_interfaces_and_the_service_of_the_slice(options: dict[str, Any]) -> None:
    state = ready(**options)
    overlay = state.get(Overlay)
    assert overlay is not None
    serve(state, "pods", subnet=overlay.slice)
    enter(state, "a")
    enter(state, "b", join_global=True, network="blue")
    enter(state, "c", "net1", mac=b"\x06\0\0\0\0\1", default_route=False)
    enter(state, "d", service="pods", join_global=True, cookie=2)
    attach(state, 71, "pods")
    attach(state, 72, join_global=True)
    found = layout(state, FACTS)
    anew, adoption = adopted(found)
    assert layout(anew, FACTS) == found
    assert anew.table(Attachment).keys() == state.table(Attachment).keys()
    assert {row.handle: row.network for row in anew.table(Attachment).values() if row.network} == {
        "netns:b/eth0": "blue"
    }
    assert anew.table(Lease) == state.table(Lease)
    assert anew.get(Overlay) == structs.replace(overlay, nat={"enabled": False}, slice_service="pods")
    assert [line for line in adoption.lost if "NAT" not in line and "allocate_ip" not in line] == []


def test_an_interface_out_of_sight_is_kept_by_what_its_link_says() -> None:
    state = ready()
    before = enter(state, "a", join_global=True)
    found = {
        key: replace(it, netns=Netns(0, 0, 0), mac=b"", routes=frozenset()) if isinstance(it, Veth) else it
        for key, it in layout(state, FACTS).items()
    }
    anew, adoption = adopted(found)
    kept = anew.get(Attachment, "netns:a/eth0")
    assert kept is not None
    assert (kept.address, kept.global_address) == (before.address, before.global_address)
    assert not [line for line in adoption.lost if "a/eth0" in line]
    assert enter(anew, "a", join_global=True, cookie=7).file != kept.file, "who attaches it again says where it is"
    mute = {key: replace(it, label="") if isinstance(it, Veth) else it for key, it in found.items()}
    assert any("its container has ended" in line for line in adopted(mute)[1].lost)


def test_isolated_containers_stay_apart() -> None:
    state = ready()
    attach(state, 71, isolation_network="red")
    attach(state, 72, isolation_network="blue")
    attach(state, 73, isolation_network="red")
    found = layout(state, FACTS)
    anew, adoption = adopted(found)
    assert layout(anew, FACTS) == found
    assert sum("isolation network" in line for line in adoption.lost) == 3
    # The attach that is repeated tells the name; whoever is told another one than before gets another number.
    attach(anew, 71, isolation_network="red")
    attach(anew, 73, isolation_network="red")
    attach(anew, 72, isolation_network="blue")
    assert layout(anew, FACTS) == found
    assert anew.table(Isolation) == state.table(Isolation)


def test_networks_that_are_named_otherwise_than_they_were_are_parted() -> None:
    state = ready()
    attach(state, 71, isolation_network="red")
    attach(state, 72, isolation_network="red")
    anew, _ = adopted(layout(state, FACTS))
    attach(anew, 71, isolation_network="red")
    attach(anew, 72, isolation_network="green")
    assert len({row.number for row in anew.table(Isolation).values()}) == len(anew.table(Isolation)) == 2


def test_a_device_that_says_nothing_of_the_overlay() -> None:
    """As an older version made it: the slice is the widest that the node's address is the first of, and no peer's."""
    state = busy()
    found = {key: replace(it, label="") if isinstance(it, Device) else it for key, it in layout(state, FACTS).items()}
    anew, adoption = adopted(found)
    assert anew.node_address == state.node_address
    overlay = anew.get(Overlay)
    assert overlay is not None and overlay.slice is not None
    assert not overlay.slice.overlaps(ip_network("10.200.9.0/24"))
    assert sum("slice" in line for line in adoption.lost) == 1


def test_without_the_global_device() -> None:
    state = busy()
    peer(state, KEYS[2], "10.0.0.0/9")  # a fence that is wider than the cluster's
    found = {key: it for key, it in layout(state, FACTS).items() if getattr(it, "scope", "own") != GLOBAL}
    anew, adoption = adopted(found)
    overlay = anew.get(Overlay)
    assert overlay is not None and (overlay.cluster, overlay.up) == (ip_network("10.200.0.0/16"), False)
    assert anew.node_address == state.node_address
    assert anew.table(Attachment).keys() == state.table(Attachment).keys()
    assert anew.get(Node) == Node(private_key=b"n" * 32)
    assert sum("key" in line for line in adoption.lost) == 1


def test_a_container_whose_end_is_gone_is_told() -> None:
    state = busy()
    found = {
        key: replace(it, mac=b"") if isinstance(it, Veth) and it.name == "veth-71-s" else it
        for key, it in layout(state, FACTS).items()
    }
    anew, adoption = adopted(found)
    assert anew.table(Attachment).keys() == {"pid:72", "pid:73"}
    assert sum("veth-71-s" in line for line in adoption.lost) == 1


def test_what_a_container_has_made_of_its_interface_does_not_matter() -> None:
    state = busy()
    found = layout(state, FACTS)
    changed = {
        key: replace(it, address=type(it.address)("0.0.0.0/0")) if isinstance(it, Veth) else it
        for key, it in found.items()
    }
    assert layout(adopted(changed)[0], FACTS) == found


def test_what_cannot_be_adopted() -> None:
    found = layout(busy(), FACTS)
    silent = {key: replace(it, private_key=b"") if isinstance(it, Device) else it for key, it in found.items()}
    with pytest.raises(StateError, match="does not tell its key"):
        adopted(silent)
    bare = {key: it for key, it in found.items() if not isinstance(it, Device | Fence)}
    with pytest.raises(StateError, match="neither a device nor an unreachable route"):
        adopted(bare)
    assert adopted({})[1].rows == []


def test_a_label_says_who_set_the_overlay_up() -> None:
    state = busy()
    overlay = state.get(Overlay)
    assert overlay is not None
    said = labels.parse(labels.label(overlay, 7))
    assert said == (overlay.deployment, overlay.instance_id, overlay.slice, 7)
    long = Overlay(deployment="d" * 238, instance_id="i" * 238, interface="", cluster=overlay.cluster, wg_port=1)
    assert labels.label(long, 7) == ""
    for text in ("", "[]", "[1,2,3,4]", '["a","b","c",1]', "{}", "nonsense"):
        assert labels.parse(text) is None
    assert adopted(layout(state, FACTS))[0].table(Service).keys() == {"web", "own"}


def test_containers_of_the_host_and_peers_that_come_again_by_themselves() -> None:
    """What no object names gets a name, or is left to whoever attaches or mints it again, and both are told."""
    state = busy()
    shared = AttachSpec(service="web")
    host, _ = change(state, lambda draft: attachments.attach_host(draft, shared, "h"))
    guest, _ = change(state, lambda draft: attachments.attach_guest(draft, shared, "vm", b"p" * 32, KEYS[3]))
    change(state, lambda draft: edges.mint(draft, "phone", public_key=KEYS[4], now=0, ttl=9, allowed=(), services=()))
    anew, adoption = adopted(layout(state, FACTS))
    assert anew.get(Attachment, f"host:adopted-{host.address}") is not None
    assert {KEYS[0], KEYS[3], KEYS[4]} & anew.peers(GLOBAL).keys() == {KEYS[0]}
    (edge,) = state.table(Edge).values()
    lost = "\n".join(adoption.lost)
    for address in (guest.address, edge.address):
        assert f"{address}/32: attach or mint it again" in lost
    assert f"host_shared container with {host.address}" in lost
    assert str(adoption) == "2 services, 4 containers, 2 peers"
    # Whoever comes again may have any address, but none that somebody has.
    again, _ = change(anew, lambda draft: attachments.attach_guest(draft, shared, "vm", b"p" * 32, KEYS[3]))
    assert again.address not in {row.address for row in anew.table(Attachment).values() if row != again}


def test_a_bridge_outside_the_cluster_and_a_device_without_its_bridge_are_told_and_left() -> None:
    state = busy()
    own = state.get(Service, "own")
    assert own is not None
    found = layout(state, FACTS)
    strange = Bridge(service="far", name="br", address=ip_interface("172.20.0.1/24"), mtu=1420)
    found = {key: it for key, it in found.items() if not (isinstance(it, Bridge) and it.service == "own")}
    anew, adoption = adopted({**found, strange.key: strange})
    assert anew.table(Service).keys() == {"web"}
    assert not anew.peers("own")
    lost = "\n".join(adoption.lost)
    assert "service far: br has no address of the cluster 10.200.0.0/16" in lost
    assert f"service own: {own.device} is without its bridge" in lost


def test_the_slice_is_guessed_beside_what_peers_have() -> None:
    """A node without a slice has the cluster's first address; where all around the address is a peer's, it is alone."""
    state = busy(slice=None)
    found = {key: replace(it, label="") if isinstance(it, Device) else it for key, it in layout(state, FACTS).items()}
    overlay = adopted(found)[0].get(Overlay)
    assert overlay is not None and overlay.slice is None
    state = busy()
    around = frozenset({ip_network(f"{state.node_address}/30", strict=False)})
    for key, it in layout(state, FACTS).items():
        found[key] = replace(it, label="") if isinstance(it, Device) else it
        if isinstance(it, DevicePeer) and it.scope == GLOBAL:
            found[key] = replace(it, allowed_ips=around)
    overlay = adopted(found)[0].get(Overlay)
    assert overlay is not None and overlay.slice == ip_network(f"{state.node_address}/32")
