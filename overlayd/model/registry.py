"""The other nodes of a cluster, put together from the records of its store, and the peers that they make.

Owns: which nodes there are, whose a key and a block is, which peer a node is, and what a listing may not remove.  Must
not know: the form of records (`cluster_records`), the journal, the store's protocol, time.

Of two records that claim one block, or one key, the older has it: whoever writes a record, by mistake or by intent,
takes nothing from another node.  And what of a listing would remove many nodes at once is withheld until somebody
accepts it, or the nodes return: it is more likely that the store was lost than that the nodes were.  So is what a store
that went back to a backup has of nodes that are known: each tells of itself anew.
"""

from collections.abc import Iterable, Mapping
from itertools import islice

from msgspec.structs import replace

from overlayd.model import blocks
from overlayd.model.cluster_records import NAMES, NODE, BadRecord, read_names, read_node
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Change, Member, MemberNames, Peer, Row, RowId, numeric_endpoint

# From the specification (cluster.md).
KEEPALIVE = 25  # seconds, towards and from nodes behind a NAT
MOST_NODES = 20_000
GUARDED_FROM = 10  # so many nodes that half of them do not go by chance


class Registry:
    """The nodes beside `own`, and what `take` has not yet told of them.

    own_blocks: which nobody else can have here.  own_nat: whether this node is behind a NAT.  faults: by the key of the
    record, what is not believed of it.  withheld: nodes that a listing lacks, and that stay for now; outdated: keys of
    records that are older in a restored store than what is known here, which stays as well.
    """

    def __init__(
        self,
        own: str,
        own_key: bytes,
        cidr: Network,
        block_prefix: int,
        *,
        members: Iterable[Member] = (),
        names: Iterable[MemberNames] = (),
        peers: Iterable[Peer] = (),
    ) -> None:
        self.own = own
        self.own_blocks: frozenset[Network] = frozenset()
        self.faults: dict[str, str] = {}
        self.withheld: set[str] = set()
        self.outdated: set[str] = set()
        self._own_key = own_key
        self._own_nat = False
        self._cidr = cidr
        self._block_prefix = block_prefix
        self._members: dict[str, Member] = {}
        self._parts: dict[str, MemberNames] = {}
        self._peers: dict[str, tuple[Peer, ...]] = {}
        for peer in peers:
            if peer.member:
                self._peers[peer.member] = (*self._peers.get(peer.member, ()), peer)
        self._claims: dict[Network | bytes, dict[str, int]] = {}  # who wants it, and since which revision
        self._touched: dict[str, None] = {}
        self._changed: dict[RowId, Row | None] = {}
        for member in members:
            self._place(member)
        for part in names:
            self._parts[part.part] = part
        self._touched |= dict.fromkeys(self._peers)  # of a member that is gone, if the last start ended between the two

    def __len__(self) -> int:
        return len(self._members)

    def member(self, name: str) -> Member | None:
        return self._members.get(name)

    def members(self) -> Iterable[Member]:
        return self._members.values()

    @property
    def own_nat(self) -> bool:
        return self._own_nat

    @own_nat.setter
    def own_nat(self, behind: bool) -> None:
        if behind != self._own_nat:
            self._own_nat = behind
            self._touched |= dict.fromkeys(self._members)

    def claim_for_ourselves(self, own_blocks: Iterable[Network]) -> None:
        """These blocks are this node's."""
        changed = self.own_blocks ^ frozenset(own_blocks)
        self.own_blocks = frozenset(own_blocks)
        for block in changed:
            self._touched |= dict.fromkeys(self._claims.get(block, ()))

    def put(self, key: str, value: bytes, created: int, *, restored: bool = False) -> None:
        """A record was put.  created: the store's revision at which its key came.  restored: it is of a backup that was
        put back, and may be older than what is known.
        """
        try:
            if key.startswith(NODE):
                self._put_node(key.removeprefix(NODE), value, created, restored)
            elif key.startswith(NAMES):
                self._put_names(key.removeprefix(NAMES), value, restored)
        except BadRecord as error:
            self.faults[key] = str(error)
        else:
            self.faults.pop(key, None)

    def remove(self, key: str) -> None:
        """A record was removed, by somebody's decision."""
        self.faults.pop(key, None)
        self.outdated.discard(key)
        if key.startswith(NODE):
            self._displace(key.removeprefix(NODE))
        elif key.startswith(NAMES):
            self._drop_part(key.removeprefix(NAMES))

    def is_of_another_history(self, created: Mapping[str, int], revision: int) -> bool:
        """Whether a listing tells of another past than the one that is known: of a store that was lost and filled anew
        while this node was away.  created: of the nodes in it; revision: up to which the past is known.
        """
        anew = [at for name, at in created.items() if name in self._members and self._members[name].created != at]
        most = len(self._members) >= GUARDED_FROM and len(anew) * 2 > len(self._members)
        new = [at for name, at in created.items() if self._is_new(name)]
        return most or any(at <= revision for at in (*anew, *new))

    def _is_new(self, name: str) -> bool:
        """Whether nothing was known of a node, not even a record that cannot be read."""
        return name not in self._members and name != self.own and NODE + name not in self.faults

    def complete(self, listed: Iterable[str], *, keep: bool, restored: bool = False) -> None:
        """These are the keys of all records that there are, each of which was put.  keep: no node goes that is not
        among them, however few these are; restored: no names either.
        """
        keys = set(listed)
        lacking = self.outdated - keys
        self.outdated &= keys
        for key in self.faults.keys() - keys:
            del self.faults[key]
        gone = {name for name in self._members if NODE + name not in keys}
        many = len(self._members) >= GUARDED_FROM and len(gone) * 2 > len(self._members)
        self.withheld = gone if keep or many else gone & self.withheld
        for name in gone - self.withheld:
            self._displace(name)
        for part in [part for part in self._parts if NAMES + part not in keys]:
            if restored or NAMES + part in lacking:
                self.outdated.add(NAMES + part)
            elif part.partition("/")[0] not in self.withheld:
                self._drop_part(part)

    @property
    def pending(self) -> bool:
        """Whether `take` has more to tell."""
        return bool(self._touched or self._changed)

    def accept(self) -> list[str]:
        """What was withheld goes; of what is outdated the next listing tells.  Returns the names of these nodes."""
        going = sorted(self.withheld)
        self.outdated.clear()
        for name in going:
            self._displace(name)
            for part in [part for part in self._parts if part.partition("/")[0] == name]:
                self._drop_part(part)
        return going

    def take(self, most: int = 1_000_000) -> Change:
        """The rows that have changed since the last time: members, their names, and the peers that they are.  most: of
        nodes; empty when nothing has changed.
        """
        change, self._changed = self._changed, {}
        for name in list(islice(self._touched, most)):
            del self._touched[name]
            old, new = self._peers.pop(name, ()), self._peers_of(name)
            if new:
                self._peers[name] = new
            there = {peer.id for peer in new}
            for peer in old:
                if peer.id not in there:
                    change.setdefault(peer.id, None)
            change |= {peer.id: peer for peer in new if peer not in old}
        return change

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _put_node(self, name: str, value: bytes, created: int, restored: bool) -> None:
        if name == self.own:
            return
        member = read_node(name, value, created)
        known = self._members.get(name)
        if known is not None:
            is_old = replace(known, created=created) != member
        else:  # it was removed since, and what it had may be another's by now
            is_old = any(each in self._claims or each in self.own_blocks for each in _claimed(member))
        if restored and is_old:
            self.outdated.add(NODE + name)
            return
        self.outdated.discard(NODE + name)
        if name not in self._members and len(self._members) >= MOST_NODES:
            raise BadRecord(f"there are {MOST_NODES} nodes already, as many as a cluster may have")
        self.withheld.discard(name)
        if member != self._members.get(name):
            self._displace(name)
            self._place(member)
            self._changed[member.id] = member

    def _place(self, member: Member) -> None:
        self._members[member.name] = member
        for thing in _claimed(member):
            self._claim(thing)[member.name] = member.created
        self._touched[member.name] = None

    def _displace(self, name: str) -> None:
        self.withheld.discard(name)
        member = self._members.pop(name, None)
        if member is None:
            return
        for thing in _claimed(member):
            claims = self._claim(thing)
            claims.pop(name, None)
            if not claims:
                del self._claims[thing]
        self._touched[name] = None
        self._changed[member.id] = None

    def _claim(self, thing: Network | bytes) -> dict[str, int]:
        """Those who claim a block or a key.  Whoever claims it beside another is touched by what becomes of that."""
        claims = self._claims.setdefault(thing, {})
        self._touched |= dict.fromkeys(claims)
        return claims

    def _owner(self, thing: Network | bytes) -> str:
        claims = self._claims[thing]
        return min(claims, key=lambda name: (claims[name], name)) if len(claims) > 1 else next(iter(claims))

    def _peers_of(self, name: str) -> tuple[Peer, ...]:
        """The peer that a member is; and the one that it will be soon, so that its first handshake is answered."""
        member = self._members.get(name)
        if member is None:
            return ()
        faults: list[str] = []
        peer = self._believed(member, faults)
        soon = member.next_key
        if soon and soon != member.public_key and (soon == self._own_key or self._owner(soon) != name):
            faults.append("its next key is another node's: not expected")
            soon = b""
        if faults:
            self.faults[NODE + name] = "; ".join(faults)
        else:
            self.faults.pop(NODE + name, None)
        if peer is None:
            return ()
        if not soon or soon == member.public_key:
            return (peer,)
        return (peer, replace(peer, public_key=soon, keepalive=0, listed=(), candidates=(), name=f"{name} (next key)"))

    def _believed(self, member: Member, faults: list[str]) -> Peer | None:
        """The peer that a member is, and what is not believed of it."""
        if member.public_key == self._own_key:
            faults.append("its key is this node's own: no peer")
            return None
        if (owner := self._owner(member.public_key)) != member.name:
            faults.append(f"its key is that of node {owner}, whose record is older: no peer")
            return None
        allowed = []
        for block in member.blocks:
            if not blocks.is_block(block, self._cidr, self._block_prefix):
                faults.append(f"{block} is no /{self._block_prefix} block of {self._cidr}: not routed to it")
            elif block in self.own_blocks:
                faults.append(f"block {block} is this node's own: not routed to it")
            elif (owner := self._owner(block)) != member.name:
                faults.append(f"block {block} is that of node {owner}, whose record is older: not routed to it")
            else:
                allowed.append(block)
        endpoint = member.endpoint
        at = numeric_endpoint(endpoint) if endpoint else None
        if at is not None and at[0] in self._cidr:
            faults.append(f"its endpoint {endpoint} is inside {self._cidr}: the tunnel would be led into itself")
            endpoint = ""
        return Peer(
            scope=GLOBAL,
            public_key=member.public_key,
            endpoint=endpoint,
            keepalive=KEEPALIVE if member.nat or self._own_nat else 0,
            listed=tuple(allowed),
            candidates=member.candidates,
            name=member.name,
            member=member.name,
        )

    def turn(self, own_key: bytes) -> None:
        """This node's key is this one, perhaps another than before."""
        if own_key == self._own_key:
            return
        for key in (self._own_key, own_key):
            self._touched |= dict.fromkeys(self._claims.get(key, ()))
        self._own_key = own_key

    # --- names --------------------------------------------------------------------------------------------------------

    def _put_names(self, part: str, value: bytes, restored: bool) -> None:
        node = part.partition("/")[0]
        if node == self.own:
            return
        row = read_names(part, value)
        if restored and part in self._parts and row != self._parts[part]:
            self.outdated.add(NAMES + part)
            return
        if not restored:  # it has told of all its names, each part anew
            for key in [key for key in self.outdated if key.removeprefix(NAMES).partition("/")[0] == node]:
                self.outdated.remove(key)
                if key != NAMES + part:
                    self._drop_part(key.removeprefix(NAMES))
        if row != self._parts.get(part):
            self._parts[part] = row
            self._changed[row.id] = row

    def _drop_part(self, part: str) -> None:
        row = self._parts.pop(part, None)
        if row is not None:
            self._changed[row.id] = None


def _claimed(member: Member) -> tuple[Network | bytes, ...]:
    """What nobody else may have."""
    soon = (member.next_key,) if member.next_key else ()
    return (*dict.fromkeys((member.public_key, *soon)), *member.blocks)
