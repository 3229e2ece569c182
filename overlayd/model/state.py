"""The state of a node: its rows, and the indexes that make decisions cheap.

Owns: the tables, what is derived from them (address pools, owners of allowed IPs, attachments by namespace, names by
address), and drafts.  Must not know: disk, kernel, clock.

The state has one writer (`daemon.change.node`) on one thread, so the tables are plain dictionaries of immutable rows
and the indexes are updated in place: a change costs the rows it touches, and readers on that thread never see half of
one.  `apply` returns the inverse change, which is how a change that the disk or the kernel refused is taken back.

A change is in the state as soon as it is decided, so that the next decision builds on it.  But what it gives up is not
free before it has taken effect, for it may yet be taken back: `departing` has the rows as they were.
"""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network
from typing import Any, TypeVar, cast

from overlayd._fast.addresses import place
from overlayd._fast.allowedips import AllowedIPs
from overlayd.errors import RequestError
from overlayd.model.names import LEGS, pid_of
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.pool import Pool
from overlayd.model.rows import (
    ROWS,
    Attachment,
    Change,
    Lease,
    Membership,
    Node,
    Overlay,
    Peer,
    Record,
    Row,
    RowId,
    Service,
    numeric_endpoint,
    peer_key,
)
from overlayd.model.subnets import first_usable

R = TypeVar("R", bound=Row)

_NONE: frozenset[Network] = frozenset()


class NotYet(RequestError):
    """There is nothing to be had before a change that is under way has ended; worth another try then."""


