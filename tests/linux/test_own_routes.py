"""A container's own routes stay its own: set aside while ours count, and back when ours go, exactly as they were."""

import json

import pytest
from veth_legs import EVERYTHING, VERSIONS, global_leg, make_bridge, make_node, refusal, service_leg

from overlayd import fault
from overlayd.linux import veth, veth_removal
from overlayd.linux.observe import observe

NEIGHBOUR = {4: "192.0.2.1", 6: "fd77::1"}
OWN = {4: "192.0.2.2/24", 6: "fd77::2/64"}


def give_a_network(box, version, link="net1"):
    """A link of the container's own, which leads to a router."""
    box.run(f"ip link add {link} type veth peer name {link}p")
    nodad = "nodad" if version == 6 else ""
    box.run(
        f"sh -c 'ip link set lo up; ip link set {link} up; ip link set {link}p up; "
        f"ip address add {OWN[version]} dev {link} {nodad}'"
    )


def routes(box, version):
    shown = json.loads(box.run(f"ip -j -{version} route show table all type unicast"))
    return sorted(json.dumps(route, sort_keys=True) for route in shown if not route["dst"].startswith("fe80"))


@pytest.mark.parametrize(
    "options",
    ["", "proto static", "proto ra mtu 1400", "metric 50", "via {router} dev net1 table 1234; true", "onlink dev net1"],
)
@VERSIONS
def test_a_default_route_comes_back_as_it_was(host, container, options, version):
    make_bridge(version)
    give_a_network(box := container(), version)
    box.run(
        f"sh -c 'ip -{version} route add default via {NEIGHBOUR[version]} {options.format(router=NEIGHBOUR[version])}'"
    )
    before = routes(box, version)
    wanted = service_leg(box, version=version)
    veth.create(wanted)
    taken = box.run(f"ip -{version} route get {'198.51.100.1' if version == 4 else '2001:db8::1'}")
    assert "dev eth0" in taken and f"via {wanted.gateway}" in taken, "ours counts"
    assert observe([wanted])[wanted.key] == wanted
    veth_removal.delete([wanted.name], {wanted.name: wanted.netns})
    assert routes(box, version) == before


@VERSIONS
def test_each_leg_gives_back_what_it_has_taken(host, container, shell, version):
    """A route to the whole cluster is set aside for eth1, a default one for eth0; a narrower one stays."""
    make_bridge(version)
    make_node(shell, version)
    give_a_network(box := container(), version)
    legs = [service_leg(box, version=version), global_leg(box, version)]
    (cluster,) = legs[1].routes
    part = next(cluster.subnets(prefixlen_diff=4))
    for destination in (EVERYTHING[version], cluster, part):
        box.run(f"ip -{version} route add {destination} via {NEIGHBOUR[version]}")
    before = routes(box, version)
    for leg in legs:
        veth.create(leg)
    assert f"{part} via {NEIGHBOUR[version]}" in box.run(f"ip -{version} route")
    for leg, destination in zip(legs, ("default", str(cluster)), strict=True):
        assert f"{destination} via {NEIGHBOUR[version]}" not in box.run(f"ip -{version} route")
        veth_removal.delete([leg.name], {leg.name: leg.netns})
        assert f"{destination} via {NEIGHBOUR[version]}" in box.run(f"ip -{version} route")
    assert routes(box, version) == before


@VERSIONS
def test_a_refused_attach_changes_nothing(host, container, version):
    make_bridge(version)
    give_a_network(box := container(), version, "eth0")
    box.run(f"ip -{version} route add default via {NEIGHBOUR[version]}")
    before = routes(box, version)
    assert "already has an interface eth0" in str(refusal(service_leg(box, version=version)))
    assert routes(box, version) == before


@VERSIONS
def test_an_attach_that_fails_half_way_changes_nothing(host, container, monkeypatch, version):
    make_bridge(version)
    give_a_network(box := container(), version)
    box.run(f"ip -{version} route add default via {NEIGHBOUR[version]}")
    before = routes(box, version)

    def break_off(name):
        if name == "veth:configured":
            raise RuntimeError("broken")

    monkeypatch.setattr(fault, "point", break_off)
    with pytest.raises(RuntimeError, match="broken"):
        veth.create(service_leg(box, version=version))
    assert routes(box, version) == before


def test_a_veth_of_a_container_that_was_found_by_its_name_alone(host, container):
    """As at a teardown, which knows no state."""
    make_bridge()
    give_a_network(box := container(), 4)
    box.run("ip route add default via 192.0.2.1")
    before = routes(box, 4)
    veth.create(service_leg(box))
    (found,) = [each for key, each in observe([]).items() if key[0] == "veth"]
    veth_removal.delete([found.name])
    assert routes(box, 4) == before


def test_a_route_whose_link_has_gone_is_gone(host, container):
    make_bridge()
    give_a_network(box := container(), 4)
    box.run("ip route add default via 192.0.2.1")
    wanted = service_leg(box)
    veth.create(wanted)
    box.run("ip link delete net1")
    veth_removal.delete([wanted.name], {wanted.name: wanted.netns})
    assert routes(box, 4) == []


@VERSIONS
def test_a_veth_that_somebody_deleted_and_that_was_made_anew(host, container, version):
    make_bridge(version)
    give_a_network(box := container(), version)
    box.run(f"ip -{version} route add default via {NEIGHBOUR[version]}")
    before = routes(box, version)
    wanted = service_leg(box, version=version)
    veth.create(wanted)
    veth_removal.delete([wanted.name])
    veth.create(wanted)
    veth_removal.delete([wanted.name], {wanted.name: wanted.netns})
    assert routes(box, version) == before
