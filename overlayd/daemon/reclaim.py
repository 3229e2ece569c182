"""Taking an attachment back, because a client asked for it or because the container died.

Owns: when that is due.  Must not know: how the death was noticed, or who asked.
"""

import logging

from overlayd.daemon.node import Node
from overlayd.daemon.resources import attachment_locks, peers_locks, service_lock
from overlayd.errors import OverlaydError
from overlayd.linux import netns
from overlayd.model import attachments
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Attachment
from overlayd.model.state import Draft

log = logging.getLogger(__name__)


async def detach(node: Node, attachment: Attachment) -> None:
    """Take an attachment back, unless somebody else did meanwhile."""

    def decide(draft: Draft) -> None:
        present = draft.get(Attachment, attachment.handle)
        if present is not None and present.netns == attachment.netns:
            attachments.detach(draft, present)

    locks = attachment_locks(attachment.handle, attachment.netns, attachment.isolation_network)
    if attachment.public_key:
        locks += peers_locks(GLOBAL)
    service = service_lock(attachment.service)
    await node.change(decide, exclusive=[*locks, service] if attachment.ephemeral else locks, shared=[service])


async def reclaim(node: Node, handle: str) -> None:
    """Detach a container that died, or that cannot be reached any more."""
    attachment = node.state.get(Attachment, handle)
    if attachment is None or attachment.netns is None or await node.run(netns.is_alive, attachment.netns):
        return
    try:
        await detach(node, attachment)
        log.info("%s died: %s is free again", handle, attachment.address)
    except OverlaydError as error:
        log.error("reclaiming %s: %s", handle, error)