class State:
    """All rows of a node.  Tables are read freely; only `apply` changes them."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._tables: dict[str, dict[str, Row]] = {kind.table: {} for kind in ROWS}
        self._leases: dict[str, dict[Address, Lease]] = {}
        self._leased: dict[bytes, Lease] = {}  # by the bytes of the address
        self._pools: dict[str, tuple[Pool, ...]] = {}
        self._peers: dict[str, dict[bytes, Peer]] = {}
        self._allowed: dict[str, AllowedIPs[bytes]] = {}
        self._claimed: dict[tuple[str, Network], list[bytes]] = {}  # by whom else than the owner in `_allowed`
        # The keys of the rows of who is at an address: one, or as many as are behind one NAT.
        self._endpoints: AllowedIPs[str | dict[str, None]] = AllowedIPs()
        self._own: AllowedIPs[str] | None = None
        self._namespaces: dict[int, str] = {}
        self._files: dict[int, dict[str, None]] = {}  # by the identity of the namespace
        self._links: dict[str, str] = {}
        self._processes: dict[int, str] = {}
        self._guests: dict[bytes, str] = {}
        self._names: dict[Address, dict[str, None]] = {}
        self.departing: dict[RowId, Row] = {}  # kept by the writer
        self.releases = 0  # the newest order of release
        self._indexes: dict[str, Callable[[Any, Any], None]] = {  # of a row that was, and is; by table
            Lease.table: self._index_lease,
            Peer.table: self._index_peer,
            Attachment.table: self._index_attachment,
            Record.table: self._index_record,
            Overlay.table: self._index_range,
            Service.table: self._index_range,
            Membership.table: self._index_range,
        }
        self.apply({row.id: row for row in rows})

    def table(self, kind: type[R]) -> dict[str, R]:
        """The table of a row type, by key.  Not to be changed."""
        return self._tables[kind.table]  # type: ignore[return-value]

    def get(self, kind: type[R], key: str = "") -> R | None:
        return self._tables[kind.table].get(key)  # type: ignore[return-value]

    @property
    def node(self) -> Node:
        """Who we are.  There is such a row from the first start on."""
        return self.table(Node)[""]

    @property
    def overlay(self) -> Overlay | None:
        """The global overlay while it is up."""
        overlay = self.table(Overlay).get("")
        return overlay if overlay and overlay.up else None

    @property
    def node_address(self) -> Address | None:
        """The first usable address of the slice, or of the cluster when there is no slice."""
        overlay = self.get(Overlay)
        return first_usable(overlay.slice or overlay.cluster) if overlay else None

    @property
    def lack(self) -> str:
        """What has to come before anything can be asked of an overlay that is not set up."""
        known = self.get(Membership)
        if known is not None and self.get(Overlay) is None:
            return f"it comes with this node's block of cluster {known.cluster} (overlayctl cluster status)"
        return "send setup_global_overlay first"

    @property
    def slice_service(self) -> Service | None:
        """The service whose containers have their addresses from the node's own slice."""
        overlay = self.get(Overlay)
        return self.get(Service, overlay.slice_service) if overlay is not None and overlay.slice_service else None

    def pool_of(self, service: str) -> str:
        """In whose pool the addresses of a service's containers count: the service's, or the node's (GLOBAL), of which
        then only the slice is for them.
        """
        overlay = self.get(Overlay)
        return GLOBAL if overlay is not None and overlay.slice_service == service else service

    def peers(self, scope: str) -> dict[bytes, Peer]:
        """The peers of a scope by public key."""
        return self._peers.get(scope, {})

    def allowed_ips(self, scope: str) -> AllowedIPs[bytes]:
        """Who owns an allowed IP in a scope: values are public keys.  Not to be changed."""
        return self._allowed.get(scope) or AllowedIPs()

    def announcers(self, network: Network) -> Iterator[str]:
        """The keys of the rows of all peers that have an allowed IP within the network."""
        return self.announcers_within(*place(network))

    def announcers_within(self, packed: bytes, length: int) -> Iterator[str]:
        """The same of a network by the bytes of its address: to make a network of an address takes longer."""
        for scope, allowed in self._allowed.items():
            for _packed, _length, owner in allowed.within(packed, length):
                yield peer_key(scope, owner)
        free = 8 * len(packed) - length
        prefix = int.from_bytes(packed, "big") >> free
        for (scope, claimed), others in self._claimed.items():
            inside = claimed.max_prefixlen - length == free and claimed.prefixlen >= length
            if inside and int(claimed.network_address) >> free == prefix:
                yield from (peer_key(scope, other) for other in others)

    def own_networks(self) -> AllowedIPs[str]:
        """The networks that this node's containers are in: values are their names, for a person."""
        if self._own is None:
            self._own = AllowedIPs()
            overlay = self.get(Overlay)
            services = self.table(Service).values()
            own = {service.subnet: f"the subnet of service {service.name} here" for service in services}
            if overlay is not None and overlay.slice is not None:
                own[overlay.slice] = "this node's own slice"
            elif overlay is not None:
                own[ip_network(first_usable(overlay.cluster))] = "this node's own address"
            own |= dict.fromkeys(further_blocks(self.get(Membership)), "this node's own block")
            for network, name in own.items():
                self._own.insert(*place(network), name)
        return self._own

    def endpoint_in(self, network: Network, other_than: str = "") -> Peer | None:
        """A peer whose endpoint, given as an address, is in the network.  other_than: the key of the row of one that
        does not count.
        """
        found = self._endpoints.within(*place(network))
        keys = (key for _packed, _length, there in found for key in _each(there) if key != other_than)
        key = next(keys, None)
        return self.get(Peer, key) if key is not None else None

    def scopes(self) -> list[str]:
        """The scopes that have peers."""
        return list(self._allowed)

    def in_namespace(self, inode: int) -> Attachment | None:
        """The attachment of a network namespace."""
        handle = self._namespaces.get(inode)
        return self.get(Attachment, handle) if handle else None

    def sharing(self, row: Attachment) -> list[Attachment]:
        """The other attachments in the network namespace of one that is attached by it."""
        if row.file is None:
            return []
        handles = [*self._files.get(row.file.identity, ()), self._namespaces.get(row.file.inode, "")]
        found = (self.get(Attachment, handle) for handle in handles if handle not in ("", row.handle))
        return [each for each in found if each is not None]

    def of_link(self, name: str) -> Attachment | None:
        """The container's attachment whose host end has that name."""
        pid = pid_of(name)
        handle = f"pid:{pid}" if pid else self._links.get(name)
        return self.get(Attachment, handle) if handle else None

    def of_process(self, pid: int) -> Attachment | None:
        """The attachment of a namespace that this process was attached in, and has not been detached from."""
        handle = self._processes.get(pid)
        return self.get(Attachment, handle) if handle else None

    def guest(self, public_key: bytes) -> Attachment | None:
        """The attachment of the guest that has this key."""
        handle = self._guests.get(public_key)
        return self.get(Attachment, handle) if handle else None

    def names_of(self, address: Address) -> tuple[str, ...]:
        """The names that are registered for an address, in the order of registration."""
        return tuple(self._names.get(address, ()))

    def lease(self, packed: bytes) -> Lease | None:
        """The lease of an address, by its bytes: its text, which is the row's key, takes 10 us to write."""
        return self._leased.get(packed)

    def leases(self, pool: str) -> dict[Address, Lease]:
        return self._leases.get(pool, {})

    def pools(self, name: str) -> tuple[Pool, ...]:
        """The addresses of a service, or of the node (GLOBAL): of the node's slice first, and then of its further
        blocks.  Empty when there is no such subnet here.
        """
        if name and self.pool_of(name) == GLOBAL:
            return self.pools(GLOBAL)[:1]
        pools = self._pools.get(name)
        if pools is None:
            pools = self._build_pools(name)
            if pools:
                self._pools[name] = pools
        return pools

    def apply(self, change: Change) -> Change:
        """Put and remove rows.  Returns the change that takes this one back."""
        inverse: dict[RowId, Row | None] = {}
        for id, row in change.items():
            table = self._tables[id[0]]
            old = table.get(id[1])
            inverse[id] = old
            if row is None:
                table.pop(id[1], None)
            else:
                table[id[1]] = row
            index = self._indexes.get(id[0])
            if index is not None:
                index(old, row)
        return inverse

    def _index_range(self, old: Row | None, new: Row | None) -> None:
        """What of the addresses is this node's own."""
        if not isinstance(new or old, Membership) or further_blocks(old) != further_blocks(new):
            self._pools.clear()
            self._own = None

    def _index_lease(self, old: Lease | None, new: Lease | None) -> None:
        for lease in (old, new):
            if lease:
                self._leases.setdefault(lease.pool, {}).pop(lease.address, None)
                self._leased.pop(lease.address.packed, None)
        if new:
            self._leases[new.pool][new.address] = new
            self._leased[new.address.packed] = new
            self.releases = max(self.releases, new.released)
        if old and not self._leases[old.pool]:
            del self._leases[old.pool]
        moved = old is not None and new is not None and old.pool != new.pool
        for lease in (old, new):
            if lease and lease.pool in self._pools:
                if moved:
                    del self._pools[lease.pool]
                else:
                    for pool in self._pools[lease.pool]:
                        pool.update(lease.address, new)

    def _index_peer(self, old: Peer | None, new: Peer | None) -> None:
        before = old.allowed_ips if old is not None else _NONE
        after = new.allowed_ips if new is not None else _NONE
        if old:
            allowed = self._allowed[old.scope]
            for network in before - after:
                self._disown(old, network, allowed)
            del self._peers[old.scope][old.public_key]
        if new:
            allowed = self._allowed.setdefault(new.scope, AllowedIPs())
            for network in after - before:
                other = allowed.insert(*place(network), new.public_key)
                if other is not None:
                    self._claimed.setdefault((new.scope, network), []).append(other)
            self._peers.setdefault(new.scope, {})[new.public_key] = new
        elif old and not self._peers[old.scope]:
            del self._peers[old.scope], self._allowed[old.scope]
        if old is None or new is None or old.endpoint != new.endpoint:
            self._index_endpoint(old, new)

    def _disown(self, peer: Peer, network: Network, allowed: AllowedIPs[bytes]) -> None:
        """A peer no longer has an allowed IP: another that claims it, as a guest and a peer may, owns it now."""
        packed, length = place(network)
        others = self._claimed.get((peer.scope, network))
        if others and peer.public_key in others:
            others.remove(peer.public_key)
        elif allowed.exact(packed, length) == peer.public_key:
            allowed.remove(packed, length)
            if others:
                allowed.insert(packed, length, others.pop())
        if others == []:
            del self._claimed[peer.scope, network]

    def _index_endpoint(self, old: Peer | None, new: Peer | None) -> None:
        for peer, comes in ((old, False), (new, True)):
            at = numeric_endpoint(peer.endpoint) if peer else None
            if peer is None or at is None:
                continue
            packed, length, key = at[0].packed, at[0].max_prefixlen, peer.key
            there = self._endpoints.exact(packed, length)
            if not comes:
                if isinstance(there, dict):
                    there.pop(key, None)
                if there in (key, {}):
                    self._endpoints.remove(packed, length)
            elif isinstance(there, dict):
                there[key] = None
            else:
                self._endpoints.insert(packed, length, key if there in (None, key) else {there: None, key: None})

    def _index_attachment(self, old: Attachment | None, new: Attachment | None) -> None:
        if old and old.netns and self._namespaces.get(old.netns.inode) == old.handle:
            del self._namespaces[old.netns.inode]
        if new and new.netns:
            self._namespaces[new.netns.inode] = new.handle
        if old and old.file:
            there = self._files[old.file.identity]
            del there[old.handle]
            if not there:
                del self._files[old.file.identity]
        if new and new.file:
            self._files.setdefault(new.file.identity, {})[new.handle] = None
        for attachment in (old, new):
            if attachment and attachment.file:
                for leg in LEGS:
                    if attachment is new:
                        self._links[attachment.host_end(leg)] = attachment.handle
                    else:
                        self._links.pop(attachment.host_end(leg), None)
        if old:
            for process in old.processes:
                if self._processes.get(process.pid) == old.handle:
                    del self._processes[process.pid]
        if new:
            self._processes |= {process.pid: new.handle for process in new.processes}
        if old and old.public_key:
            del self._guests[old.public_key]
        if new and new.public_key:
            self._guests[new.public_key] = new.handle

    def _index_record(self, old: Record | None, new: Record | None) -> None:
        before, after = (row.addresses if row is not None else () for row in (old, new))
        for address in before:
            if old is not None and address not in after:
                del self._names[address][old.name]
                if not self._names[address]:
                    del self._names[address]
        for address in after:
            if new is not None:
                self._names.setdefault(address, {})[new.name] = None

    def _build_pools(self, name: str) -> tuple[Pool, ...]:
        overlay = self.get(Overlay)
        if name != GLOBAL:
            service = self.get(Service, name)
            if service is None:
                return ()
            pools: tuple[Pool, ...] = (Pool(service.subnet, []),)
            pools[0].reserve(first_usable(service.subnet))
        elif overlay is None:
            return ()
        else:
            shared = self.slice_service
            subnets = [service.subnet for service in self.table(Service).values() if service is not shared]
            own = overlay.slice or overlay.cluster
            further = further_blocks(self.get(Membership))
            pools = tuple(Pool(network, subnets) for network in (own, *further))
            pools[0].reserve(first_usable(own))
        for lease in self.leases(name).values():
            for pool in pools:
                pool.update(lease.address, lease)
        return pools


