"""Who a daemon is, and the probe that proves it: "is this socket really that process, of that executable?"

Owns: the `DaemonProcess` message, the check and the answer of a probe request, the prober's half (request, check of
the reply, comparison with what was published), and the JSON of the identity file.  Must not know: how the facts are
gathered (`daemon.server.identity`), files, sockets, clocks, randomness: a nonce is an argument.

The published file and the wire carry the same strings byte for byte, for a prober compares them as bytes.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from overlayd._fast.envelope import fields
from overlayd.errors import ProtocolError, StateError
from overlayd.proto import envelope
from overlayd.proto.envelope import Frame
from overlayd.proto.protobuf import bytes_field, varint, varint_field

# Protocol constants.
NONCE_SIZE = 32
HASH_SIZE = 32
LONGEST_FILE = 1 << 16  # bytes of an identity file; ours
HASH_ALGORITHM = "blake3"

MAX_DEPTH = 100
"""Levels that a message may nest; one inside another has one less left."""

_VARINT, _LENGTH_DELIMITED = 0, 2
_LOW_32_BITS = (1 << 32) - 1
_IDENTITY_FIELDS = {1: int, 2: str, 3: bytes, 4: bytes, 5: int, 6: str, 7: int, 8: str, 9: bytes}
_ENDPOINT_FIELDS = {1: str, 2: str}


class DaemonProcess(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a running daemon.

    exe_path: the target of /proc/self/exe.  namespace_id, path: its IPC endpoint.  exe_hash: BLAKE3, exe_sha256:
    SHA-256 of the executable's contents, 32 bytes each; the latter is for older probers, all zeros when unknown.
    idle_timeout_secs: None when the daemon never leaves by itself.
    """

    pid: int
    exe_path: str
    namespace_id: str
    path: str
    started_at_unix_ms: int
    boot_id: str
    exe_hash: bytes
    exe_sha256: bytes = bytes(HASH_SIZE)
    idle_timeout_secs: int | None = None


def encode(identity: DaemonProcess) -> bytes:
    """The `DaemonProcess` message: ascending order, except that the SHA-256, a field that current schemas no longer
    have, comes last.
    """
    endpoint = bytes_field(1, identity.namespace_id.encode()) + bytes_field(2, identity.path.encode())
    idle = identity.idle_timeout_secs
    return b"".join(
        (
            varint_field(1, identity.pid),
            bytes_field(2, identity.exe_path.encode()),
            varint(4 << 3 | _LENGTH_DELIMITED) + varint(len(endpoint)) + endpoint,
            varint_field(5, identity.started_at_unix_ms),
            bytes_field(6, identity.boot_id.encode()),
            b"" if idle is None else varint(7 << 3 | _VARINT) + varint(idle),  # presence is tracked: 0 is written
            bytes_field(8, HASH_ALGORITHM.encode()),
            bytes_field(9, identity.exe_hash),
            bytes_field(3, identity.exe_sha256),
        )
    )


def decode(message: bytes) -> DaemonProcess:
    """A `DaemonProcess` message from an untrusted peer.

    Raises ProtocolError: what prost refuses, no endpoint, another hash algorithm, a hash that is not 32 bytes.
    """
    found: dict[int, Any] = {}
    endpoint: dict[int, Any] | None = None
    for number, value in _known_fields(message, _IDENTITY_FIELDS, MAX_DEPTH):
        if number == 4:  # a repeated message is merged, not replaced
            endpoint = (endpoint or {}) | dict(_known_fields(value, _ENDPOINT_FIELDS, MAX_DEPTH - 1))
        else:
            found[number] = value
    if endpoint is None:
        raise ProtocolError("identity without an IPC endpoint")
    if found.get(8) != HASH_ALGORITHM:
        raise ProtocolError(f"identity with hash algorithm {found.get(8)!r}, expected {HASH_ALGORITHM!r}")
    exe_hash, exe_sha256 = found.get(9, b""), found.get(3, bytes(HASH_SIZE))
    if len(exe_hash) != HASH_SIZE or len(exe_sha256) != HASH_SIZE:
        raise ProtocolError(
            f"identity with hashes of {len(exe_hash)} and {len(exe_sha256)} bytes, expected {HASH_SIZE}"
        )
    return DaemonProcess(
        pid=found.get(1, 0) & _LOW_32_BITS,
        exe_path=found.get(2, ""),
        namespace_id=endpoint.get(1, ""),
        path=endpoint.get(2, ""),
        started_at_unix_ms=found.get(5, 0),
        boot_id=found.get(6, ""),
        exe_hash=exe_hash,
        exe_sha256=exe_sha256,
        idle_timeout_secs=found[7] & _LOW_32_BITS if 7 in found else None,
    )


