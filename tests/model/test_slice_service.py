"""The service whose subnet is the node's slice."""

from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from decisions import CLUSTER, FACTS, KEYS, SLICE, attach, change, dump, enter, new_state, ready, serve, set_up

from overlayd.errors import Exhausted, RequestError
from overlayd.model import attachments, edges, ipam, services
from overlayd.model.attachments import AttachSpec
from overlayd.model.layout import layout
from overlayd.model.objects import GLOBAL, Bridge, Device, Proxy, Route, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Lease, Overlay
from overlayd.model.state import State

SIX: dict[str, Any] = {"cluster": ip_network("fd00:200::/48"), "slice": ip_network("fd00:200:0:7::/64")}


def things(state: State, kind: type[Any]) -> list[Any]:
    return [thing for thing in layout(state, FACTS).values() if isinstance(thing, kind)]


@pytest.mark.parametrize("options", [{}, SIX], ids=["IPv4", "IPv6"])
def test_the_bridge_has_the_nodes_address_and_the_device_has_it_alone(options: dict[str, Any]) -> None:
    state = ready(**options)
    overlay = state.get(Overlay)
    assert overlay is not None and overlay.slice is not None
    before = layout(state, FACTS)
    service = serve(state, "pods", subnet=overlay.slice)
    assert service.lasting
    node = overlay.slice[1]
    (bridge,) = (each for each in things(state, Bridge) if each.service == "pods")
    assert bridge.address == ip_interface(f"{node}/{overlay.slice.prefixlen}")
    (device,) = things(state, Device)
    assert device.addresses == {ip_interface(node)}
    (route,) = things(state, Route)
    assert (route.destination, route.source) == (overlay.cluster, node)
    first, second = attach(state, 71, "pods"), enter(state, "a", service="pods", join_global=True)
    assert [first.address, second.address] == [overlay.slice[2], overlay.slice[3]]
    assert {lease.pool for lease in state.table(Lease).values()} == {GLOBAL}
    assert second.global_address is None
    (veth,) = (each for each in things(state, Veth) if each.interface == "eth0" and each.label)
    assert overlay.cluster in veth.routes
    change(state, lambda draft: services.teardown_service(draft, "pods"))
    assert layout(state, FACTS) == before
    assert not [lease for lease in state.table(Lease).values() if lease.holder]


def test_the_node_is_never_without_its_address_and_its_way() -> None:
    """While the device changes the prefix, the bridge has the address, and after it the route goes."""
    state = ready()
    before = layout(state, FACTS)
    serve(state, "pods", subnet=SLICE)
    after = layout(state, FACTS)
    for have, want in ((before, after), (after, before)):
        kinds = [type(step.want or step.have) for step in plan(have, want)]
        bridge, device, route = kinds.index(Bridge), kinds.index(Device), kinds.index(Route)
        assert (bridge < device) == (want is after)
        assert device < route


def test_one_such_service_a_node() -> None:
    state = ready()
    serve(state, "pods", subnet=SLICE)
    before = dump(state)
    assert serve(state, "pods", subnet=SLICE) == state.slice_service
    with pytest.raises(RequestError, match="which service pods has already"):
        serve(state, "more", subnet=SLICE)
    with pytest.raises(RequestError, match=r"the subnet 10\.200\.7\.0/28: tear it down first"):
        serve(state, "pods", subnet=ip_network("10.200.9.0/24"))
    with pytest.raises(RequestError, match="overlaps"):
        serve(state, "part", subnet=ip_network("10.200.7.0/29"))
    assert dump(state) == before
    change(state, lambda draft: services.teardown_service(draft, "pods"))
    with pytest.raises(RequestError, match="dedicated"):
        serve(state, "pods", subnet=SLICE, dedicated_key=b"d" * 32)
    serve(state, "more", subnet=SLICE)


def test_without_a_slice_there_is_no_such_service() -> None:
    state = new_state()
    set_up(state, slice=None)
    with pytest.raises(RequestError):
        serve(state, "pods", subnet=CLUSTER)


def test_the_slice_cannot_move_below_it() -> None:
    state = ready()
    serve(state, "pods", subnet=SLICE)
    with pytest.raises(RequestError, match="which has the slice"):
        set_up(state, slice=ip_network("10.200.8.0/24"))
    set_up(state, instance_id="2")
    overlay = state.get(Overlay)
    assert overlay is not None and overlay.slice_service == "pods"


def test_it_shares_the_addresses_and_their_end() -> None:
    state = ready()
    serve(state, "pods", subnet=SLICE)
    change(state, lambda draft: ipam.allocate_ip(draft, ""))
    change(state, lambda draft: ipam.allocate_ip(draft, "pods"))
    rows = [enter(state, f"n{number}", service="pods") for number in range(11)]
    with pytest.raises(Exhausted, match="service pods"):
        enter(state, "one-more", service="pods")
    with pytest.raises(Exhausted):
        change(state, lambda draft: ipam.allocate_ip(draft, ""))
    change(state, lambda draft: attachments.detach(draft, rows[3]))
    assert change(state, lambda draft: ipam.allocate_ip(draft, ""))[0] == rows[3].address


def test_the_bridge_answers_for_who_is_not_on_it() -> None:
    state = ready()
    serve(state, "pods", subnet=SLICE)
    enter(state, "on-it", service="pods")
    joined = attach(state, 71, join_global=True)
    spec = AttachSpec(service="nowhere")
    guest = change(state, lambda draft: attachments.attach_guest(draft, spec, "vm", b"g" * 32, KEYS[1]))[0]
    host = change(state, lambda draft: attachments.attach_host(draft, spec, "h"))[0]
    edge = change(state, lambda draft: edges.mint(draft, "laptop", public_key=KEYS[2], now=0, ttl=60))[0]
    wanted = {joined.global_address, guest.address, host.address, edge.address}
    assert {proxy.address for proxy in things(state, Proxy)} == wanted
    assert {proxy.service for proxy in things(state, Proxy)} == {"pods"}
    through = {route.destination for route in things(state, Route)}
    assert through == {CLUSTER, ip_network(guest.address), ip_network(edge.address)}
    everything = layout(state, FACTS)
    parts = [row.id for kind in (Attachment, Overlay) for row in state.table(kind).values()]  # type: ignore[type-abstract]
    assert everything == layout(state, FACTS, parts)
    of_service = layout(state, FACTS, [("service", "pods")])
    assert {proxy.key for proxy in things(state, Proxy)} <= of_service.keys()
