"""Which names this node answers for, and with what.

Owns: Record rows; what registered names, the zones and the cluster's reverse zones come to in the table of names.
Must not know: DNS messages (`_fast.nametable` writes them), sockets, or who asks.

A name that was registered as one label is also a name of the zone: `web` is `web.overlay.local` too, unless somebody
registered that.  A change costs the names it touches.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from overlayd._fast.dnsquery import SECRET, wire_name
from overlayd._fast.nametable import NameTable
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.rows import Attachment, Change, Overlay, Record, Service
from overlayd.model.state import Draft, State
from overlayd.model.subnets import first_usable

OCTET, NIBBLE = 8, 4  # bits of a label of a reverse name, RFC 1035 section 3.5 and RFC 3596 section 2.5


def register(draft: Draft, name: str, address: Address) -> None:
    """Let a name stand for an address, and for no other."""
    draft.put(Record(name=name, address=address))


def unregister(draft: Draft, name: str) -> None:
    """Forget a name; an unknown one is no error."""
    record = draft.get(Record, name)
    if record is not None:
        draft.drop(record)


class Zone:
    """The names of a node, kept up with its state.  table: what answers queries.  name: the zone of one-label names.
    secret: for the table's cookies.
    """

    def __init__(self, state: State, name: str, secret: bytes = bytes(SECRET)) -> None:
        self.table = NameTable(secret)
        self.name = name
        self._state = state
        self._registered: dict[str, Address] = {}
        self._names_of: dict[Address, dict[str, None]] = {}  # in the order of registration
        self._domains: dict[str, str] = {}  # by the handle of the attachment
        self._members = Counter([name])  # how many attachments have a domain; the zone itself counts as one
        self._cluster: Network | None = None
        self.table.add_zone(wire_name(name))
        for kind in (Overlay, Attachment, Record):
            self.follow({row.id: row for row in state.table(kind).values()})

    def follow(self, change: Change) -> None:
        """Take over a change that the state has seen already."""
        for (table, key), row in change.items():
            if table == Record.table:
                self._register(key, row.address if isinstance(row, Record) else None)
            elif table == Attachment.table:
                self._set_domain(key, row.dns_domain if isinstance(row, Attachment) else "")
            elif table == Overlay.table:
                self._set_cluster(row.cluster if isinstance(row, Overlay) else None)

    def _register(self, name: str, address: Address | None) -> None:
        old = self._registered.pop(name, None)
        if address is not None:
            self._registered[name] = address
        for alias in (name, *self._aliases(name)):
            now = self._address(alias)
            self.table.set_addresses(wire_name(alias), () if now is None else (now.packed,))
        for touched in {old, address}:
            if touched is None:
                continue
            names = self._names_of.setdefault(touched, {})
            if touched == address:
                names[name] = None
            else:
                del names[name]
            self.table.set_pointers(
                wire_name(touched.reverse_pointer),
                tuple(wire_name(self._whole(each)) for each in names),
                touched.packed,
            )
            if not names:
                del self._names_of[touched]

    def _address(self, name: str) -> Address | None:
        """The address of a name: its own, or that of the one label before the zone."""
        label, _, zone = name.partition(".")
        return self._registered.get(name) or (self._registered.get(label) if zone == self.name else None)

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
            self._members[domain] += 1
            self.table.add_zone(wire_name(domain))
        if old:
            self._members[old] -= 1
            if not self._members[old]:
                del self._members[old]
                self.table.remove_zone(wire_name(old))

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
