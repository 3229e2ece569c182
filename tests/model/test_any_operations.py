"""Every operation of the model, in any order: invariants, undo, and indexes that agree with the rows."""

from ipaddress import ip_network

from decisions import CLUSTER, FACTS, KEYS, OWN, SERVICES, SLICE, dump, new_state, set_up
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from overlayd.errors import RequestError
from overlayd.model import attachments, edges, ipam, overlay, peers, rows, services
from overlayd.model.attachments import AttachSpec
from overlayd.model.layout import by_key, elements, fences, has_fence, layout, of_device, of_peers, of_service
from overlayd.model.objects import (
    GLOBAL,
    Alias,
    Bridge,
    Device,
    DevicePeer,
    Element,
    Fence,
    Netns,
    Proxy,
    Route,
    Veth,
)
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Edge, Isolation, Lease, Service
from overlayd.model.state import Draft, State
from overlayd.model.subnets import first_usable


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
        spec = AttachSpec(service=name, join_global=everywhere, ephemeral=ephemeral, isolation_network=network)
        namespace = Netns(pid=pid, started=pid * 7, inode=pid + 1000)
        self.do(lambda draft: attachments.attach_container(draft, spec, namespace, "boot"))

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
        spec = AttachSpec(service=name, ephemeral=ephemeral, isolation_network=network)
        public = id.encode().ljust(32, b"g")
        if shared:
            self.do(lambda draft: attachments.attach_host(draft, spec, id))
        else:
            self.do(lambda draft: attachments.attach_guest(draft, spec, id, b"p" * 32, public))

    @rule(handle=st.sampled_from([kind(id) for kind in (attachments.guest, attachments.host) for id in ("vm1", "vm2")]))
    def detach_guest_or_host(self, handle):
        present = self.state.get(Attachment, handle)
        if present:
            self.do(lambda draft: attachments.detach(draft, present))

    @rule(names=st.sets(st.sampled_from(SERVICES)))
    def prune(self, names):
        def decide(draft):
            for name in sorted(names):
                services.teardown_service(draft, name)

        self.do(decide)

    @rule(
        name=st.sampled_from(["phone", "laptop"]),
        ttl=st.integers(0, 3),
        allowed=st.lists(st.integers(0, 5), max_size=2),
        granted=st.lists(st.sampled_from(SERVICES), max_size=2),
    )
    def mint(self, name, ttl, allowed, granted):
        networks = tuple(ip_network(f"10.200.{n}.0/24") for n in allowed)
        key, now = name.encode().ljust(32, b"e"), self.now
        self.do(
            lambda draft: edges.mint(draft, name, public_key=key, now=now, ttl=ttl, allowed=networks, services=granted)
        )

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
            lease = data.draw(st.sampled_from(leases))
            self.do(lambda draft: services.release_ip(draft, lease.address, closing=lease.pool))

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
            old, new = self.state.pools(pool), fresh.pools(pool)
            assert [(each.choose(), each.held) for each in old] == [(each.choose(), each.held) for each in new]
        self.state = fresh

    @invariant()
    def a_part_of_the_layout_is_what_the_whole_has_of_it(self):
        whole = layout(self.state, FACTS)

        def part(*kinds, **having):
            return {
                key: thing
                for key, thing in whole.items()
                if isinstance(thing, kinds) and all(getattr(thing, name) == value for name, value in having.items())
            }

        assert by_key(elements(self.state, FACTS)) == part(Element)
        assert by_key(fences(self.state, FACTS)) == part(Fence)
        assert all(has_fence(self.state, fence.destination) for fence in part(Fence).values())
        assert not has_fence(self.state, ip_network("192.0.2.0/24"))
        for name in SERVICES:
            legs = {leg.namespace for leg in part(Veth, service=name).values()}  # also into the global network
            joined = {key: leg for key, leg in part(Veth).items() if leg.namespace in legs}
            assert by_key(of_service(self.state, FACTS, name)) == part(Bridge, Proxy, service=name) | joined
            assert by_key(of_peers(self.state, FACTS, name)) == part(Device, DevicePeer, scope=name)
            assert by_key(of_device(self.state, FACTS, name)) == part(Device, DevicePeer, Route, scope=name)
        guests = {row.public_key for row in self.state.table(Attachment).values() if row.public_key}
        peers_of_all = by_key(of_peers(self.state, FACTS, GLOBAL))
        assert peers_of_all == part(Device, DevicePeer, scope=GLOBAL)
        assert self.state.overlay is None or guests <= {getattr(it, "public_key", b"") for it in peers_of_all.values()}
        on_device = part(Device, DevicePeer, Route, scope=GLOBAL) | part(Alias)
        assert by_key(of_device(self.state, FACTS, GLOBAL)) == on_device

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


Operations.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestOperations = Operations.TestCase