def answer_probe(request: Frame, identity: bytes) -> bytes:
    """The bytes that answer a probe; `identity` is an encoded `DaemonProcess`, made once.

    Raises ProtocolError for a frame that is not a well-formed probe request.
    """
    _check_probe(request, envelope.KIND_REQUEST)
    if len(request.payload) != NONCE_SIZE:
        raise ProtocolError(f"probe with a nonce of {len(request.payload)} bytes, expected {NONCE_SIZE}")
    return envelope.respond(request, request.payload + identity)


def probe_request(nonce: bytes) -> Frame:
    """The frame that asks who is there; `nonce`: 32 random bytes, never used before."""
    return Frame(
        version=envelope.ENVELOPE_VERSION,
        protocol=envelope.PROTOCOL_PROBE,
        payload=nonce,
        request_id=int.from_bytes(nonce[:8], "little"),
    )


def parse_probe_reply(reply: Frame, request: Frame) -> DaemonProcess:
    """The identity in the reply to our probe `request`.

    Raises ProtocolError: not the response to this request, another nonce, a malformed identity.
    """
    _check_probe(reply, envelope.KIND_RESPONSE)
    if reply.request_id != request.request_id:
        raise ProtocolError(f"probe reply with id {reply.request_id}, expected {request.request_id}")
    if reply.payload[:NONCE_SIZE] != request.payload:
        raise ProtocolError("probe reply with another nonce")
    return decode(reply.payload[NONCE_SIZE:])


class Suspicion(enum.Enum):
    """What it means when a daemon does not answer as it was published."""

    STALE_FILE = "the identity file is of an earlier process"
    IMPOSTOR = "another process answers on the socket"
    REPLACED_EXECUTABLE = "the process runs another executable than it was published with"


class Mismatch(msgspec.Struct, frozen=True):
    """One reason not to trust an endpoint: the field that differs, what was published and what was found, as text."""

    suspicion: Suspicion
    field: str
    published: str
    found: str

    def __str__(self) -> str:
        return f"{self.suspicion.value}: {self.field} was {self.published}, is {self.found}"


def mismatch(
    published: DaemonProcess, answered: DaemonProcess, *, boot_id: str, published_pid_runs: bool
) -> Mismatch | None:
    """Why `answered`, from the socket, is not the daemon that `published`, from its file, speaks of; None if it is.

    boot_id: of the running kernel.  published_pid_runs: whether a process with the published pid exists now.
    What makes the file worthless is looked at first: after a reboot or a restart every field may differ.
    """

    def differs(suspicion: Suspicion, field: str, was: object, found: object) -> Mismatch | None:
        return Mismatch(suspicion, field, str(was), str(found)) if was != found else None

    def of(suspicion: Suspicion, field: str) -> Mismatch | None:
        return differs(suspicion, field, getattr(published, field), getattr(answered, field))

    return (
        differs(Suspicion.STALE_FILE, "boot_id", published.boot_id, boot_id)
        or differs(Suspicion.STALE_FILE, "pid", published.pid, published.pid if published_pid_runs else "gone")
        or of(Suspicion.IMPOSTOR, "pid")
        or of(Suspicion.STALE_FILE, "started_at_unix_ms")
        or of(Suspicion.IMPOSTOR, "boot_id")
        or of(Suspicion.REPLACED_EXECUTABLE, "exe_path")
        or differs(Suspicion.REPLACED_EXECUTABLE, "exe_hash", published.exe_hash.hex(), answered.exe_hash.hex())
        or of(Suspicion.IMPOSTOR, "namespace_id")
        or of(Suspicion.IMPOSTOR, "path")
    )


