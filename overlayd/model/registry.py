"""The other nodes of a cluster, put together from the records of its store, and the peers that they make.

Owns: which nodes there are, whose a key and a block is, which peer a node is, and what a listing may not remove.  Must
not know: the form of records (`cluster_records`), the journal, the store's protocol, time.

Of two records that claim one block, or one key, the older has it: who writes a record, by mistake or by intent,
takes nothing from another node.  And what of a listing would remove many nodes at once is withheld until somebody
accepts it, or the nodes return: it is more likely that the store was lost than that the nodes were.

A node numbers its records, so that one which a backup brought back is known for older than what is known here, and is
passed over until the node puts another.  Its names are as new as its record, with which they are put.
"""

from collections.abc import Iterable
from itertools import count, islice

from msgspec.structs import replace

from overlayd.model import blocks
from overlayd.model.cluster_records import LARGEST_SEQ, NAMES, NODE, BadRecord, names_key, read_names, read_node
from overlayd.model.endpoints import nobodys
from overlayd.model.objects import GLOBAL, Network
from overlayd.model.rows import Change, Member, MemberNames, Peer, Row, RowId, numeric_endpoint

# From the specification (cluster.md).
KEEPALIVE = 25  # seconds, towards and from nodes behind a NAT
MOST_NODES = 20_000
GUARDED_FROM = 10  # so many nodes that half of them do not go by chance

OLDER = "the store has an older one than is known here: passed over until its node puts another"


