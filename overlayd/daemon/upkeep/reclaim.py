"""Taking an attachment back, because a client asked for it or because the container died.

Owns: what that locks, and when it is due.  Must not know: how the death was noticed, or who asked.
"""

import logging

from overlayd.daemon.change.locks import EVERYTHING
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import attachment_locks, namespace_lock, peers_locks, service_lock
from overlayd.linux import netns
from overlayd.model import attachments
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Attachment
from overlayd.model.state import Draft

log = logging.getLogger(__name__)


async def detach(node: Node, handle: str, *, inode: int = 0, dead: bool = False) -> Attachment | None:
    """Take the attachment of a handle back, or else that of the network namespace `inode`, once the requests that came
    before are done.  dead: only if its container is.  Returns what was taken back, None when there was nothing.
    """

    def decide(draft: Draft) -> Attachment | None:
        found = attachments.find(draft.state, handle, inode)
        if found is None or (dead and (found.netns is None or netns.is_alive(found.netns))):
            return None
        attachments.detach(draft, found)
        return found

    own = [handle, namespace_lock(inode)]
    attachment = attachments.find(node.state, handle, inode)
    if attachment is None and node.is_settled(*own, EVERYTHING):
        return None
    if attachment is None or not node.is_settled(*own):
        # What there will be to take back, and so what to lock for it, is for somebody ahead of us to say.
        return await node.change(decide, everything=True)
    locks = [handle, *attachment_locks(attachment.handle, attachment.netns, attachment.isolation_network)]
    if attachment.public_key:
        locks += peers_locks(GLOBAL)
    service = service_lock(attachment.service)
    if attachment.ephemeral:  # the service may go with it, and its peers
        locks += [service, *peers_locks(attachment.service)]
    return await node.change(decide, exclusive=locks, shared=[service])


async def reclaim(node: Node, handle: str) -> None:
    """Detach a container that died."""
    attachment = await detach(node, handle, dead=True)
    if attachment is not None:
        log.info("%s died: %s is free again", handle, attachment.address)
