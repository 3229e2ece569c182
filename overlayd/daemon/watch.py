"""Noticing that a container died.

Owns: one pidfd a container, on the event loop.  Must not know: what is reclaimed, or how.
"""

import asyncio
import logging
import os
from collections.abc import Callable

from overlayd.errors import MechanismError
from overlayd.linux import netns
from overlayd.model.objects import Netns
from overlayd.model.rows import Attachment, Change

log = logging.getLogger(__name__)


class DeathWatch:
    """Calls `died(handle)` once when the process of an attachment ends."""

    def __init__(self, died: Callable[[str], object]) -> None:
        self._died = died
        self._descriptors: dict[str, int] = {}

    def follow(self, change: Change) -> None:
        """Start watching attachments that were put, stop watching those that went."""
        for (table, handle), row in change.items():
            if table == Attachment.table:
                self.forget(handle)
                if isinstance(row, Attachment) and row.netns is not None:
                    self._watch(handle, row.netns)

    def _watch(self, handle: str, namespace: Netns) -> None:
        loop = asyncio.get_running_loop()
        try:
            descriptor = netns.pidfd(namespace)
        except MechanismError as error:
            log.debug("%s: %s", handle, error)
            loop.call_soon(self._died, handle)  # gone before we looked
            return
        self._descriptors[handle] = descriptor
        loop.add_reader(descriptor, self._ended, handle)

    def _ended(self, handle: str) -> None:
        self.forget(handle)
        self._died(handle)

    def forget(self, handle: str) -> None:
        """Stop watching; nothing happens when it was not watched."""
        descriptor = self._descriptors.pop(handle, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        for handle in list(self._descriptors):
            self.forget(handle)