class Registry:
    """The nodes beside `own`, and what `take` has not yet told of them.

    own_blocks: which nobody else can have here.  own_nat: whether this node is behind a NAT.  faults: by the key of the
    record, what is not believed of it.  withheld: nodes that a listing lacks, and that stay for now; disputed: nodes of
    which a store that went back has another installation than is known here, or one that has what is another's by now;
    older: nodes of which it has an older record, until they put another.
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
        self.disputed: set[str] = set()
        self.older: set[str] = set()
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
        """Note that these blocks are this node's."""
        changed = self.own_blocks ^ frozenset(own_blocks)
        self.own_blocks = frozenset(own_blocks)
        for block in changed:
            self._touched |= dict.fromkeys(self._claims.get(block, ()))

    @property
    def guarded(self) -> bool:
        """Whether something is kept that a person may have to decide about."""
        return bool(self.withheld or self.disputed)

    def put(self, key: str, value: bytes, created: int, *, doubted: bool = False) -> None:
        """A record was put; that of a node comes before its names.  created: the store's revision at which its key
        came.  doubted: the store went back, and this may be of before.
        """
        try:
            if key.startswith(NODE):
                self._put_node(key.removeprefix(NODE), value, created, doubted)
            elif key.startswith(NAMES):
                self._put_names(key.removeprefix(NAMES), value)
        except BadRecord as error:
            self.faults[key] = str(error)
        else:
            self.faults.pop(key, None)

    def remove(self, key: str) -> None:
        """A record was removed, by somebody's decision."""
        self.faults.pop(key, None)
        if key.startswith(NODE):
            self._displace(key.removeprefix(NODE))
        elif key.startswith(NAMES):
            self._drop_part(key.removeprefix(NAMES))

    def is_contested(self, key: str) -> bool:
        """Whether somebody else claims something of the node whose record this is."""
        member = self._members.get(key.removeprefix(NODE)) if key.startswith(NODE) else None
        if member is None:
            return False
        return any(each in self.own_blocks or len(self._claims[each]) > 1 for each in _claimed(member))

    def complete(self, listed: Iterable[str], *, keep: bool) -> None:
        """These are the keys of all records that there are, each of which was put.  keep: no node goes that is not
        among them, however few these are.
        """
        keys = set(listed)
        for key in self.faults.keys() - keys:
            del self.faults[key]
        self.disputed = {name for name in self.disputed if NODE + name in keys}
        self.older = {name for name in self.older if NODE + name in keys}
        gone = {name for name in self._members if NODE + name not in keys}
        many = len(self._members) >= GUARDED_FROM and len(gone) * 2 > len(self._members)
        self.withheld = gone if keep or many else gone & self.withheld
        for name in gone - self.withheld:
            self._displace(name)
        kept = self.withheld | self.disputed | self.older
        for part in [part for part in self._parts if NAMES + part not in keys]:
            if part.partition("/")[0] not in kept:
                self._drop_part(part)

    @property
    def pending(self) -> bool:
        """Whether `take` has more to tell."""
        return bool(self._touched or self._changed)

    def accept(self) -> list[str]:
        """Let go of what was withheld; the next listing tells of what is disputed.  Returns the names of these
        nodes.
        """
        going = sorted(self.withheld)
        self.disputed.clear()
        for name in going:
            self._displace(name)
            self._drop_parts(name)
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

    def _put_node(self, name: str, value: bytes, created: int, doubted: bool) -> None:
        if name == self.own:
            return
        member = read_node(name, value, created)
        known = self._members.get(name)
        same = known is not None and known.instance == member.instance
        if known is not None and same and member.seq < known.seq < LARGEST_SEQ:
            self._return(name)
            self.older.add(name)
            self._touched[name] = None
            return
        if doubted and not same and (known is not None or self._is_taken(member)):
            self._return(name)
            self.disputed.add(name)
            return
        if known is None and len(self._members) >= MOST_NODES:
            raise BadRecord(f"there are {MOST_NODES} nodes already, as many as a cluster may have")
        if self._return(name) and member.seq:  # its names follow
            self._drop_parts(name)
        if member != known:
            self._displace(name)
            self._place(member)
            self._changed[member.id] = member

    def _return(self, name: str) -> bool:
        """The store has a record of a node; returns whether it lacked it, or had none that counts."""
        kept = name in self.withheld or name in self.disputed or name in self.older
        for names in (self.withheld, self.disputed, self.older):
            names.discard(name)
        if kept:
            self._touched[name] = None
        return kept

    def _is_taken(self, member: Member) -> bool:
        """Whether something of it is another's."""
        return any(each in self._claims or each in self.own_blocks for each in _claimed(member))

    def _place(self, member: Member) -> None:
        self._members[member.name] = member
        for thing in _claimed(member):
            self._claim(thing)[member.name] = member.created
        self._touched[member.name] = None

    def _displace(self, name: str) -> None:
        for names in (self.withheld, self.disputed, self.older):
            names.discard(name)
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
        """Those who claim a block or a key.  A claim is touched by what becomes of another claim on the same."""
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
        faults = [OLDER] if name in self.older else []
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
        if at is not None and (nobody := nobodys(at[0])):
            faults.append(f"its endpoint {endpoint} {nobody}: not taken")
            endpoint = ""
        elif at is not None and at[0] in self._cidr:
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
        """Take this node's key, perhaps another than before."""
        if own_key == self._own_key:
            return
        for key in (self._own_key, own_key):
            self._touched |= dict.fromkeys(self._claims.get(key, ()))
        self._own_key = own_key

    # --- names --------------------------------------------------------------------------------------------------------

    def _put_names(self, part: str, value: bytes) -> None:
        node = part.partition("/")[0]
        if node == self.own or node in self.disputed or node in self.older:
            return
        row = read_names(part, value)
        if row != self._parts.get(part):
            self._parts[part] = row
            self._changed[row.id] = row

    def _drop_part(self, part: str) -> None:
        row = self._parts.pop(part, None)
        if row is not None:
            self._changed[row.id] = None

    def _drop_parts(self, node: str) -> None:
        for number in count():
            part = names_key(node, number).removeprefix(NAMES)
            if part not in self._parts:
                break
            self._drop_part(part)


def _claimed(member: Member) -> tuple[Network | bytes, ...]:
    """What nobody else may have."""
    soon = (member.next_key,) if member.next_key else ()
    return (*dict.fromkeys((member.public_key, *soon)), *member.blocks)
