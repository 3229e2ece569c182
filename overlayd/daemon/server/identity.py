"""This process's identity, gathered once, and the file that publishes it.

Owns: the facts (pid, executable and its hashes, boot, start) and the file's life.  Must not know: what the identity
looks like on the wire or in the file (`proto.identity`), nor when it is probed.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from overlayd.daemon.change.durable import refusal
from overlayd.errors import StateError
from overlayd.proto import identity as proto
from overlayd.proto.identity import DaemonProcess

log = logging.getLogger(__name__)

_EXECUTABLE = Path("/proc/self/exe")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Our own constant: large enough to make reads cheap, small enough to stay in a cache.
_CHUNK = 256 * 1024


def current(namespace_id: str, socket: str, idle_timeout_secs: int | None = None) -> DaemonProcess:
    """The identity of this process, which serves the path `socket`.  Call it once, at start: it reads a file.

    An absolute path is kept byte for byte, for that is how probers compare it.
    The executable is read through /proc/self/exe, so it is the running one even if its path was replaced meanwhile.
    A path that is not UTF-8 is kept with replacement characters, as the broker's own daemons do.
    Raises StateError if procfs cannot be read.
    """
    try:
        exe_hash, exe_sha256 = _hashes(_EXECUTABLE)
        exe_path = os.readlink(_EXECUTABLE)  # noqa: PTH115 -- the target byte for byte, which a Path would normalise
        boot_id = _BOOT_ID.read_text("ascii").strip()
    except OSError as error:
        raise refusal(f"cannot tell this process's identity: {error}", error) from error
    return DaemonProcess(
        pid=os.getpid(),
        exe_path=_printable(exe_path),
        namespace_id=namespace_id,
        path=_printable(socket if socket.startswith("/") else f"{Path.cwd()}/{socket}"),
        started_at_unix_ms=time.time_ns() // 1_000_000,
        boot_id=boot_id,
        exe_hash=exe_hash,
        exe_sha256=exe_sha256,
        idle_timeout_secs=idle_timeout_secs,
    )


@contextmanager
def published(identity: DaemonProcess, file: str) -> Iterator[None]:
    """The identity stands in `file` for as long as the block runs; an empty name: nowhere.

    Raises StateError if it cannot be published; if it cannot be removed, that is only logged.
    """
    if not file:
        yield
        return
    publish(identity, Path(file))
    try:
        yield
    finally:
        try:
            withdraw(identity, Path(file))
        except StateError as error:
            log.error("%s", error)


def publish(identity: DaemonProcess, file: Path) -> None:
    """Write the identity file, mode 0600, durable, in one step: a reader sees the old one or the new one, whole.

    Call it when the socket listens, since a prober that finds the file connects at once.  The directory must exist.
    Raises StateError if the disk refuses, or when another kind of file is there; what was there is then untouched.
    """
    _require_ours(file)
    draft = file.with_name(f".{file.name}.{identity.pid}")
    try:
        draft.unlink(missing_ok=True)  # of a process with our number that died here
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(descriptor, 0o600)  # whatever the umask took
                stream.write(proto.to_json(identity))
                stream.flush()
                os.fsync(descriptor)
            draft.rename(file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_directory(file.parent)
    except OSError as error:
        raise refusal(
            f"cannot publish the identity file {file}: {error.strerror} (errno {error.errno})", error
        ) from error


def _require_ours(file: Path) -> None:
    """StateError when there is a file that is not an identity file, which nobody wants to lose."""
    try:
        if file.exists() and not (file.is_file() and (file.stat().st_size == 0 or _looks_published(file))):
            raise StateError(
                f"identity-file {file}: what is there is not an identity file, and stays: move it away, or change "
                "--identity-file"
            )
    except OSError as error:
        raise refusal(
            f"cannot publish the identity file {file}: {error.strerror} (errno {error.errno})", error
        ) from error


def _looks_published(file: Path) -> bool:
    """Whether a file is an identity file, by a key that it has in every version."""
    with file.open("rb") as stream:
        return b'"boot_id"' in stream.read(proto.LONGEST_FILE)


def withdraw(identity: DaemonProcess, file: Path) -> None:
    """Remove the identity file on a clean stop, unless another process has published over it meanwhile.

    Raises StateError if it cannot be read or removed.
    """
    try:
        published = file.read_bytes()
        if published == proto.to_json(identity):
            file.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise refusal(
            f"cannot remove the identity file {file}: {error.strerror} (errno {error.errno})", error
        ) from error


def _hashes(executable: Path) -> tuple[bytes, bytes]:
    """BLAKE3 and SHA-256 of a file, read once."""
    newer, older = blake3(), hashlib.sha256()
    buffer = bytearray(_CHUNK)
    with executable.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            chunk = memoryview(buffer)[:size]
            newer.update(chunk)
            older.update(chunk)
    return newer.digest(), older.digest()


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
