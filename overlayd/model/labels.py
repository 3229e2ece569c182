"""What our links say of the overlay, and of containers, that nothing else in the kernel tells.

Owns: the labels, and their reading.  Must not know: how one is put on a link (`linux.device`, `linux.veth`), or who
asks (`adoption`).
"""

from ipaddress import ip_network
from typing import NamedTuple

import msgspec

from overlayd.model.objects import GLOBAL, LONGEST_ALIAS, Network, device_alias, veth_alias
from overlayd.model.rows import Attachment, Overlay


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


class LabelledContainer(NamedTuple):
    """A container that is attached by its namespace, with one of its interfaces."""

    network: str
    handle: str
    interface: str


def container(attachment: Attachment) -> str:
    """A JSON array of these, without the network if the link has no room for all; empty for other attachments."""
    if attachment.file is None:
        return ""
    for network in (attachment.network, ""):
        said = [network, attachment.handle, attachment.interface]
        text = msgspec.json.encode(said).decode()
        if len(veth_alias(text, aside=True).encode()) <= LONGEST_ALIAS:
            return text
    return ""


def parse_container(text: str) -> LabelledContainer | None:
    """What `container` wrote; None for anything else."""
    try:
        network, handle, interface = msgspec.json.decode(text, type=tuple[str, str, str])
    except (msgspec.DecodeError, ValueError):
        return None
    kind, _, rest = handle.partition(":")
    fits = kind == "netns" and interface and rest.endswith(f"/{interface}")
    return LabelledContainer(network, handle, interface) if fits else None
