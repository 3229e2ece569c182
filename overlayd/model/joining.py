"""How a node becomes a member of a cluster, and how news of the cluster become rows.

Owns: the Membership row from the first start to the leave, and the Member, MemberNames and cluster's Peer rows.  Must
not know: the store, or when news come; what they come to is `registry`'s.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from overlayd.errors import RequestError
from overlayd.model import peers
from overlayd.model.cluster_records import LARGEST_SEQ, Config
from overlayd.model.objects import Network
from overlayd.model.rows import Change, Member, MemberNames, Membership, Peer, peer_of
from overlayd.model.state import Draft


def begin(draft: Draft, cluster: str, node: str, instance: str, machine: str) -> Membership:
    """Remember who we are to be in a cluster, before anything of it is asked for.  RequestError: this data directory is
    a member of another one.
    """
    known = draft.get(Membership)
    if known is None:
        known = Membership(cluster=cluster, node=node, instance=instance, machine=machine)
    elif known.cluster != cluster:
        raise RequestError(
            f"this node is in cluster {known.cluster}, not {cluster}: leave that first (overlayctl cluster leave), or "
            "start with --cluster " + known.cluster
        )
    elif known.node != node:
        if known.blocks:
            raise RequestError(
                f"this node is {known.node} in cluster {cluster}, not {node}: leave first (overlayctl cluster leave), "
                f"or start with --node {known.node}"
            )
        known = replace(known, node=node)
    known = replace(known, machine=machine)
    draft.put(known)
    return known


def learned(known: Membership, config: Config) -> Membership:
    """With how the cluster was made, and what can be set in it.  Its numbering does not change under our blocks."""
    numbering = (config.cidr, config.block_prefix, config.service_share)
    cidr, block_prefix, service_share = _numbering(known) if known.blocks else numbering
    return replace(
        known,
        cluster_id=config.id,
        cidr=cidr,
        block_prefix=block_prefix,
        service_share=service_share,
        zone=config.zone,
        node_ttl=config.node_ttl_secs,
        rate=config.rate,
    )


def renumbered(known: Membership, config: Config) -> str:
    """What the store says of the cluster's numbering that is not so: it was made once, and our blocks are of that.
    Empty when nothing is.
    """
    if not known.blocks or _numbering(known) == (config.cidr, config.block_prefix, config.service_share):
        return ""
    return (
        f"it has {config.cluster_cidr} in blocks of /{config.block_prefix} (service_share {config.service_share}), and "
        f"the cluster was made with {known.cidr} in blocks of /{known.block_prefix} (service_share "
        f"{known.service_share}), which nodes hold: that goes on, and whoever joins now is not reached; put that back"
    )


def _numbering(known: Membership) -> tuple[Network | None, int, int]:
    return known.cidr, known.block_prefix, known.service_share


def learn(draft: Draft, config: Config) -> None:
    """Remember how the cluster was made, and what can be set in it."""
    draft.put(learned(require(draft), config))


def hold(draft: Draft, held: Sequence[Network]) -> None:
    """Remember which blocks are ours; to be on disk before one of them is used."""
    draft.put(replace(require(draft), blocks=tuple(held)))


def raise_seq(draft: Draft, stored: int, now: int) -> int:
    """The number of what we put in the store next; to be on disk before it is put.  stored: that of our record there;
    now: Unix seconds, so that the numbers go on behind what was told even if journal and store were both put back, and
    to begin with again behind a number that somebody else wrote.
    """
    known = require(draft)
    seq = max(number for number in (known.seq + 1, stored + 1, now) if number < LARGEST_SEQ)
    draft.put(replace(known, seq=seq))
    return seq


def require(draft: Draft) -> Membership:
    """RequestError when this node is in no cluster."""
    known = draft.get(Membership)
    if known is None:
        raise RequestError("this node is in no cluster: start overlayd with --etcd and --cluster")
    return known


def follow(
    draft: Draft, change: Change, revision: int | None, witness: tuple[str, int, int] | None, history: str = ""
) -> list[str]:
    """Take over news: the rows that `registry` gives for them, and when these are all of them the store's revision that
    they lead to, with the newest key and the mark of then.  Returns what moved, in words, for the log.
    """
    moved: list[str] = []
    added: dict[str, tuple[Network, ...]] = {}  # by an orchestrator, to peers that have another key now
    for (table, key), row in change.items():
        if row is None and table == Peer.table:
            public_key, scope = peer_of(key)
            if (peer := draft.peer(scope, public_key)) is not None and peer.member:
                added[peer.member] = peer.added
                draft.drop(peer)
        elif row is None:
            old = draft.get(Member if table == Member.table else MemberNames, key)
            if old is not None:
                draft.drop(old)
    for row in change.values():
        if isinstance(row, Peer):
            moved += _put_peer(draft, row, added.get(row.member, ()))
        elif row is not None:
            draft.put(row)
    known = draft.get(Membership)
    if known is not None and revision is not None:
        draft.put(replace(known, revision=revision, witness=witness if revision else None, history=history))
    return moved


def _put_peer(draft: Draft, peer: Peer, before: tuple[Network, ...]) -> list[str]:
    """Put a peer; what an orchestrator added to it stays.  before: to the peer that it was with another key."""
    old = draft.peer(peer.scope, peer.public_key)
    moved = peers.take_networks(draft, peer.scope, peer.listed, peer.public_key)
    draft.put(replace(peer, added=(*before, *(old.added if old is not None else ()))))
    return moved


def forget_id(draft: Draft) -> None:
    """Forget the id of the cluster: the one of our name is another by now, and a person accepts that."""
    draft.put(replace(require(draft), cluster_id="", revision=0, witness=None, history=""))


def forget(draft: Draft) -> None:
    """Leave: nothing that came from the cluster stays."""
    for row in list(draft.all(Peer)):
        if row.member:
            draft.drop(row)
    for kind in (Member, MemberNames, Membership):
        for known in list(draft.all(kind)):
            draft.drop(known)
