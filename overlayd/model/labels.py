"""What the link of the global device says of the overlay that nothing else in the kernel tells.

Owns: the label, and its reading.  Must not know: how it is put on a link (`linux.device`), or who asks (`adoption`).
"""

from ipaddress import ip_network
from typing import NamedTuple

import msgspec

from overlayd.model.objects import GLOBAL, LONGEST_ALIAS, Network, device_alias
from overlayd.model.rows import Overlay


class Labelled(NamedTuple):
    """Who set the overlay up here, and which node this is."""

    deployment: str
    instance_id: str
    slice: Network | None
    node_id: int


def label(overlay: Overlay, node_id: int) -> str:
    """A JSON array of these four; empty when the link has no room for it."""
    said = [overlay.deployment, overlay.instance_id, str(overlay.slice or ""), node_id]
    text = msgspec.json.encode(said).decode()
    return text if len(device_alias(GLOBAL, text).encode()) <= LONGEST_ALIAS else ""


def parse(text: str) -> Labelled | None:
    """What `label` wrote; None for anything else."""
    try:
        deployment, instance_id, slice, node_id = msgspec.json.decode(text)
        if not (isinstance(deployment, str) and isinstance(instance_id, str) and type(node_id) is int):
            return None
        return Labelled(deployment, instance_id, ip_network(slice) if slice else None, node_id)
    except (msgspec.DecodeError, ValueError, TypeError):
        return None
