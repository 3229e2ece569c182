"""Taking an attachment back, because a client asked for it or because the container died.

Owns: what that locks, and when it is due.  Must not know: how the death was noticed, or who asked.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from overlayd.daemon.change.locks import EVERYTHING
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.presence import ended, lives
from overlayd.daemon.change.resources import RECORDS, attachment_locks, peers_locks, service_lock
from overlayd.linux import netns
from overlayd.model import attachments
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Attachment
from overlayd.model.state import Draft, State

log = logging.getLogger(__name__)

AT_ONCE = 256  # our own: what one change takes back; what others ask for meanwhile waits for the kernel's part of it


async def detach(node: Node, handle: str, *, dead: bool = False) -> Attachment | None:
    """Take back what is attached by a handle, once the requests that came before are done: a container only when no
    other process of it that was attached lives.  dead: `handle` is an attachment's, and only the processes of it that
    have ended go.  Returns what was taken back, None when there was nothing.
    """
    attachment = _attached(node.state, handle, dead)
    if attachment is None and node.is_settled(handle, EVERYTHING):
        return None
    gone: set[str] = set()

    def look() -> None:
        found = _attached(node.state, handle, dead)
        if found is not None and found.file is not None and not lives(found):
            gone.add(handle)

    decide = _decision(handle, dead, gone)
    prepare = look if dead and (attachment is None or attachment.file is not None) else None
    if attachment is None or not node.is_settled(handle):
        # What there will be to take back, and so what to lock for it, is for somebody ahead of us to say.
        return await node.change(decide, everything=True, prepare=prepare)
    locks = _locks(handle, attachment)
    return await node.change(decide, exclusive=locks.exclusive, shared=locks.shared, prepare=prepare)


async def detach_all(
    node: Node, handles: Iterable[str], *, dead: Collection[str] = ()
) -> dict[str, Attachment | BaseException | None]:
    """As `detach` of each, in one change as far as nobody is at work on them.  dead: those of them of which only the
    dead go.  Returns what each would return or raise, by handle.
    """
    ends: dict[str, Attachment | BaseException | None] = {}
    waiting = iter(dict.fromkeys(handles))
    while several := list(islice(waiting, AT_ONCE)):
        found = {handle: _attached(node.state, handle, handle in dead) for handle in several}
        present = {handle: row for handle, row in found.items() if row is not None and node.is_settled(handle)}
        if present:
            locks = [_locks(handle, row) for handle, row in present.items()]
            exclusive, shared = (list(chain.from_iterable(each)) for each in zip(*locks, strict=True))
            gone: set[str] = set()
            decisions = [_decision(handle, handle in dead, gone) for handle in present]
            suspects = [handle for handle in present if handle in dead]
            prepare = partial(_look, node.state, suspects, gone) if suspects else None
            ends |= zip(present, await node.change_all(decisions, exclusive, shared, prepare), strict=True)
        others = [handle for handle in several if handle not in present]
        one_by_one = (detach(node, handle, dead=handle in dead) for handle in others)
        ends |= zip(others, await asyncio.gather(*one_by_one, return_exceptions=True), strict=True)
    return ends


def _look(state: State, handles: Iterable[str], gone: set[str]) -> None:
    """In a worker thread, all at once: add those that are attached by their namespace, of which nothing is there."""
    rows = (state.get(Attachment, handle) for handle in handles)
    gone.update(row.handle for row in ended(row for row in rows if row is not None and row.file is not None))


def _decision(handle: str, dead: bool, gone: Collection[str]) -> Callable[[Draft], Attachment | None]:
    """gone: of those that are attached by their namespace, the ones that somebody has looked for and not found."""

    def decide(draft: Draft) -> Attachment | None:
        found = _attached(draft.state, handle, dead)
        if found is None or (dead and found.namespace is None):
            return None
        if dead and found.file is not None and handle not in gone:
            return None
        leaving = () if dead else (handle,)
        keepers = attachments.leave(
            draft, found, lambda process: attachments.container(process.pid) not in leaving and netns.is_alive(process)
        )
        if keepers and not dead:
            log.info("%s is detached; process %s keeps its network", handle, keepers[0].pid)
        return None if keepers else found

    return decide


class _Locks(NamedTuple):
    exclusive: list[str]
    shared: list[str]


def _locks(handle: str, attachment: Attachment) -> _Locks:
    """What taking an attachment back by that handle must have for itself, and what nobody may change meanwhile."""
    locks = [handle, *attachment_locks(attachment.handle, attachment.namespace, attachment.isolation_network)]
    if attachment.public_key:
        locks += peers_locks(GLOBAL)
    service = service_lock(attachment.service)
    if attachment.ephemeral:  # the service may go with it, and its peers
        locks += [service, *peers_locks(attachment.service)]
    return _Locks(locks, [service, RECORDS])


def _attached(state: State, handle: str, dead: bool) -> Attachment | None:
    return state.get(Attachment, handle) if dead else attachments.of_handle(state, handle)


async def reclaim(node: Node, handle: str) -> None:
    """Detach a container whose processes have died, all that were attached; those that live keep its network."""
    attachment = await detach(node, handle, dead=True)
    if attachment is not None:
        log.info("%s died: %s is free again", handle, attachment.address)
