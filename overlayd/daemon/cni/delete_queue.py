"""DELs that the CNI shim left while no daemon took them.

Owns: their directory, beside the socket.  Must not know: what a DEL does.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from overlayd.errors import ProtocolError
from overlayd.proto import cni
from overlayd.proto.cni import Answer, Call

log = logging.getLogger(__name__)

# Our own constants.
AT_ONCE = 256  # DELs that are done together
ABANDONED = 60.0  # seconds after which a file that a shim has not finished is nobody's
RETRY, LONGEST_RETRY = 5.0, 320.0  # seconds between two tries of what disk or kernel refuse, each time twice as many

Do = Callable[[Sequence[Call]], Awaitable[Sequence[Answer]]]


class DeleteQueue:
    """The directory.  A file in it is called `<container id>.<ifname>`, and holds a shim's request."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> None:
        """Make the directory, so that shims can leave DELs."""
        with suppress(FileExistsError):
            self._directory.mkdir(0o700, parents=True)

    def holds(self, call: Call) -> bool:
        """Whether a DEL of the interface that a command is about is still to be done."""
        return self._path(call).exists()

    def forget(self, call: Call) -> None:
        """That DEL has been done since, or an ADD made the interface again."""
        with suppress(FileNotFoundError):
            self._path(call).unlink()

    def _path(self, call: Call) -> Path:
        return self._directory / f"{call.cni.container_id}.{call.cni.ifname}"

    async def work_off(self, do: Do) -> None:
        """Do all that were left.  One that fails stays, unless its interface is made again."""
        began, calls = time.monotonic(), self._calls()
        number = failed = 0
        while several := list(islice(calls, AT_ONCE)):
            answers = await do(several)
            number += len(several)
            failed += sum(answer.exit != 0 for answer in answers)
        if number:
            took = time.monotonic() - began
            log.info("%d DELs were left while no daemon ran: done in %.2f s, %d failed", number, took, failed)

    async def try_again(self, do: Do) -> None:
        """Do those that have failed, until none is left."""
        pause = RETRY
        while any(self._calls()):
            await asyncio.sleep(pause)
            await self.work_off(do)
            pause = min(2 * pause, LONGEST_RETRY)

    def _calls(self) -> Iterator[Call]:
        for entry in self._entries():
            path = Path(entry.path)
            if entry.name.startswith("."):
                if time.time() - entry.stat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
                continue
            try:
                call = cni.decode(path.read_bytes())
            except FileNotFoundError:  # its shim was answered after all
                continue
            except (ProtocolError, OSError) as error:
                log.error("%s is no DEL of the CNI shim, and is removed: %s", path, error)
                path.unlink(missing_ok=True)
                continue
            if call.cni.command != "DEL" or f"{call.cni.container_id}.{call.cni.ifname}" != entry.name:
                log.error("%s is no DEL of what it is called after, and is removed", path)
                path.unlink(missing_ok=True)
                continue
            yield call

    def _entries(self) -> list["os.DirEntry[str]"]:
        try:
            return list(os.scandir(self._directory))
        except FileNotFoundError:  # somebody has removed it: shims say that they miss it
            return []