_U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Hash = Annotated[
    list[Annotated[int, msgspec.Meta(ge=0, le=255)]], msgspec.Meta(min_length=HASH_SIZE, max_length=HASH_SIZE)
]


class _EndpointJson(msgspec.Struct):
    namespace_id: str
    path: str


class _IdentityJson(msgspec.Struct):
    """The identity file, key by key; files from before BLAKE3 have no SHA-256 of its own."""

    pid: _U32
    exe_path: str
    exe_hash_algorithm: str
    exe_hash: _Hash
    boot_id: str
    ipc_endpoint: _EndpointJson
    started_at_unix_ms: Annotated[int, msgspec.Meta(ge=0)]
    legacy_exe_sha256: _Hash = msgspec.field(default_factory=lambda: [0] * HASH_SIZE)
    idle_timeout_secs: _U32 | None = None


def to_json(identity: DaemonProcess) -> bytes:
    """The content of the identity file."""
    return msgspec.json.encode(
        _IdentityJson(
            pid=identity.pid,
            exe_path=identity.exe_path,
            exe_hash_algorithm=HASH_ALGORITHM,
            exe_hash=list(identity.exe_hash),
            legacy_exe_sha256=list(identity.exe_sha256),
            boot_id=identity.boot_id,
            ipc_endpoint=_EndpointJson(identity.namespace_id, identity.path),
            started_at_unix_ms=identity.started_at_unix_ms,
            idle_timeout_secs=identity.idle_timeout_secs,
        )
    )


def from_json(content: bytes) -> DaemonProcess:
    """The identity in an identity file's content.  Raises StateError if it is none, saying which key is wrong."""
    try:
        file = msgspec.json.decode(content, type=_IdentityJson)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"identity file: {error}") from None
    if file.exe_hash_algorithm != HASH_ALGORITHM:
        raise StateError(f"identity file: hash algorithm {file.exe_hash_algorithm!r}, expected {HASH_ALGORITHM}")
    return DaemonProcess(
        pid=file.pid,
        exe_path=file.exe_path,
        namespace_id=file.ipc_endpoint.namespace_id,
        path=file.ipc_endpoint.path,
        started_at_unix_ms=file.started_at_unix_ms,
        boot_id=file.boot_id,
        exe_hash=bytes(file.exe_hash),
        exe_sha256=bytes(file.legacy_exe_sha256),
        idle_timeout_secs=file.idle_timeout_secs,
    )


def _check_probe(frame: Frame, kind: int) -> None:
    """What a probe's request and reply have in common, in the order that the broker checks it."""
    if frame.version != envelope.ENVELOPE_VERSION:
        raise ProtocolError(f"probe with envelope version {frame.version}, expected {envelope.ENVELOPE_VERSION}")
    if frame.protocol != envelope.PROTOCOL_PROBE:
        raise ProtocolError(
            f"probe with payload protocol {frame.protocol:#06x}, expected {envelope.PROTOCOL_PROBE:#06x}"
        )
    if frame.kind != kind:
        raise ProtocolError(f"probe of kind {frame.kind}, expected {kind}")
    if frame.encoding != envelope.ENCODING_NONE:
        raise ProtocolError(f"probe with payload encoding {frame.encoding}, expected none")


def _known_fields(message: bytes, types: Mapping[int, type], depth: int) -> Iterator[tuple[int, Any]]:
    """The fields of `message` that `types` has, by number, as values of those types."""
    for number, wire_type, value in fields(message, depth):
        wanted = types.get(number)
        if wanted is None:
            continue
        if wire_type != (_VARINT if wanted is int else _LENGTH_DELIMITED):
            raise ProtocolError(f"identity field {number} has wire type {wire_type}")
        if wanted is str:
            try:
                yield number, str(value, "utf-8")  # type: ignore[arg-type]
            except UnicodeDecodeError as error:
                raise ProtocolError(f"identity field {number} is not UTF-8: {error.reason}") from None
        else:
            yield number, value
