"""What a service gets: a name, a subnet, a port; and what goes with it."""

from ipaddress import ip_network

import pytest
from decisions import CLUSTER, KEYS, OWN, attach, change, dump, new_state, ready, serve, set_up
from msgspec.structs import replace

from overlayd.errors import RequestError
from overlayd.model import ipam, peers, services, subnets
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE
from overlayd.model.rows import Service


def test_a_services_subnet_avoids_what_peers_route():
    wanted = ready().get(Service, "web").subnet
    state = new_state()
    set_up(state)
    change(
        state,
        lambda draft: peers.add_peer(
            draft, GLOBAL, KEYS[0], own_key=OWN, endpoint="", keepalive=0, allowed_ips=(wanted,), candidates=()
        ),
    )
    assert not serve(state, "web").subnet.overlaps(wanted)


@pytest.mark.parametrize("name", ["a/b", "a b", "a:b"])
def test_a_name_that_no_link_may_have_is_refused(name):
    with pytest.raises(RequestError, match="link name"):
        serve(ready(), name)
    with pytest.raises(RequestError, match="link name"):
        set_up(new_state(), instance_id=name)


def test_a_wanted_subnet_is_used_or_refused():
    state = ready()
    subnet = ip_network("10.200.50.0/27")
    assert serve(state, "api", subnet=subnet).subnet == subnet
    for bad in ("10.200.50.16/28", "10.9.0.0/28", "10.200.7.0/29"):
        with pytest.raises(RequestError):
            serve(state, "db", subnet=ip_network(bad))


def test_a_subnet_of_an_earlier_state_stays_and_nothing_is_given_out_across_it():
    old = Service(name="web", subnet=ip_network("10.200.74.16/28"), bridge="zl-d-1-web-b")
    state = new_state()
    set_up(state)
    change(state, lambda draft: draft.put(old))
    assert serve(state, "web") == old
    names = (f"s{number}" for number in range(100_000))
    around = ip_network("10.200.74.0/26")
    name = next(name for name in names if subnets.choose(CLUSTER, name, 0, lambda _: None) == around)
    assert serve(state, name).subnet == ip_network("10.200.74.64/26")


def test_isolated_is_a_kind_of_shared_and_dedicated_is_not():
    state = ready()
    before = state.get(Service, "web")
    assert before.mode == "shared"
    assert serve(state, "web", isolated=True) == replace(before, isolated=True)
    assert serve(state, "web", isolated=True).mode == "isolated"
    with pytest.raises(RequestError, match="set up as isolated: tear it down first to change its mode"):
        serve(state, "web", dedicated_key=b"d" * 32)
    assert serve(state, "web") == before
    serve(state, "db", dedicated_key=b"d" * 32)
    with pytest.raises(RequestError, match="set up as dedicated"):
        serve(state, "db", isolated=True)


def test_dedicated_services_get_ports_of_their_own_and_free_them():
    state = ready()
    ports = [serve(state, name, dedicated_key=b"d" * 32).wg_port for name in ("api", "db")]
    assert ports == [51821, 51822]
    change(state, lambda draft: services.teardown_service(draft, "api"))
    assert serve(state, "other", dedicated_key=b"e" * 32).wg_port == 51821


def test_nothing_is_remembered_of_services_that_are_gone():
    def sizes():
        return {name: len(value) for name, value in vars(state).items() if isinstance(value, dict)}

    state = ready()
    before = sizes()
    for number in range(3):
        name = f"job-{number}"
        serve(state, name, dedicated_key=OWN)
        attach(state, number, name)
        change(
            state,
            lambda draft, name=name: peers.add_peer(
                draft, name, KEYS[0], own_key=OWN, endpoint="", keepalive=0, allowed_ips=(CLUSTER,), candidates=()
            ),
        )
        assert list(state.allowed_ips(name))
        change(state, lambda draft, name=name: services.teardown_service(draft, name))
        assert not list(state.allowed_ips(name))
    assert sizes() == before


@pytest.mark.parametrize("name", ["x" * (LONGEST_SCOPE + 1), "ü" * (LONGEST_SCOPE // 2 + 1), "x" * 70_000])
def test_a_service_is_refused_whose_name_its_links_could_not_carry(name):
    """Under a long deployment, whose link names are hashed: the alias alone says whose a link is."""
    state = new_state()
    set_up(state, deployment="production-of-everything")
    with pytest.raises(RequestError, match="a name has at most 238 bytes"):
        serve(state, name)
    serve(state, "x" * LONGEST_SCOPE)


@pytest.mark.parametrize("text", ["%d", "%s", "x%", "%n", "%"])
def test_a_name_that_the_kernel_would_take_for_a_template_is_refused(text):
    state = new_state()
    for values in ({"deployment": text, "instance_id": "a"}, {"deployment": "d", "instance_id": text}):
        with pytest.raises(RequestError, match="template"):
            set_up(state, **values)
    set_up(state, deployment="d", instance_id="a")
    with pytest.raises(RequestError, match="template"):
        serve(state, text)
    assert not state.table(Service)


def test_a_service_without_a_name_and_one_before_the_overlay_are_refused():
    with pytest.raises(RequestError, match="a service needs a name"):
        serve(ready(), "")
    with pytest.raises(RequestError, match="send setup_global_overlay first"):
        serve(new_state(), "web")


def test_a_service_keeps_its_subnet_until_it_is_torn_down():
    state = ready()
    subnet, other = ip_network("10.200.50.0/27"), ip_network("10.200.60.0/27")
    first = serve(state, "api", subnet=subnet)
    assert serve(state, "api", subnet=subnet) == serve(state, "api") == first
    with pytest.raises(RequestError, match=f"api has the subnet {subnet}: tear it down first to give it {other}"):
        serve(state, "api", subnet=other)
    change(state, lambda draft: services.teardown_service(draft, "api"))
    assert serve(state, "api", subnet=other).subnet == other


def test_a_wanted_subnet_has_room_for_a_gateway_and_a_container():
    with pytest.raises(RequestError, match="no room for a gateway and a container"):
        serve(ready(), "api", subnet=ip_network("10.200.50.0/31"))
    assert serve(ready(), "api", subnet=ip_network("10.200.50.0/30")).subnet.num_addresses == 4


def test_addresses_that_the_node_gave_back_become_the_services():
    """Without a slice the node's addresses come from the whole cluster; who had one of them gets no second claim."""
    state = ready(slice=None)
    address, _ = change(state, lambda draft: ipam.allocate_ip(draft, ""))
    near = ip_network(f"{address}/28", strict=False)
    with pytest.raises(RequestError, match=f"{near} overlaps"):
        serve(state, "api", subnet=near)
    set_up(state, cluster=ip_network("10.200.0.0/15"), slice=None)  # the node's address is another one now
    change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))
    assert [lease.holder for lease in state.leases(GLOBAL).values()] == [""]


def test_a_prune_of_what_is_not_there_changes_nothing():
    state = ready()
    before = dump(state)
    change(state, lambda draft: services.teardown_service(draft, "never"))
    assert dump(state) == before


def test_when_no_port_is_free_a_dedicated_service_says_which_were_tried():
    state = ready()
    with pytest.raises(RequestError, match="no free WireGuard port in 51821-"):
        serve(state, "own", dedicated_key=OWN, port_is_free=lambda port: False)
    assert serve(state, "own", dedicated_key=OWN, port_is_free=lambda port: port == 51830).wg_port == 51830
    last = new_state()
    set_up(last, port=65535)
    with pytest.raises(RequestError, match="no free WireGuard port"):
        serve(last, "own", dedicated_key=OWN)
