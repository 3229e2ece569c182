"""Who is attached where: namespaces and their processes, and what goes with the last container."""

from ipaddress import ip_address, ip_network

import pytest
from decisions import FACTS, KEYS, OWN, attach, change, enter, new_state, ready, serve, set_up

from overlayd.errors import RequestError
from overlayd.model import attachments, ipam, overlay, peers, services
from overlayd.model.attachments import AttachSpec
from overlayd.model.layout import layout
from overlayd.model.objects import Netns, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Service


def leave(state, pid):
    present = state.get(Attachment, f"pid:{pid}")
    change(state, lambda draft: attachments.detach(draft, present))


def hand_out(state):
    return change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0]


def give_back(state, address):
    assert change(state, lambda draft: services.release_ip(draft, address, closing="web"))[0]


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


def test_an_ipv6_cluster():
    state = new_state()
    set_up(state, cluster=ip_network("fd00:200::/48"), slice=ip_network("fd00:200:0:7::/64"))
    serve(state, "web")
    attachment = attach(state, 7, join_global=True)
    assert attachment.address in state.get(Service, "web").subnet
    assert attachment.global_address == ip_address("fd00:200:0:7::2")
    (leg,) = (thing for thing in layout(state, FACTS).values() if isinstance(thing, Veth) and thing.interface == "eth1")
    assert str(leg.address) == "fd00:200:0:7::2/128"


def test_what_is_not_set_up_takes_no_container():
    with pytest.raises(RequestError, match="service api is not set up on this node: send setup_service_overlay first"):
        attach(ready(), 7, service="api")
    with pytest.raises(RequestError, match="send setup_global_overlay first"):
        change(new_state(), lambda draft: attachments.attach_host(draft, AttachSpec(service="web"), "h"))
    state = ready()
    change(state, overlay.teardown_global)
    with pytest.raises(RequestError, match="send setup_global_overlay first"):
        attach(state, 7)


@pytest.mark.parametrize("joined", [True, False])
def test_whether_a_container_joins_the_global_network_is_changed_by_a_detach(joined):
    state = ready()
    attach(state, 7, join_global=joined)
    now = "with" if joined else "without"
    with pytest.raises(RequestError, match=f"attached to service web {now} join_global: detach it first"):
        attach(state, 7, join_global=not joined)
    leave(state, 7)
    assert (attach(state, 7, join_global=not joined).global_address is None) == joined


def test_an_attachment_is_found_by_its_handle_and_by_its_namespace():
    state = ready()
    first = attach(state, 7)
    assert attachments.find(state, first.handle) == first
    assert attachments.find(state, "pid:8", first.netns.inode) == first
    assert attachments.find(state, "pid:8", 1) is attachments.find(state, "pid:8") is None


def test_the_peers_of_a_dedicated_service_go_with_its_last_ephemeral_container():
    state = ready()
    serve(state, "own", dedicated_key=b"d" * 32)
    options = {"own_key": OWN, "endpoint": "", "keepalive": 0, "allowed_ips": (), "candidates": ()}
    change(state, lambda draft: peers.add_peer(draft, "own", KEYS[0], **options))
    attach(state, 7, service="own", ephemeral=True)
    leave(state, 7)
    assert state.get(Service, "own") is None and not state.peers("own") and not state.leases("own")


def test_who_shares_a_namespace():
    state = ready()
    main = enter(state, "a", cookie=1)
    second, other = enter(state, "a", "net1", cookie=1), enter(state, "b", cookie=2)
    assert state.sharing(main) == [second]
    assert state.sharing(second) == [main]
    assert state.sharing(other) == []
    change(state, lambda draft: attachments.detach(draft, second))
    assert state.sharing(main) == []
    same = attach(state, other.file.inode - 1000)  # by a process that lives there
    assert state.sharing(other) == [same]
    assert state.sharing(same) == []
