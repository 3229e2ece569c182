"""What a start finds of the journal, and what it does about a torn or damaged one.

Owns: the way from the files of a data directory to a log that can be appended to, and the copies of what was given up.
Must not know: what a row means, or how a log is laid out (`proto.log`).

A torn end is what a power cut leaves of a commit that nobody was told of: it is cut off.  Damage before the end is not:
the start is refused, unless somebody asks for what precedes it.
"""

import logging
import time
import zlib
from pathlib import Path

from overlayd import fault
from overlayd.daemon.change.durable import keep, keep_newest, refused
from overlayd.daemon.change.logfile import LogFile
from overlayd.errors import StateError
from overlayd.proto import log

logger = logging.getLogger(__name__)

# Copies of torn ends, and of damaged logs, that stay.  The newest tell most, and a machine that loses its power daily
# must not fill its disk with them.
COPIES = 4


def recover(directory: Path, *, salvage: bool = False) -> tuple[LogFile, str | None]:
    """The log of `directory`, which is locked by the caller, and a sentence when it had to be cut or salvaged.

    salvage: keep of a damaged log what precedes the damage, instead of refusing it.  Raises StateError that says what
    is wrong and what to do.
    """
    file = LogFile(directory / "journal")
    try:
        return file, _recover(file, salvage)
    except OSError as error:
        file.close()
        raise refused(f"cannot recover {file.path}", error) from error
    except BaseException:
        file.close()
        raise


def _recover(file: LogFile, salvage: bool) -> str | None:
    path, directory = file.path, file.path.parent
    leftovers = sorted(directory.glob("journal.*"))
    told = None
    try:
        data = file.open()
    except FileNotFoundError:
        if lost := [each.name for each in leftovers if each.name != "journal.first"]:
            raise StateError(
                f"{path} is missing, and {', '.join(lost)} beside it shows that there was one. Restore it "
                f"from a backup; to start empty instead, with a new identity and no address reserved, move those "
                f"files away too."
            ) from None
    else:
        told = _load(file, data, salvage)
    for each in leftovers:
        if each.name in ("journal.first", "journal.new"):
            each.unlink(missing_ok=True)  # a salvage has used the name
    try:
        for kind in ("torn", "damaged", "displaced"):
            keep_newest(directory.glob(f"journal.{kind}-*"), COPIES)
    except OSError as error:
        logger.warning("journal: cannot remove an old copy in %s: %s", directory, error.strerror)
    return told


def _load(file: LogFile, data: bytes, salvage: bool) -> str | None:
    try:
        found = log.recover(data)
    except log.LogDamaged as damage:
        kept = _keep_damaged(file.path, data, required=salvage)
        if not salvage:
            raise StateError(
                f"{file.path} is {damage}. {kept} Either restore {file.path} from a backup; or start once with "
                f"`overlayd --salvage-journal`, which keeps everything before the damage and gives up the rest; or "
                f"move {file.path} and every file {file.path}.* away to start empty, which loses the node's "
                f"identity and the addresses it has handed out."
            ) from damage
        return _salvage(file, data, damage, kept)
    except StateError as error:
        raise StateError(f"{file.path}: {error}. Start the overlayd that wrote it, or a newer one.") from error
    file.take_over(found)
    return _cut(file, data, found) if found.torn else None


def _keep_damaged(path: Path, data: bytes, *, required: bool) -> str:
    """Keep a copy of a damaged log, and say so.  required: raise OSError when there can be none."""
    copy = path.with_name(f"journal.damaged-{zlib.crc32(data):08x}")
    try:
        keep(copy, data)
    except OSError as error:
        if required:
            raise
        return f"No copy could be kept as {copy}: {error.strerror}."
    return f"A copy was kept as {copy}."


def _cut(file: LogFile, data: bytes, found: log.Recovered) -> str:
    """Cut off the torn end of the log and keep it beside it."""
    moment = int(time.time())
    while (kept := file.path.with_name(f"journal.torn-{moment}")).exists():
        moment += 1
    try:
        keep(kept, data[found.good_length : found.good_length + found.torn])
        fault.point("journal:recover:cut")
        file.cut()
        outcome = f"cut off and kept as {kept}"
    except OSError as error:
        # A full disk is how a log gets torn, and no reason not to start. The next commit rewrites the log.
        file.suspect = True
        outcome = f"ignored, and left in place until the next commit ({error.strerror})"
    return (
        f"{file.path} ends in a write that never finished: {found.torn} bytes from byte {found.good_length} on, "
        f"after commit {found.sequence}; they were {outcome}"
    )


def _salvage(file: LogFile, data: bytes, damage: log.LogDamaged, kept: str) -> str:
    try:
        found = log.salvage(data)
    except log.LogDamaged as hopeless:
        raise StateError(
            f"{file.path} is {hopeless}. {kept} Restore it from a backup, or move {file.path} and every file "
            f"{file.path}.* away to start empty, which loses the node's identity and the addresses it handed out."
        ) from hopeless
    file.replace(found.rows, found.sequence)
    return (
        f"{file.path} was {damage}. {kept} Salvaged: {len(found.rows)} rows as of commit {found.sequence}; given "
        f"up: the {found.torn} bytes after byte {found.good_length}."
    )
