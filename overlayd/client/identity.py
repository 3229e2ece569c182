"""Whom a client talks to: is it the daemon that its identity file names?

Owns: the checks, from what the kernel says to what the other end says of itself, and the exceptions that tell an
impostor, a stale file and a replaced executable apart.  Must not know: requests, or how a probe travels (`client`).
"""

import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from overlayd.errors import OverlaydError, StateError
from overlayd.proto import identity
from overlayd.proto.identity import DaemonProcess, Suspicion

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Unverified(OverlaydError):
    """It cannot be shown that the daemon is the one that was published."""


class NotPublished(Unverified):
    """There is no identity file (yet)."""


class StaleIdentityFile(Unverified):
    """The identity file is of a process that is gone, or of an earlier boot: it says nothing of who answers now."""


class Impostor(Unverified):
    """The published process runs, and another one answers on the socket, or one of a user who may not."""


class ReplacedExecutable(Unverified):
    """The published process answers, and runs another executable than it was published with."""


_SUSPICIONS: dict[Suspicion, type[Unverified]] = {
    Suspicion.STALE_FILE: StaleIdentityFile,
    Suspicion.IMPOSTOR: Impostor,
    Suspicion.REPLACED_EXECUTABLE: ReplacedExecutable,
}


class Peer(NamedTuple):
    """Who called listen(2) on the socket (struct ucred, unix(7))."""

    pid: int
    uid: int
    gid: int


class Whoami(msgspec.Struct, frozen=True):
    """What the daemon says of itself; pid and uid are the kernel's word.

    exe_hash: BLAKE3 of the executable, in hexadecimal digits.  identity_file: what it was verified against, if it was.
    """

    pid: int
    uid: int
    exe_path: str
    exe_hash: str
    namespace_id: str
    socket: str
    started_at_unix_ms: int
    boot_id: str
    identity_file: str | None = None


class Published(NamedTuple):
    """An identity file: where it is, whose it is, what is in it."""

    file: str
    owner: int
    daemon: DaemonProcess


def peer(connection: socket.socket) -> Peer:
    """The kernel's word for who serves a connected socket."""
    return Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def read(file: str) -> Published:
    """Read an identity file.  Raises NotPublished when it does not exist, StateError when it is none."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            there = os.fstat(stream.fileno())
            if not stat.S_ISREG(there.st_mode):
                raise StateError(f"{file} is not a file, and so not an identity file")
            try:
                return Published(file, there.st_uid, identity.from_json(stream.read(identity.LONGEST_FILE)))
            except StateError as error:
                raise StateError(f"{file}: {error}") from None
    except FileNotFoundError:
        raise NotPublished(f"no identity file {file}: is overlayd running with --identity-file?") from None
    except OSError as error:
        raise StateError(f"cannot read the identity file {file}: {error.strerror}") from error


def check_peer(published: Published, peer: Peer) -> None:
    """Check what the kernel says of the other end, before it is spoken to.  Raises Unverified, of the kind that fits.

    The daemon must be root's, ours, or of the user who owns the file.
    """
    daemon = published.daemon
    if daemon.boot_id != _boot_id():
        raise StaleIdentityFile(f"{published.file} is of an earlier boot")
    if not Path(f"/proc/{daemon.pid}").exists():
        raise StaleIdentityFile(f"{published.file} is of process {daemon.pid}, which is gone")
    if peer.pid != daemon.pid:
        raise Impostor(f"{published.file} names process {daemon.pid}, process {peer.pid} serves the socket")
    if peer.uid not in {0, os.getuid(), published.owner}:
        raise Impostor(f"process {peer.pid}, which serves the socket, is of user {peer.uid}")


def check_answer(published: Published, answered: DaemonProcess) -> None:
    """Check what the other end says of itself, and, where we may look, what it really runs.  Blocking: reads an
    executable.

    Raises Unverified, of the kind that fits.
    """
    daemon = published.daemon
    found = identity.mismatch(
        daemon, answered, boot_id=_boot_id(), published_pid_runs=Path(f"/proc/{daemon.pid}").exists()
    )
    if found is not None:
        raise _SUSPICIONS[found.suspicion](f"{published.file}: {found}")
    try:
        running = blake3(Path(f"/proc/{daemon.pid}/exe").read_bytes()).digest()
    except PermissionError:
        return  # proc(5): of a process that may do more than we, only it and the kernel know
    except FileNotFoundError:
        raise StaleIdentityFile(f"{published.file} is of process {daemon.pid}, which is gone") from None
    if running != daemon.exe_hash:
        was, runs = daemon.exe_hash.hex(), running.hex()
        raise ReplacedExecutable(f"process {daemon.pid} was published with executable {was:.16}..., runs {runs:.16}...")


def whoami(answered: DaemonProcess, peer: Peer, identity_file: str | None) -> Whoami:
    """Raises Impostor when the other end claims to be another process than the kernel says."""
    if answered.pid != peer.pid:
        raise Impostor(f"process {peer.pid} serves the socket and says that it is {answered.pid}")
    return Whoami(
        pid=peer.pid,
        uid=peer.uid,
        exe_path=answered.exe_path,
        exe_hash=answered.exe_hash.hex(),
        namespace_id=answered.namespace_id,
        socket=answered.path,
        started_at_unix_ms=answered.started_at_unix_ms,
        boot_id=answered.boot_id,
        identity_file=identity_file,
    )


def _boot_id() -> str:
    return _BOOT_ID.read_text("ascii").strip()
