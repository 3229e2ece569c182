"""What each operation of the model decides, and refuses."""

import re
from ipaddress import ip_address, ip_network

import pytest
from decisions import CLUSTER, FACTS, KEYS, OWN, SLICE, attach, change, dump, new_state, ready, serve, set_up
from msgspec.structs import replace

from overlayd import keys
from overlayd.errors import RequestError, StateError
from overlayd.model import attachments, ipam, overlay, peers, rows, services, subnets
from overlayd.model.attachments import AttachSpec
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import GLOBAL, LONGEST_SCOPE, Bridge, DevicePeer, Netns, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Lease, Overlay, Peer, Service
from overlayd.model.state import Draft


def test_a_container_of_a_full_subnet_is_refused_with_the_numbers():
    state = ready()
    for pid in range(1, 62):
        attach(state, pid)
    with pytest.raises(RequestError, match=r"service web: all of 10\.200\..*/26 is taken, 61 held"):
        attach(state, 99)
    assert state.get(Attachment, "pid:99") is None


def test_a_released_address_is_reused_last_and_oldest_first():
    state = ready()
    taken = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0] for _ in range(61)]
    assert taken == sorted(taken)
    for address in (taken[5], taken[2]):
        change(state, lambda draft, address=address: ipam.release(draft, address, ipam.REQUEST))
    again = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0] for _ in range(2)]
    assert again == [taken[5], taken[2]]


def test_release_leaves_a_containers_address_alone():
    state = ready()
    attachment = attach(state, 7)
    freed, _ = change(state, lambda draft: ipam.release(draft, attachment.address, ipam.REQUEST))
    assert not freed
    assert state.get(Lease, str(attachment.address)).holder == "pid:7"


def test_a_second_attach_of_a_namespace_answers_the_same_address_or_says_where_it_is():
    state = ready()
    serve(state, "api")
    first = attach(state, 7)
    assert attach(state, 7) == first
    with pytest.raises(RequestError, match="already attached to service web"):
        attach(state, 7, service="api")


def test_a_reused_pid_in_another_namespace_replaces_the_dead_container():
    state = ready()
    attach(state, 7)
    newer = Netns(pid=7, started=99999, inode=4242)
    attachment, _ = change(
        state, lambda draft: attachments.attach_container(draft, AttachSpec(service="web"), newer, "boot")
    )
    assert attachment.netns == newer
    assert len(state.table(Attachment)) == 1


@pytest.mark.parametrize("lives", [True, False])
def test_another_process_in_a_namespace_of_the_same_number_is_a_fellow_only_if_the_first_one_lives(lives):
    """The kernel gives the number of a namespace that is gone to the next one."""
    state = ready()
    first = attach(state, 7)
    other = Netns(pid=8, started=99999, inode=first.netns.inode)
    found, _ = change(
        state,
        lambda draft: attachments.attach_container(
            draft, AttachSpec(service="web"), other, "boot", lambda _netns: lives
        ),
    )
    assert (found.address == first.address and first.netns in found.processes) == lives
    assert other in found.processes
    assert list(state.table(Attachment)) == [found.handle]
    assert state.in_namespace(other.inode) == found


def test_a_namespace_keeps_its_network_while_a_process_that_was_attached_lives():
    state = ready()
    first = attach(state, 7)
    fellows = [Netns(pid=pid, started=pid, inode=first.netns.inode) for pid in (8, 9)]
    spec = AttachSpec(service="web")
    for fellow in fellows:
        joined, _ = change(state, lambda draft, it=fellow: attachments.attach_container(draft, spec, it, "boot"))
        assert joined.address == first.address
        again, _ = change(state, lambda draft, it=fellow: attachments.attach_container(draft, spec, it, "boot"))
        assert again == joined
    before = layout(state, FACTS)
    dead = {7}
    for staying in ([8, 9], [9]):
        found = attachments.of_handle(state, f"pid:{staying[-1]}")
        kept, _ = change(state, lambda draft, it=found: attachments.leave(draft, it, lambda each: each.pid not in dead))
        assert [process.pid for process in kept] == staying
        assert plan(before, layout(state, FACTS)) == [], "the links keep their names, whoever stays"
        assert attachments.of_handle(state, "pid:7") is None, "who has left is not taken back again"
        dead.add(8)
    kept, _ = change(state, lambda draft: attachments.leave(draft, state.get(Attachment, "pid:7"), lambda _: False))
    assert kept == ()
    assert not state.table(Attachment)
    assert state.of_process(9) is None


def test_the_number_of_a_process_whose_container_lives_on_is_not_taken_for_another():
    state = ready()
    first = attach(state, 7)
    fellow = Netns(pid=8, started=8, inode=first.netns.inode)
    spec = AttachSpec(service="web")
    change(state, lambda draft: attachments.attach_container(draft, spec, fellow, "boot"))
    reused = Netns(pid=7, started=99999, inode=4242)
    with pytest.raises(RequestError, match="process 8 keeps"):
        change(state, lambda draft: attachments.attach_container(draft, spec, reused, "boot", lambda it: it == fellow))


