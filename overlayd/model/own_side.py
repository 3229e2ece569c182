"""This node's side of a packet's way, for another node that asks: from one of our addresses to one of that node's.

Owns: which rows that takes, what is wrong with what we know of the node that asks, and the words.  Must not know: the
hops on this node (`path`), how anything was looked at, or how it is asked and answered.
"""

from typing import NamedTuple

from overlayd import keys
from overlayd.model import ends, path, rows
from overlayd.model.ends import End, Hop, Known, Peer
from overlayd.model.known import known
from overlayd.model.objects import GLOBAL, Address, Network
from overlayd.model.seen import Seen
from overlayd.model.state import State


class Asked(NamedTuple):
    """scope: a service with a device of its own, GLOBAL for the global one.  asker, asked: the public keys of both
    nodes' devices, as the node that asks has them.  near: the address there, in a network that is announced.
    far: ours.
    """

    scope: str
    asker: bytes
    asked: bytes
    near: Address
    network: Network
    far: Address


def attached(state: State, address: Address) -> rows.Attachment | None:
    """Who has an address here, if it is attached."""
    lease = state.lease(address.packed)
    return state.get(rows.Attachment, lease.holder) if lease is not None and lease.holder else None


def rows_of(state: State, asked: Asked, mtu: int, findings: tuple[tuple[str, str, str, str], ...] = ()) -> Known | None:
    """What is known here of both ends, and of no others; None without an overlay.  Costs the same whatever is attached.
    mtu, findings: see `Known`.
    """
    member = attached(state, asked.far)
    used = {asked.scope, member.service if member is not None else asked.scope}
    services = [each for each in state.table(rows.Service).values() if each.name in used or asked.far in each.subnet]
    by = {asked.asker, state.allowed_ips(asked.scope).lookup(asked.near.packed)}
    peers = [peer for key, peer in ((key, state.peers(asked.scope).get(key or b"")) for key in by) if peer is not None]
    return known(
        state,
        services=services,
        attachments=[member] if member is not None else [],
        peers=peers,
        mtu=mtu,
        findings=findings,
    )


def explain(asked: Asked, known: Known, seen: Seen, now: float) -> list[Hop]:
    """The hops from our address to that of the node that asks, up to the first broken one.  now: Unix seconds."""
    found = _of_the_asker(asked, known)
    if isinstance(found, Hop):
        return [found]
    end = ends.find(known, str(asked.far))
    if end.kind not in ("member", "node"):
        remedy = "find who should have it (overlayctl containers, dns), and send to what it has now"
        return [Hop(str(asked.far), "is no container's: nobody has it there", "broken", remedy)]
    hops = path.explain(known, end, End("peer", str(asked.near), asked.near, peer=found), seen, now)
    return [hop for hop in hops if hop != path.NOT_TRIED]


def _of_the_asker(asked: Asked, known: Known) -> Peer | Hop:
    """The node that asks, as a peer that has its address; or what is wrong with that."""
    asker = keys.text(asked.asker)
    if asked.scope not in known.devices:
        what = f"of service {asked.scope} " if asked.scope != GLOBAL else ""
        return Hop("device", f"{what}is not set up", "broken", "set it up (overlayctl status says what there is)")
    name, own = known.devices[asked.scope]
    if own != keys.text(asked.asked):
        problem = f"has another key than the node that asks was told: {own}"
        remedy = f"tell that node (there: overlayctl call add_peer public_key={own}, and remove_peer of the old one)"
        return Hop(f"device {name}", problem, "broken", remedy)
    peer = next((each for each in known.peers if each.key == asker), None)
    if peer is None:
        problem = f"lack {asker}: somebody removed the key of the node that asks, or never told it"
        remedy = f"overlayctl call add_peer public_key={asker} endpoint=HOST:PORT allowed_ips={asked.network}"
        return Hop(f"peers of device {name}", problem, "broken", remedy)
    owner = ends.owner(known.peers, asked.near)
    if owner is not peer:
        to = f"peer {owner.called}" if owner is not None else "nobody"
        problem = f"gives {asked.near} to {to}: it lacks it among the allowed IPs of peer {peer.called}"
        remedy = f"overlayctl call add_allowed_ip pubkey={asker} cidr={asked.network}"
        return Hop(f"device {name}", problem, "broken", remedy)
    return peer
