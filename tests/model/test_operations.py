"""Every operation of the model, in any order: invariants, undo, and indexes that agree with the rows."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from overlayd.errors import RequestError, StateError
from overlayd.model import attachments, edges, ipam, overlay, peers, rows, services
from overlayd.model.attachments import Wish
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import GLOBAL, Bridge, DevicePeer, Netns, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Edge, Isolation, Lease, Node, Overlay, Peer, Service
from overlayd.model.state import Draft, State
from overlayd.model.subnets import first_usable

CLUSTER = ip_network("10.200.0.0/16")
SLICE = ip_network("10.200.7.0/28")
KEYS = [bytes([n]) * 32 for n in range(1, 6)]
OWN = bytes(32)
SERVICES = ["web", "api", "db"]
FACTS = Facts(mtu=1420)


def new_state() -> State:
    return State([Node(private_key=b"k" * 32)])


def change(state, decide):
    """Take a decision as the node does, and return its answer and the way back."""
    draft = Draft(state)
    answer = decide(draft)
    return answer, state.apply(draft.rows)


def set_up(state, *, cluster=CLUSTER, slice=SLICE, instance="1", port=51820):
    return change(
        state,
        lambda draft: overlay.setup_global(
            draft, deployment="d", instance_id=instance, cluster=cluster, slice=slice, wg_port=port, nat=None
        ),
    )[0]


def serve(state, name, **options):
    options = {"subnet": None, "dedicated_key": None} | options
    return change(state, lambda draft: services.setup_service(draft, name, **options))[0]


def attach(state, pid, service="web", **wish):
    namespace = Netns(pid=pid, started=pid * 7, inode=pid + 1000)
    return change(
        state, lambda draft: attachments.attach_container(draft, Wish(service=service, **wish), namespace, "boot")
    )[0]


def ready(**options):
    state = new_state()
    set_up(state, **options)
    serve(state, "web")
    return state


def dump(state):
    return {row.id: row for kind in rows.ROWS for row in state.table(kind).values()}


class Operations(RuleBasedStateMachine):
    """Random requests; every change is also undone and done again, and the rows go through their JSON."""

    @initialize(slice=st.sampled_from([SLICE, None]))
    def start(self, slice):
        self.state = new_state()
        self.now = 1000
        set_up(self.state, slice=slice)

    def do(self, decide):
        before = dump(self.state)
        draft = Draft(self.state)
        try:
            decide(draft)
        except RequestError:
            assert dump(self.state) == before
            return
        old, change = layout(self.state, FACTS, draft.rows), draft.rows
        whole = layout(self.state, FACTS)
        inverse = self.state.apply(change)
        after = dump(self.state)
        self.state.apply(inverse)
        assert dump(self.state) == before
        self.state.apply(change)
        assert dump(self.state) == after
        # What the touched rows imply is all that changed: the plan of the part is the plan of the whole.
        assert set(plan(old, layout(self.state, FACTS, change))) == set(plan(whole, layout(self.state, FACTS)))

    @rule(name=st.sampled_from(SERVICES), dedicated=st.booleans())
    def setup_service(self, name, dedicated):
        key = b"d" * 32 if dedicated else None
        self.do(lambda draft: services.setup_service(draft, name, subnet=None, dedicated_key=key))

    @rule(name=st.sampled_from(SERVICES))
    def teardown_service(self, name):
        self.do(lambda draft: services.teardown_service(draft, name))

    @rule(
        pid=st.integers(1, 40),
        name=st.sampled_from(SERVICES),
        everywhere=st.booleans(),
        ephemeral=st.booleans(),
        network=st.sampled_from(["", "a", "b"]),
    )
    def attach(self, pid, name, everywhere, ephemeral, network):
        wish = Wish(service=name, join_global=everywhere, ephemeral=ephemeral, isolation_network=network)
        namespace = Netns(pid=pid, started=pid * 7, inode=pid + 1000)
        self.do(lambda draft: attachments.attach_container(draft, wish, namespace, "boot"))

    @rule(pid=st.integers(1, 40))
    def detach(self, pid):
        present = self.state.get(Attachment, attachments.container(pid))
        if present:
            self.do(lambda draft: attachments.detach(draft, present))

    @rule(
        id=st.sampled_from(["vm1", "vm2"]),
        name=st.sampled_from([*SERVICES, "unknown"]),
        ephemeral=st.booleans(),
        network=st.sampled_from(["", "a"]),
        shared=st.booleans(),
    )
    def attach_guest_or_host(self, id, name, ephemeral, network, shared):
        wish = Wish(service=name, ephemeral=ephemeral, isolation_network=network)
        public = id.encode().ljust(32, b"g")
        if shared:
            self.do(lambda draft: attachments.attach_host(draft, wish, id))
        else:
            self.do(lambda draft: attachments.attach_guest(draft, wish, id, b"p" * 32, public))

    @rule(handle=st.sampled_from([kind(id) for kind in (attachments.guest, attachments.host) for id in ("vm1", "vm2")]))
    def detach_guest_or_host(self, handle):
        present = self.state.get(Attachment, handle)
        if present:
            self.do(lambda draft: attachments.detach(draft, present))

    @rule(names=st.sets(st.sampled_from(SERVICES)))
    def prune(self, names):
        bridges = {service.bridge for service in self.state.table(Service).values() if service.name in names}
        self.do(lambda draft: services.prune(draft, bridges))

    @rule(
        name=st.sampled_from(["phone", "laptop"]),
        ttl=st.integers(0, 3),
        allowed=st.lists(st.integers(0, 5), max_size=2),
    )
    def mint(self, name, ttl, allowed):
        networks = tuple(ip_network(f"10.200.{n}.0/24") for n in allowed)
        key, now = name.encode().ljust(32, b"e"), self.now
        self.do(lambda draft: edges.mint(draft, name, public_key=key, now=now, ttl=ttl, allowed=networks))

    @rule(name=st.sampled_from(["phone", "laptop"]))
    def revoke(self, name):
        self.do(lambda draft: edges.revoke(draft, name))

    @rule(seconds=st.integers(0, 2))
    def time_passes(self, seconds):
        self.now += seconds
        self.do(lambda draft: edges.expire(draft, self.now))
        assert all(edge.expires > self.now for edge in self.state.table(Edge).values())

    @rule(name=st.sampled_from([*SERVICES, "unknown"]))
    def allocate(self, name):
        self.do(lambda draft: ipam.allocate_ip(draft, name))

    @rule(data=st.data())
    def release(self, data):
        leases = list(self.state.table(Lease).values())
        if leases:
            address = data.draw(st.sampled_from(leases)).address
            self.do(lambda draft: ipam.release(draft, address, ipam.REQUEST))

    @rule(
        key=st.sampled_from(KEYS),
        scope=st.sampled_from([GLOBAL, "web", "db"]),
        allowed=st.lists(st.integers(0, 5), max_size=3),
    )
    def add_peer(self, key, scope, allowed):
        networks = tuple(ip_network(f"10.200.{n}.0/24") for n in allowed)
        self.do(
            lambda draft: peers.add_peer(
                draft, scope, key, own_key=OWN, endpoint="", keepalive=0, allowed_ips=networks, candidates=()
            )
        )

    @rule(key=st.sampled_from(KEYS), scope=st.sampled_from([GLOBAL, "web", "db"]), n=st.integers(0, 5))
    def add_allowed_ip(self, key, scope, n):
        self.do(lambda draft: peers.add_allowed_ip(draft, scope, key, ip_network(f"10.200.{n}.0/24")))

    @rule(key=st.sampled_from(KEYS), scope=st.sampled_from([GLOBAL, "web", "db"]), n=st.integers(0, 5))
    def remove_allowed_ip(self, key, scope, n):
        self.do(lambda draft: peers.remove_allowed_ip(draft, scope, key, ip_network(f"10.200.{n}.0/24")))

    @rule(key=st.sampled_from(KEYS), scope=st.sampled_from([GLOBAL, "web", "db"]))
    def remove_peer(self, key, scope):
        self.do(lambda draft: peers.remove_peer(draft, scope, key))

    @rule(instance=st.sampled_from(["1", "2"]), slice=st.sampled_from([SLICE, None]), up=st.booleans())
    def setup_again(self, instance, slice, up):
        if not up:
            self.do(overlay.teardown_global)
        self.do(
            lambda draft: overlay.setup_global(
                draft, deployment="d", instance_id=instance, cluster=CLUSTER, slice=slice, wg_port=51820, nat=None
            )
        )

    @rule()
    def reload(self):
        """A restart: rows to JSON and back; the indexes are made anew."""
        encoded = {id: rows.encode(row) for id, row in dump(self.state).items()}
        fresh = State(rows.decode(id, data) for id, data in encoded.items())
        assert dump(fresh) == dump(self.state)
        assert layout(fresh, FACTS) == layout(self.state, FACTS)
        for pool in [GLOBAL, *SERVICES]:
            old, new = self.state.pool(pool), fresh.pool(pool)
            assert (old and (old.choose(), old.held)) == (new and (new.choose(), new.held))
        self.state = fresh

    @invariant()
    def no_address_has_two_holders(self):
        holders = {}
        for attachment in self.state.table(Attachment).values():
            for address in filter(None, (attachment.address, attachment.global_address)):
                assert address not in holders
                holders[address] = attachment.handle
                assert self.state.get(Lease, str(address)).holder == attachment.handle
        for edge in self.state.table(Edge).values():
            assert edge.address not in holders
            holders[edge.address] = edges.holder(edge.name)
            assert self.state.get(Lease, str(edge.address)).holder == holders[edge.address]
        for lease in self.state.table(Lease).values():
            if lease.holder and lease.holder != ipam.REQUEST:
                assert holders[lease.address] == lease.holder
            assert not (lease.holder and lease.address == self.state.node_address)
            service = self.state.get(Service, lease.pool)
            if lease.pool == GLOBAL:
                assert not any(lease.address in other.subnet for other in self.state.table(Service).values())
            else:
                assert lease.address in service.subnet
                assert lease.address != first_usable(service.subnet)

    @invariant()
    def no_allowed_ip_has_two_owners(self):
        for scope in self.state.scopes():
            owners = {}
            for peer in self.state.peers(scope).values():
                for network in peer.allowed_ips:
                    assert network not in owners
                    owners[network] = peer.public_key
                    packed = network.network_address.packed
                    assert self.state.allowed_ips(scope).exact(packed, network.prefixlen) == peer.public_key
            assert len(self.state.allowed_ips(scope)) == len(owners)

    @invariant()
    def a_destination_has_one_route(self):
        routes = [
            network for scope in self.state.scopes() if scope != GLOBAL for network in self.state.allowed_ips(scope)
        ]
        assert len(set(routes)) == len(routes)

    @invariant()
    def isolation_networks_are_those_of_members(self):
        wanted = {row.isolation_network for row in self.state.table(Attachment).values() if row.isolation_network}
        numbers = [row.number for row in self.state.table(Isolation).values()]
        assert set(self.state.table(Isolation)) == wanted
        assert len(set(numbers)) == len(numbers)

    @invariant()
    def subnets_are_disjoint(self):
        subnets = [service.subnet for service in self.state.table(Service).values()]
        assert not any(a.overlaps(b) for i, a in enumerate(subnets) for b in subnets[:i])


Operations.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOperations = Operations.TestCase


def test_a_container_of_a_full_subnet_is_refused_with_the_numbers():
    state = ready()
    for pid in range(1, 14):
        attach(state, pid)
    with pytest.raises(RequestError, match=r"service web: all of 10\.200\..*/28 is taken, 13 held"):
        attach(state, 99)
    assert state.get(Attachment, "pid:99") is None


def test_a_released_address_is_reused_last_and_oldest_first():
    state = ready()
    taken = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0] for _ in range(13)]
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
    attachment, _ = change(state, lambda draft: attachments.attach_container(draft, Wish(service="web"), newer, "boot"))
    assert attachment.netns == newer
    assert len(state.table(Attachment)) == 1


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
    set_up(state, instance="2")
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
    assert peers.text(KEYS[0]) in line and peers.text(KEYS[1]) in line
    assert state.peers(GLOBAL)[KEYS[0]].allowed_ips == frozenset()


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


@pytest.mark.parametrize("name", ["a/b", "a b", "a:b", "a\nb", "a\0b"])
def test_a_name_that_no_link_may_have_is_refused(name):
    with pytest.raises(RequestError, match="link name"):
        serve(ready(), name)
    with pytest.raises(RequestError, match="link name"):
        set_up(new_state(), instance=name)


def test_a_wanted_subnet_is_used_or_refused():
    state = ready()
    subnet = ip_network("10.200.50.0/27")
    assert serve(state, "api", subnet=subnet).subnet == subnet
    for bad in ("10.200.50.16/28", "10.9.0.0/28", "10.200.7.0/29"):
        with pytest.raises(RequestError):
            serve(state, "db", subnet=ip_network(bad))


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


def test_replacing_an_equal_row_is_no_change():
    state = ready()
    draft = Draft(state)
    draft.put(replace(state.get(Overlay)))
    assert not draft.rows
    assert Peer.table == "peer"