def test_an_address_is_asked_of_a_service_that_is_set_up_or_of_the_node():
    state = ready()
    with pytest.raises(RequestError, match="service wbe is not set up on this node"):
        change(state, lambda draft: ipam.allocate_ip(draft, "wbe"))
    assert change(state, lambda draft: ipam.allocate_ip(draft, ""))[0] in SLICE
    with pytest.raises(RequestError, match="global overlay not set up"):
        change(new_state(), lambda draft: ipam.allocate_ip(draft, "web"))


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


def test_an_ephemeral_bridge_goes_with_its_last_container():
    state = ready()
    attach(state, 1, ephemeral=True)
    attach(state, 2, ephemeral=True)
    for pid in (1, 2):
        assert state.get(Service, "web") is not None
        present = state.get(Attachment, f"pid:{pid}")
        change(state, lambda draft, present=present: attachments.detach(draft, present))
    assert state.get(Service, "web") is None


def test_a_lasting_attach_keeps_the_bridge():
    state = ready()
    attach(state, 1)
    attach(state, 2, ephemeral=True)
    for pid in (1, 2):
        present = state.get(Attachment, f"pid:{pid}")
        change(state, lambda draft, present=present: attachments.detach(draft, present))
    assert state.get(Service, "web") is not None


def leave(state, pid):
    present = state.get(Attachment, f"pid:{pid}")
    change(state, lambda draft: attachments.detach(draft, present))


def hand_out(state):
    return change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0]


def give_back(state, address):
    assert change(state, lambda draft: services.release_ip(draft, address, closing="web"))[0]


def test_an_ephemeral_service_that_addresses_kept_goes_with_the_last_of_them():
    state = ready()
    attach(state, 1, ephemeral=True)
    addresses = [hand_out(state), hand_out(state)]
    leave(state, 1)
    for address in addresses:
        assert state.get(Service, "web") is not None
        give_back(state, address)
    assert state.get(Service, "web") is None
    assert not state.leases("web")


def test_an_address_given_back_takes_no_service_along_that_somebody_may_want():
    state = ready()
    give_back(state, hand_out(state))
    assert state.get(Service, "web") is not None, "nobody was attached yet"
    attach(state, 1, ephemeral=True)
    give_back(state, hand_out(state))
    assert state.get(Service, "web") is not None, "somebody is attached"
    address = hand_out(state)
    leave(state, 1)
    serve(state, "web")
    give_back(state, address)
    assert state.get(Service, "web") is not None, "it was set up again"
    address = hand_out(state)
    attach(state, 1, ephemeral=True)
    attach(state, 2)
    leave(state, 2)
    leave(state, 1)
    give_back(state, address)
    assert state.get(Service, "web") is not None, "not every attach was ephemeral"


def test_moving_an_allowed_ip_takes_it_from_its_owner_and_says_so():
    state = ready()
    network = ip_network("10.200.3.0/24")
    for key in KEYS[:2]:
        change(
            state,
            lambda draft, key=key: peers.add_peer(
                draft, GLOBAL, key, own_key=OWN, endpoint="", keepalive=0, allowed_ips=(), candidates=()
            ),
        )
    assert change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], network))[0] == []
    (line,) = change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[1], network))[0]
    assert keys.text(KEYS[0]) in line and keys.text(KEYS[1]) in line
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == frozenset()


def test_the_peer_of_a_guest_is_the_guests_alone():
    state = ready()
    key, network, foreign = KEYS[0], ip_network("10.200.3.0/24"), ip_network("10.200.4.0/24")
    guest = change(
        state, lambda draft: attachments.attach_guest(draft, AttachSpec(service="web"), "vm", b"p" * 32, key)
    )[0]
    own = ip_network(guest.address)
    options = {"own_key": OWN, "endpoint": "", "keepalive": 0, "allowed_ips": (network,), "candidates": ()}
    before = dump(state)
    for decide in (
        lambda draft: peers.add_peer(draft, GLOBAL, key, **options),
        lambda draft: peers.remove_peer(draft, GLOBAL, key),
        lambda draft: peers.add_allowed_ip(draft, GLOBAL, key, network),
        lambda draft: peers.remove_allowed_ip(draft, GLOBAL, key, own),
    ):
        with pytest.raises(RequestError, match=f"{re.escape(keys.text(key))} is guest vm: detach it first"):
            change(state, decide)
    change(state, lambda draft: peers.remove_allowed_ip(draft, GLOBAL, key, foreign))
    assert dump(state) == before
    serve(state, "own", dedicated_key=b"d" * 32)
    change(state, lambda draft: peers.add_peer(draft, "own", key, **options))  # another device
    change(state, lambda draft: attachments.detach(draft, guest))
    change(state, lambda draft: peers.remove_peer(draft, GLOBAL, key))
    change(state, lambda draft: peers.add_peer(draft, GLOBAL, key, **options))


