"""What a set-up of the overlay decides and refuses, and what a teardown leaves."""

from ipaddress import ip_address, ip_network

import pytest
from decisions import FACTS, KEYS, OWN, attach, change, new_state, ready, serve, set_up

from overlayd.errors import RequestError
from overlayd.model import ipam, overlay, peers
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import GLOBAL, Bridge, DevicePeer, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Host, Service

# A terminal acts on these or does not show them: NUL, escape, line feed, DEL, C1, marks of direction, a surrogate.
UNSHOWN = ["a\0b", "\x1b[2J", "n\nl", "\x7f", "\x9b1m", "\u202eabc", "\u200f", "\u2066", "\ud800"]


def test_a_slice_that_would_orphan_an_address_is_refused_by_name():
    state = ready(slice=None)
    address, _ = change(state, lambda draft: ipam.allocate_ip(draft, ""))
    with pytest.raises(RequestError, match=str(address)):
        set_up(state, slice=ip_network("10.200.99.0/24"))
    change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))
    set_up(state, slice=ip_network("10.200.99.0/24"))
    assert state.node_address == ip_address("10.200.99.1")


def test_a_slice_outside_the_cluster_is_refused():
    with pytest.raises(RequestError, match="not inside"):
        set_up(new_state(), slice=ip_network("10.9.0.0/24"))


def test_a_new_instance_renames_and_keeps_everything_else():
    state = ready()
    attach(state, 7)
    before = layout(state, FACTS)
    set_up(state, instance_id="2")
    steps = plan(before, layout(state, FACTS))
    assert {type(step.want).__name__ for step in steps} == {"Device", "Bridge"}
    assert all(step.have and step.want for step in steps)


def test_a_new_instance_that_makes_a_link_name_that_linux_refuses_is_refused():
    """The name was hashed before, and has room now."""
    state = set_up_with_names(name="x y", instance_id="a-long-one")
    with pytest.raises(RequestError, match="service 'x y' makes the link name 'zl-d-2-x y-b'"):
        set_up(state, deployment="d", instance_id="2")


def set_up_with_names(name, instance_id):
    state = new_state()
    set_up(state, instance_id=instance_id)
    serve(state, name)
    return state


def test_a_port_of_nobody_and_a_cluster_of_everybody_are_refused():
    with pytest.raises(RequestError, match="0 is no port"):
        set_up(ready(), port=0)
    for everything in ("0.0.0.0/0", "::/0"):
        with pytest.raises(RequestError, match="all of this host's traffic"):
            set_up(new_state(), cluster=ip_network(everything), slice=None)


def test_teardown_keeps_peers_and_addresses_but_no_device():
    state = ready()
    attach(state, 7)
    change(state, overlay.teardown_global)
    assert state.overlay is None
    assert {type(thing) for thing in layout(state, FACTS).values()} >= {Bridge, Veth}
    assert state.get(Attachment, "pid:7") is not None
    set_up(state)
    assert state.overlay is not None


def test_without_a_backend_there_are_no_devices():
    state = ready()
    change(
        state,
        lambda draft: peers.add_peer(
            draft, GLOBAL, KEYS[0], own_key=OWN, endpoint="", keepalive=0, allowed_ips=(), candidates=()
        ),
    )
    kinds = {type(thing) for thing in layout(state, Facts(mtu=1420, devices=False)).values()}
    assert DevicePeer not in kinds and Bridge in kinds


@pytest.mark.parametrize("text", UNSHOWN)
@pytest.mark.parametrize("deployment", ["d", "production-of-everything"])
def test_a_name_that_cannot_be_shown_is_refused(text, deployment):
    state = new_state()
    for values in ({"deployment": text}, {"instance_id": text}):
        with pytest.raises(RequestError, match=f"request.{next(iter(values))}: .* cannot be shown"):
            set_up(state, **values)
    set_up(state, deployment=deployment)
    with pytest.raises(RequestError, match=r"request.service: .* cannot be shown"):
        serve(state, text)


def test_a_cluster_without_room_and_a_port_of_a_dedicated_service_are_refused():
    with pytest.raises(RequestError, match="too small for an overlay"):
        set_up(new_state(), cluster=ip_network("10.200.0.0/31"), slice=None)
    for text in ("0.0.0.0/1", "127.0.0.0/16", "224.0.0.0/8", "::/3", "fe80::/64", "ff00::/16"):
        with pytest.raises(RequestError, match=r"has addresses (of|that each) .*: choose another range"):
            set_up(new_state(), cluster=ip_network(text), slice=None)
    state = ready()
    port = serve(state, "own", dedicated_key=OWN).wg_port
    with pytest.raises(RequestError, match=f"wg_port {port} is that of the dedicated service own: tear it down first"):
        set_up(state, port=port)


def test_a_new_range_that_leaves_a_service_outside_or_takes_its_addresses_is_refused_by_name():
    state = ready()
    web = state.get(Service, "web").subnet
    with pytest.raises(RequestError, match=rf"{web} \(service web\)"):
        set_up(state, cluster=ip_network("10.201.0.0/16"), slice=None)
    with pytest.raises(RequestError, match=rf"{web} \(service web, would hold the node address {web[1]}\)"):
        set_up(state, slice=web)
    assert layout(state, FACTS) == layout(ready(), FACTS)


def test_a_cluster_that_holds_a_peers_endpoint_is_refused():
    state = ready()
    options = {"own_key": OWN, "keepalive": 0, "allowed_ips": (), "candidates": ()}
    change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], endpoint="10.201.0.9:51820", **options))
    with pytest.raises(RequestError, match=r"holds 10\.201\.0\.9:51820, the endpoint of a peer"):
        set_up(state, cluster=ip_network("10.200.0.0/15"))


def test_the_node_says_who_it_is_and_what_the_host_was():
    state = new_state()
    change(state, lambda draft: overlay.set_node_id(draft, 7))
    change(state, lambda draft: overlay.announce_key(draft, KEYS[0]))
    assert (state.node.node_id, state.node.announced_key, state.node.private_key) == (7, KEYS[0], b"k" * 32)
    for boot, closed, kept in (("a", [4], (4,)), ("a", [], (4,)), ("b", [6], (6,))):
        change(state, lambda draft, boot=boot, closed=closed: overlay.note_host(draft, boot, closed, []))
        assert state.get(Host).closed == kept, "the first look of a boot counts"
