"""Taking an attachment back, because a client asked for it or because the container died.

Owns: what that locks, and when it is due.  Must not know: how the death was noticed, or who asked.
"""

import logging

from overlayd.daemon.change.locks import EVERYTHING
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.presence import lives
from overlayd.daemon.change.resources import RECORDS, attachment_locks, peers_locks, service_lock
from overlayd.linux import netns
from overlayd.model import attachments
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Attachment
from overlayd.model.state import Draft, State

log = logging.getLogger(__name__)


async def detach(node: Node, handle: str, *, dead: bool = False) -> Attachment | None:
    """Take back what is attached by a handle, once the requests that came before are done: a container only when no
    other process of it that was attached lives.  dead: `handle` is an attachment's, and only the processes of it that
    have ended go.  Returns what was taken back, None when there was nothing.
    """

    def decide(draft: Draft) -> Attachment | None:
        found = _attached(draft.state, handle, dead)
        if found is None or (dead and found.namespace is None):
            return None
        if dead and found.file is not None and lives(found):
            return None
        leaving = () if dead else (handle,)
        keepers = attachments.leave(
            draft, found, lambda process: attachments.container(process.pid) not in leaving and netns.is_alive(process)
        )
        if keepers and not dead:
            log.info("%s is detached; process %s keeps its network", handle, keepers[0].pid)
        return None if keepers else found

    attachment = _attached(node.state, handle, dead)
    if attachment is None and node.is_settled(handle, EVERYTHING):
        return None
    if attachment is None or not node.is_settled(handle):
        # What there will be to take back, and so what to lock for it, is for somebody ahead of us to say.
        return await node.change(decide, everything=True)
    locks = [handle, *attachment_locks(attachment.handle, attachment.namespace, attachment.isolation_network)]
    if attachment.public_key:
        locks += peers_locks(GLOBAL)
    service = service_lock(attachment.service)
    if attachment.ephemeral:  # the service may go with it, and its peers
        locks += [service, *peers_locks(attachment.service)]
    return await node.change(decide, exclusive=locks, shared=[service, RECORDS])


def _attached(state: State, handle: str, dead: bool) -> Attachment | None:
    return state.get(Attachment, handle) if dead else attachments.of_handle(state, handle)


async def reclaim(node: Node, handle: str) -> None:
    """Detach a container whose processes have died, all that were attached; those that live keep its network."""
    attachment = await detach(node, handle, dead=True)
    if attachment is not None:
        log.info("%s died: %s is free again", handle, attachment.address)
