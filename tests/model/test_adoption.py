"""The rows that a layout implies: of what a state wants of the kernel, a state that wants the same."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from decisions import FACTS, KEYS, OWN, attach, change, ready, serve
from msgspec import structs

from overlayd.errors import StateError
from overlayd.model import labels, peers
from overlayd.model.adoption import Adoption, adopt
from overlayd.model.layout import Layout, layout
from overlayd.model.objects import GLOBAL, Device, Fence, Veth
from overlayd.model.rows import Attachment, Host, Isolation, Lease, Node, Overlay, Service
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
