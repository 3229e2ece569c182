"""That a node lives: a key below its name, for as long as its lease.

Owns: the record, and what it says of a node that was seen.  Must not know: who keeps a lease up (`publishing`).
"""

import msgspec

from overlayd.daemon.cluster.etcd import Etcd, read_one
from overlayd.model.cluster_records import PRESENCE
from overlayd.proto.store_answers import LeaseGone

PRESENCE_TTL = 60  # seconds, from the specification


class Presence(msgspec.Struct, kw_only=True):
    """That a node lives: `p/<name>`.  since: Unix seconds; lease: its own, in decimal; machine, boot: where it runs."""

    since: int = 0
    address: str = ""
    version: str = ""
    machine: str = ""
    boot: str = ""
    lease: str = ""


_PRESENCE = msgspec.json.Decoder(Presence)


def read_presence(value: bytes) -> Presence:
    """What cannot be read says nothing."""
    try:
        return _PRESENCE.decode(value)
    except msgspec.MsgspecError:
        return Presence()


async def lives(etcd: Etcd, there: Presence) -> bool:
    """Whether a presence's lease is still kept up."""
    try:
        await etcd.time_to_live(int(there.lease))
    except (LeaseGone, ValueError):
        return False
    return True


async def last_seen(etcd: Etcd, name: str) -> str:
    """When and where a node was seen last, for a person."""
    entry = await read_one(etcd, PRESENCE + name)
    if entry is None:
        return "not seen now"
    there = read_presence(entry.value)
    try:
        left = (await etcd.time_to_live(int(there.lease))).ttl
    except (LeaseGone, ValueError):
        return f"last at {there.address or 'an unknown address'}"
    return f"seen {max(PRESENCE_TTL - left, 0)} s ago at {there.address or 'an unknown address'}"