def _each(keys: str | dict[str, None]) -> Iterable[str]:
    return (keys,) if isinstance(keys, str) else keys


def further_blocks(membership: Row | None) -> tuple[Network, ...]:
    """The blocks of a cluster that this node claimed when the first one was full, for addresses and for services."""
    return membership.blocks[1:] if isinstance(membership, Membership) else ()


class Draft:
    """A change in the making: reads see the state with the rows put so far.  Nothing touches the state."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.rows: dict[RowId, Row | None] = {}

    def get(self, kind: type[R], key: str = "") -> R | None:
        id = (kind.table, key)
        if id in self.rows:
            return cast(R | None, self.rows[id])
        return self.state.get(kind, key)

    def all(self, kind: type[R]) -> Iterator[R]:
        """Every row of a type, with this draft's changes."""
        for key, row in self.state.table(kind).items():
            if (kind.table, key) not in self.rows:
                yield row
        for (table, _), changed in self.rows.items():
            if table == kind.table and changed is not None:
                yield cast(R, changed)

    def departing(self, kind: type[R]) -> Iterator[R]:
        """The rows of a type that changes under way replace or remove: what they hold is not free yet."""
        return (cast(R, row) for (table, _), row in self.state.departing.items() if table == kind.table)

    def put(self, row: Row) -> None:
        """Add or replace a row; putting what is there already changes nothing."""
        id = row.id
        if self.state.get(type(row), id[1]) == row:
            self.rows.pop(id, None)
        else:
            self.rows[id] = row

    def drop(self, row: Row) -> None:
        if self.state.get(type(row), row.key) is None:
            self.rows.pop(row.id, None)
        else:
            self.rows[row.id] = None

    def peer(self, scope: str, public_key: bytes) -> Peer | None:
        return self.get(Peer, peer_key(scope, public_key))

    def owner(self, scope: str, network: Network) -> Peer | None:
        """The peer that has exactly this allowed IP."""
        key = self.state.allowed_ips(scope).exact(*place(network))
        if key is None:
            return None
        peer = self.peer(scope, key)
        # Only a peer that this draft has changed may have lost it.
        changed = peer is not None and peer.id in self.rows
        return peer if peer is not None and (not changed or network in peer.allowed_ips) else None
