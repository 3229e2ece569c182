"""Which names this node answers for, and with what.

Owns: what registered names, the zones and the cluster's reverse zones come to in the table of names, and which
addresses are whose there: the node's own, and those of an isolation network's members, which only they and the node
hear of.
Must not know: DNS messages (`_fast.nametable` writes them), sockets, or who asks.

A name may be registered here, and told of by other nodes of a cluster: then it has all of these addresses.

A name that was registered as one label is also a name of the zone: `web` is `web.overlay.local` too, unless somebody
registered that.  A change costs the names it touches.  The zone is the one that this node was given, or that of its
cluster, which may change.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice

from overlayd._fast.dnsquery import SECRET, wire_name
from overlayd._fast.nametable import MAX_ADDRESSES, MAX_POINTERS, NameTable
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.rows import Attachment, Change, Isolation, MemberNames, Membership, Overlay, Record, Service
from overlayd.model.state import State
from overlayd.model.subnets import first_usable

LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))  # RFC 6303: their reverse names concern nobody else
# No server outside is to be asked: RFC 6761 section 6.4, RFC 7686 section 2, RFC 9462 section 6.4.  By the last two a
# client learns of encrypted servers: those of an upstream do not know our names.
NOBODYS = ("invalid", "onion", "resolver.arpa", "_dns.resolver.arpa")
NODE_GROUP = 0  # of the node's own addresses; isolation networks count from 1
DEFAULT = "overlay.local"  # a zone that nobody chose
OCTET, NIBBLE = 8, 4  # bits of a label of a reverse name, RFC 1035 section 3.5 and RFC 3596 section 2.5


class Zone:
    """The names of a node, kept up with its state.  table: what answers queries.  given: the zone of one-label names,
    empty for that of the cluster; name: the zone that it is now.  secret: for the table's cookies.
    """

    def __init__(self, state: State, given: str = "", secret: bytes = bytes(SECRET)) -> None:
        self.table = NameTable(secret)
        self._given = given
        self.name = name = given or DEFAULT
        self._state = state
        self._registered: dict[str, tuple[Address, ...]] = {}
        self._told: dict[str, dict[str, tuple[Address, ...]]] = {}  # names that other nodes serve: by whom, "" for us
        self._parts: dict[str, dict[str, tuple[Address, ...]]] = {}  # what each of them tells
        self._names_of: dict[Address, dict[str, None]] = {}  # in the order of registration
        self._own: dict[str, Address] = {}  # by scope
        self._of_member: dict[str, tuple[Address, ...]] = {}  # by the handle of the attachment
        self._domains: dict[str, str] = {}  # by the handle of the attachment
        self._members: Counter[str] = Counter()  # how many attachments have a domain; the zone itself counts as one
        self._cluster: Network | None = None
        for zone in (name, *NOBODYS):
            self._add_zone(zone)
        for address in LOOPBACK:
            self.table.set_pointers(wire_name(address.reverse_pointer), (wire_name("localhost"),), address.packed)
        for kind in (Membership, Overlay, Service, Attachment, Record, MemberNames):
            self.follow({row.id: row for row in state.table(kind).values()})

    def follow(self, change: Change) -> None:
        """Take over a change that the state has seen already."""
        for (table, key), row in change.items():
            if table == Record.table:
                self._tell("", key, row.addresses if isinstance(row, Record) else ())
            elif table == MemberNames.table:
                self._take_part(key, row.names if isinstance(row, MemberNames) else {})
            elif table == Attachment.table:
                attachment = row if isinstance(row, Attachment) else None
                self._set_domain(key, attachment.dns_domain if attachment is not None else "")
                self._set_member(key, attachment)
            elif table == Service.table:
                self._set_own(key, first_usable(row.subnet) if isinstance(row, Service) else None)
            elif table == Overlay.table:
                self._set_cluster(row.cluster if isinstance(row, Overlay) else None)
                self._set_own(GLOBAL, self._state.node_address if row is not None else None)
            elif table == Membership.table and not self._given:
                self._rename((row.zone if isinstance(row, Membership) else "") or DEFAULT)

    def names(self) -> dict[str, tuple[Address, ...]]:
        """Every name that is registered here or told of by now, and its addresses."""
        return self._registered.copy()

    def _take_part(self, part: str, names: dict[str, tuple[Address, ...]]) -> None:
        """What another node tells of names."""
        old = self._parts.pop(part, {})
        if names:
            self._parts[part] = names
        for name in {**old, **names}:
            if old.get(name) != names.get(name):
                self._tell(part, name, names.get(name, ()))

    def _tell(self, part: str, name: str, addresses: tuple[Address, ...]) -> None:
        """A name has these addresses by what one node tells; "" is this one."""
        told = self._told.get(name)
        if told is None and part:
            told = self._told[name] = {"": self._registered.get(name, ())}
        if told is not None:
            told[part] = addresses
            if part and not addresses:
                del told[part]
            if told.keys() == {""}:
                del self._told[name]
            every = dict.fromkeys(address for each in ("", *sorted(told.keys() - {""})) for address in told[each])
            addresses = tuple(every)[:MAX_ADDRESSES]
        self._register(name, addresses)

    def _register(self, name: str, addresses: tuple[Address, ...]) -> None:
        old = self._registered.pop(name, ())
        if addresses:
            self._registered[name] = addresses
        for alias in (name, *self._aliases(name)):
            self.table.set_addresses(wire_name(alias), tuple(each.packed for each in self._addresses(alias)))
        for touched in {*old} ^ {*addresses}:
            names = self._names_of.setdefault(touched, {})
            if touched in addresses:
                names[name] = None
            else:
                del names[name]
            self._point(touched)
            if not names:
                del self._names_of[touched]

    def _point(self, address: Address) -> None:
        """The names of an address are what they are by now."""
        some = islice(self._names_of[address], MAX_POINTERS)  # an address may have as many names as there are
        names = tuple(wire_name(self._whole(each)) for each in some)
        self.table.set_pointers(wire_name(address.reverse_pointer), names, address.packed)

    def _rename(self, name: str) -> None:
        """The zone has another name."""
        if name == self.name:
            return
        labels = [each for each in self._registered if "." not in each]
        aliases = [alias for each in labels for alias in self._aliases(each)]
        old, self.name = self.name, name
        self._add_zone(name)
        self._remove_zone(old)
        for alias in (*aliases, *(alias for each in labels for alias in self._aliases(each))):
            self.table.set_addresses(wire_name(alias), tuple(each.packed for each in self._addresses(alias)))
        for address in dict.fromkeys(address for each in labels for address in self._registered[each]):
            self._point(address)

    def _addresses(self, name: str) -> tuple[Address, ...]:
        """The addresses of a name: its own, or those of the one label before the zone."""
        label, _, zone = name.partition(".")
        return self._registered.get(name) or (self._registered.get(label, ()) if zone == self.name else ())

    def _set_own(self, scope: str, address: Address | None) -> None:
        """The node has an address, or no more."""
        old = self._own.pop(scope, None)
        if old is not None and old not in self._own.values():
            self.table.set_group(old.packed, None)
        if address is not None:
            self._own[scope] = address
            self.table.set_group(address.packed, NODE_GROUP)

    def _set_member(self, handle: str, attachment: Attachment | None) -> None:
        """An attachment is a member of an isolation network, or of none."""
        for address in self._of_member.pop(handle, ()):
            self.table.set_group(address.packed, None)
        network = self._state.get(Isolation, attachment.isolation_network) if attachment is not None else None
        if attachment is not None and network is not None:
            both = (attachment.address, attachment.global_address)
            self._of_member[handle] = tuple(each for each in both if each is not None)
            for address in self._of_member[handle]:
                self.table.set_group(address.packed, network.number)

    def _aliases(self, name: str) -> Iterator[str]:
        """The other name that a one-label name answers to."""
        whole = self._whole(name)
        if whole != name:
            yield whole

    def _whole(self, name: str) -> str:
        """A one-label name with the zone, if both together can be a name; any other name as it is."""
        whole = f"{name}.{self.name}"
        return whole if "." not in name and len(whole) <= 253 else name

    def _set_domain(self, handle: str, domain: str) -> None:
        old = self._domains.pop(handle, "")
        if domain:
            self._domains[handle] = domain
            self._add_zone(domain)
        if old:
            self._remove_zone(old)

    def _add_zone(self, name: str) -> None:
        self._members[name] += 1
        self.table.add_zone(wire_name(name))

    def _remove_zone(self, name: str) -> None:
        self._members[name] -= 1
        if not self._members[name]:
            del self._members[name]
            self.table.remove_zone(wire_name(name))

    def _set_cluster(self, cluster: Network | None) -> None:
        old, self._cluster = self._cluster, cluster
        if old != cluster:
            for name in reverse_zones(old) if old is not None else ():
                self.table.remove_zone(wire_name(name))
            for name in reverse_zones(cluster) if cluster is not None else ():
                self.table.add_zone(wire_name(name))


def reverse_zones(network: Network) -> Iterable[str]:
    """The zones that hold the reverse names of a network and of nothing else: more than one where its prefix ends
    within a label.
    """
    bits = OCTET if network.version == 4 else NIBBLE
    labels = -(-network.prefixlen // bits)
    for subnet in network.subnets(new_prefix=labels * bits):
        names = subnet.network_address.reverse_pointer.split(".")
        yield ".".join(names[network.max_prefixlen // bits - labels :])


def served_address(state: State, scope: str, *, devices: bool) -> Address | None:
    """Where a service's containers find this node's name server: at its gateway; for GLOBAL the node address.  None
    while the address is on no link of ours.  devices: a WireGuard backend is there.
    """
    if scope == GLOBAL:
        return state.node_address if devices and state.overlay is not None else None
    service = state.get(Service, scope)
    return first_usable(service.subnet) if service is not None else None