def test_added_allowed_ips_survive_an_upsert():
    state = ready()
    listed, added = ip_network("10.200.3.0/24"), ip_network("10.200.4.0/24")

    def upsert(draft):
        return peers.add_peer(
            draft, GLOBAL, KEYS[0], own_key=OWN, endpoint="", keepalive=0, allowed_ips=(listed,), candidates=()
        )

    change(state, upsert)
    change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], added))
    change(state, upsert)
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == {listed, added}


@pytest.mark.parametrize("added_first", [True, False])
def test_an_added_allowed_ip_stays_although_an_upsert_listed_it_for_a_while(added_first):
    state, network = ready(), ip_network("10.200.4.0/24")

    def upsert(*allowed_ips):
        options = {"own_key": OWN, "endpoint": "", "keepalive": 0, "candidates": ()}
        change(state, lambda draft: peers.add_peer(draft, GLOBAL, KEYS[0], allowed_ips=allowed_ips, **options))

    def add():
        change(state, lambda draft: peers.add_allowed_ip(draft, GLOBAL, KEYS[0], network))

    upsert()
    for step in (add, lambda: upsert(network)) if added_first else (lambda: upsert(network), add):
        step()
    upsert()
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == {network}
    assert state.allowed_ips(GLOBAL).exact(network.network_address.packed, 24) == KEYS[0]
    change(state, lambda draft: peers.remove_allowed_ip(draft, GLOBAL, KEYS[0], network))
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == frozenset()


@pytest.mark.parametrize("scope", ["web", "unknown"])
def test_a_scope_without_a_device_is_an_error(scope):
    state = ready()
    with pytest.raises(RequestError, match=f"no dedicated overlay for service {scope}"):
        change(state, lambda draft: peers.remove_peer(draft, scope, KEYS[0]))


def test_peers_need_the_overlay():
    with pytest.raises(RequestError, match="global overlay not set up"):
        change(new_state(), lambda draft: peers.remove_peer(draft, GLOBAL, KEYS[0]))


def test_the_own_key_is_no_peer():
    state = ready()
    with pytest.raises(RequestError, match="own key"):
        change(
            state,
            lambda draft: peers.add_peer(
                draft, GLOBAL, OWN, own_key=OWN, endpoint="", keepalive=0, allowed_ips=(), candidates=()
            ),
        )


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


def test_a_port_of_nobody_and_a_cluster_of_everybody_are_refused():
    with pytest.raises(RequestError, match="0 is no port"):
        set_up(ready(), port=0)
    for everything in ("0.0.0.0/0", "::/0"):
        with pytest.raises(RequestError, match="all of this host's traffic"):
            set_up(new_state(), cluster=ip_network(everything), slice=None)


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


def test_a_row_of_a_newer_overlayd_is_refused_not_dropped():
    with pytest.raises(StateError, match="newer"):
        rows.decode(("comets", "x"), b"{}")
    with pytest.raises(StateError, match="service/web"):
        rows.decode(("service", "web"), b'{"name": 7}')


def test_an_ipv6_cluster():
    state = new_state()
    set_up(state, cluster=ip_network("fd00:200::/48"), slice=ip_network("fd00:200:0:7::/64"))
    serve(state, "web")
    attachment = attach(state, 7, join_global=True)
    assert attachment.address in state.get(Service, "web").subnet
    assert attachment.global_address == ip_address("fd00:200:0:7::2")
    (leg,) = (thing for thing in layout(state, FACTS).values() if isinstance(thing, Veth) and thing.interface == "eth1")
    assert str(leg.address) == "fd00:200:0:7::2/128"


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


def test_replacing_an_equal_row_is_no_change():
    state = ready()
    draft = Draft(state)
    draft.put(replace(state.get(Overlay)))
    assert not draft.rows
    assert Peer.table == "peer"


@pytest.mark.parametrize("name", ["x" * (LONGEST_SCOPE + 1), "ü" * (LONGEST_SCOPE // 2 + 1), "x" * 70_000])
def test_a_service_is_refused_whose_name_its_links_could_not_carry(name):
    """Under a long deployment, whose link names are hashed: the alias alone says whose a link is."""
    state = new_state()
    set_up(state, deployment="production-of-everything")
    with pytest.raises(RequestError, match="a name has at most 238 bytes"):
        serve(state, name)
    serve(state, "x" * LONGEST_SCOPE)


# A terminal acts on these or does not show them: NUL, escape, line feed, DEL, C1, marks of direction, a surrogate.
UNSHOWN = ["a\0b", "\x1b[2J", "n\nl", "\x7f", "\x9b1m", "\u202eabc", "\u200f", "\u2066", "\ud800"]


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
