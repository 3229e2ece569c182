"""etcd's API by its JSON gateway (`/v3/*`, etcd 3.4 and later; api/etcdserverpb/rpc.proto), and its watch by gRPC too.

Owns: requests as JSON, answers and the lines of a watch as values of `store_answers`, and the class of each error; of a
watch, the same in protobuf.  Must not know: sockets, HTTP, gRPC, or what keys mean.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from overlayd.errors import ProtocolError
from overlayd.proto.protobuf import bytes_field, fields, varint, varint_field
from overlayd.proto.store_answers import (
    Ahead,
    AuthFailed,
    Change,
    Changes,
    Compacted,
    Denied,
    Entry,
    LeaseGone,
    NoSpace,
    Page,
    StoreError,
    TooLarge,
    Unavailable,
    Watching,
)

# A header of a watch: end the stream when the member that serves it has lost its leader, instead of falling silent.
REQUIRE_LEADER = ("Grpc-Metadata-hasleader", "true")

# A watch by gRPC: what is called, and with what metadata, as etcd's clientv3 does it.
WATCH = "/etcdserverpb.Watch/Watch"
LEADER_METADATA = ("hasleader", "true")
TOKEN_METADATA = "token"

_TAGS = re.compile("<style.*?</style>|<[^>]*>", re.DOTALL)  # of a page for people

# gRPC status codes (grpc/status.h) that etcd's errors come with.
_PERMISSION_DENIED, _UNAUTHENTICATED = 7, 16


class Call(NamedTuple):
    """A request: what is posted, and where."""

    path: str
    body: bytes


class Same(NamedTuple):
    """A condition of a transaction: the key was last put at this revision; 0: there is no such key."""

    key: str
    modified: int


class Put(NamedTuple):
    """lease: what the key goes with; 0: it stays."""

    key: str
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """prefix: all keys that begin so."""

    key: str
    prefix: bool = False


class Outcome(NamedTuple):
    """What became of a transaction.  found: when it was refused, the keys that had to be the same, as they are."""

    done: bool
    revision: int
    found: tuple[Entry, ...] = ()


class Lease(NamedTuple):
    """ttl: seconds it lives without a keepalive, or has left."""

    id: int
    ttl: int


def range(
    key: str, *, prefix: bool = False, after: str = "", limit: int = 0, revision: int = 0, any_member: bool = False
) -> Call:
    """Read a key, or all that begin with it.  after: only those behind this one.  limit: 0 for none.  revision: as of
    then, 0 for now.  any_member: the member that is asked answers from what it knows, which may be old.
    """
    start = after.encode() + b"\0" if after else key.encode()
    asked: dict[str, Any] = {"key": start}
    if prefix:
        asked["range_end"] = prefix_end(key.encode())
    if limit:
        asked["limit"] = limit
    if revision:
        asked["revision"] = revision
    if any_member:
        asked["serializable"] = True
    return _call("/v3/kv/range", asked)


def transaction(conditions: Sequence[Same], then: Sequence[Put | Delete]) -> Call:
    """Do all of `then` if every condition holds; else read the keys of the conditions."""
    compare = [
        {"key": key.encode(), "target": "MOD", "result": "EQUAL", "mod_revision": modified}
        for key, modified in conditions
    ]
    success = [_operation(each) for each in then]
    failure = [{"request_range": {"key": each.key.encode()}} for each in conditions]
    return _call("/v3/kv/txn", {"compare": compare, "success": success, "failure": failure})


def watch(prefix: str, revision: int) -> Call:
    """The stream of changes of all keys with a prefix, from a revision on."""
    create = {"key": prefix.encode(), "range_end": prefix_end(prefix.encode()), "start_revision": revision}
    return _call("/v3/watch", {"create_request": create})


def watch_message(prefix: str, revision: int) -> bytes:
    """The same as a WatchRequest in protobuf, for `WATCH`."""
    key = prefix.encode()
    create = bytes_field(1, key) + bytes_field(2, prefix_end(key)) + varint_field(3, revision)
    return bytes_field(1, create)


def unwatch_message(number: int) -> bytes:
    """Ends one of the watches of a call.  number: of `read_watch_number`."""
    # The number 0 is a default, which protobuf leaves out; the request itself has to be there.
    cancel = varint_field(1, number)
    return b"\x12" + varint(len(cancel)) + cancel


def lease_grant(ttl: int) -> Call:
    return _call("/v3/lease/grant", {"TTL": ttl})


def lease_keepalive(id: int) -> Call:
    return _call("/v3/lease/keepalive", {"ID": id})


def lease_revoke(id: int) -> Call:
    return _call("/v3/lease/revoke", {"ID": id})


def lease_time_to_live(id: int) -> Call:
    return _call("/v3/lease/timetolive", {"ID": id})


def authenticate(user: str, password: str) -> Call:
    return _call("/v3/auth/authenticate", {"name": user, "password": password})


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with the prefix (clientv3.WithPrefix); NUL: there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


# --- what comes back ----------------------------------------------------------------------------------------------


class _Header(msgspec.Struct, frozen=True):
    revision: int = 0


class _KeyValue(msgspec.Struct, frozen=True):
    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class _Range(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    kvs: list[_KeyValue] = []
    more: bool = False


class _Response(msgspec.Struct, frozen=True):
    response_range: _Range | None = None


class _Transaction(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    succeeded: bool = False
    responses: list[_Response] = []


class _Lease(msgspec.Struct, frozen=True):
    ID: int = 0
    TTL: int = 0


class _LeaseStream(msgspec.Struct, frozen=True):
    result: _Lease = _Lease()


class _Token(msgspec.Struct, frozen=True):
    token: str = ""


class _Event(msgspec.Struct, frozen=True):
    kv: _KeyValue
    type: str = "PUT"


class _Watch(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: list[_Event] = []


class _Failure(msgspec.Struct, frozen=True):
    """In a stream the status code is `grpc_code`, else `code`."""

    message: str = ""
    code: int = 0
    grpc_code: int = 0


class _WatchLine(msgspec.Struct, frozen=True):
    result: _Watch | None = None
    error: _Failure | None = None


# 64-bit numbers are strings in this JSON, of protobuf's mapping.
_RANGE = msgspec.json.Decoder(_Range, strict=False)
_TRANSACTION = msgspec.json.Decoder(_Transaction, strict=False)
_LEASE = msgspec.json.Decoder(_Lease, strict=False)
_LEASE_STREAM = msgspec.json.Decoder(_LeaseStream, strict=False)
_TOKEN = msgspec.json.Decoder(_Token)
_WATCH_LINE = msgspec.json.Decoder(_WatchLine, strict=False)
_FAILURE = msgspec.json.Decoder(_Failure, strict=False)


def read_page(body: bytes) -> Page:
    """The answer to `range`.  ProtocolError, here and below: it is none."""
    answer = _decode(_RANGE, body)
    return Page(tuple(map(_entry, answer.kvs)), answer.header.revision, answer.more)


def read_outcome(body: bytes) -> Outcome:
    """The answer to `transaction`."""
    answer: _Transaction = _decode(_TRANSACTION, body)
    if answer.succeeded:
        return Outcome(True, answer.header.revision)
    ranges = (each.response_range for each in answer.responses)
    found = tuple(_entry(pair) for each in ranges if each is not None for pair in each.kvs)
    return Outcome(False, answer.header.revision, found)


def read_lease(body: bytes) -> Lease:
    """The answer to `lease_grant`, `lease_keepalive` and `lease_time_to_live`.  LeaseGone: there is no such lease."""
    answer: _Lease = _decode(_LEASE, body)
    if not answer.ID:
        answer = _decode(_LEASE_STREAM, body).result
    if answer.TTL <= 0:
        raise LeaseGone(f"the lease {answer.ID} has expired")
    return Lease(answer.ID, answer.TTL)


def read_token(body: bytes) -> str:
    """The answer to `authenticate`."""
    token: str = _decode(_TOKEN, body).token
    if not token:
        raise ProtocolError("etcd's answer to authenticate has no token")
    return token


def read_watch_line(line: bytes) -> list[Watching | Changes]:
    """A line of the stream.  StoreError: the stream has ended, though the connection may stay open: Compacted says
    where to list again, AuthFailed that a new token is needed; after any other the stream can be taken up again.
    """
    answer: _WatchLine = _decode(_WATCH_LINE, line)
    if answer.error is not None:
        raise _classify(answer.error.message, answer.error.grpc_code or answer.error.code)
    if answer.result is None:
        raise ProtocolError("a line of etcd's watch has neither a result nor an error")
    return _told(answer.result)


def read_watch_message(message: bytes) -> list[Watching | Changes]:
    """A WatchResponse in protobuf, as `read_watch_line` reads a line."""
    header, created, canceled, compacted, reason = _Header(), False, False, 0, ""
    events: list[_Event] = []
    for number, value in fields(message):
        if number == 1:
            header = _Header(_number(dict(fields(_bytes(value))).get(3, 0)))
        elif number == 3:
            created = _number(value) != 0
        elif number == 4:
            canceled = _number(value) != 0
        elif number == 5:
            compacted = _number(value)
        elif number == 6:
            reason = _bytes(value).decode(errors="replace")
        elif number == 11:
            events.append(_read_event(_bytes(value)))
    return _told(_Watch(header, created, canceled, compacted, reason, events))


def read_watch_number(message: bytes) -> tuple[int, bool]:
    """Which watch of a call a WatchResponse is of, and whether that begins with it."""
    number = begins = 0
    for field, value in fields(message):
        if field == 2:
            number = _number(value)
        elif field == 3:
            begins = _number(value)
        elif field > 3:  # etcd writes fields in their order
            break
    return number, begins != 0


def read_end(status: int, reason: str) -> StoreError:
    """Why a call of gRPC has ended.  status: of gRPC."""
    return _classify(reason or f"gRPC status {status}", status)


def _read_event(message: bytes) -> _Event:
    event = dict(fields(message))
    pair = dict(fields(_bytes(event.get(2, b""))))
    key, value = _bytes(pair.get(1, b"")), _bytes(pair.get(5, b""))
    created, modified, lease = (_number(pair.get(number, 0)) for number in (2, 3, 6))
    kind = "DELETE" if _number(event.get(1, 0)) == 1 else "PUT"
    return _Event(_KeyValue(key, value, created, modified, lease), kind)


def _number(value: int | bytes) -> int:
    """The value of a signed field of 64 bits."""
    if isinstance(value, bytes):
        raise ProtocolError("etcd's message has bytes where a number belongs")
    return value - (value >> 63 << 64)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ProtocolError("etcd's message has a number where bytes belong")
    return value


def _told(watch: _Watch) -> list[Watching | Changes]:
    if watch.canceled:  # it may stand beside `created`: so an expired token looks
        if watch.compact_revision:
            raise Compacted(watch.compact_revision)
        raise _classify(watch.cancel_reason or "etcd ended the watch, and does not say why", 0)
    messages: list[Watching | Changes] = []
    if watch.created:
        messages.append(Watching(watch.header.revision))
    if watch.events:
        changes = tuple(_change(event) for event in watch.events)
        messages.append(Changes(changes, max(each.revision for each in changes)))
    elif not watch.created:
        messages.append(Changes((), watch.header.revision))
    return messages


def read_failure(status: int, body: bytes) -> StoreError:
    """What an answer that is not 200 says.  status: of HTTP."""
    try:
        failure = _FAILURE.decode(body)
    except msgspec.MsgspecError:
        text = " ".join(_TAGS.sub(" ", body[:2000].decode(errors="replace")).split())[:80]
        return Unavailable(f"no answer of etcd, HTTP status {status}: is this its port for clients? {text}".rstrip())
    return _classify(failure.message or f"HTTP status {status}", failure.code)


def _classify(message: str, code: int) -> StoreError:
    """By the status code, and by etcd's words (api/v3rpc/rpctypes/error.go) where one code means several things."""
    message = message.removeprefix("rpc error: code = ").strip()
    if "requested lease not found" in message:
        return LeaseGone(message)
    if "database space exceeded" in message:
        return NoSpace(message)
    if "request is too large" in message or "received message larger than max" in message:
        return TooLarge(message)
    if "has been compacted" in message:
        return Compacted(0)
    if "is a future revision" in message:
        return Ahead(message)
    if "invalid auth token" in message:
        return AuthFailed(message, expired=True)
    if "permission denied" in message or code == _PERMISSION_DENIED:
        return Denied(message)
    wrong_user = "authentication failed" in message or "user name is empty" in message
    if wrong_user or "authentication is not enabled" in message or code == _UNAUTHENTICATED:
        return AuthFailed(message, expired=code == _UNAUTHENTICATED and not wrong_user)
    return Unavailable(message)


def _operation(operation: Put | Delete) -> dict[str, Any]:
    key = operation.key.encode()
    if isinstance(operation, Put):
        put: dict[str, Any] = {"key": key, "value": operation.value}
        if operation.lease:
            put["lease"] = operation.lease
        return {"request_put": put}
    asked = {"key": key, "range_end": prefix_end(key)} if operation.prefix else {"key": key}
    return {"request_delete_range": asked}


def _call(path: str, body: dict[str, Any]) -> Call:
    return Call(path, msgspec.json.encode(body))


def _decode(decoder: "msgspec.json.Decoder[Any]", body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"etcd's answer cannot be read: {error}") from error


def _entry(pair: _KeyValue) -> Entry:
    return Entry(_text(pair.key), pair.value, pair.create_revision, pair.mod_revision)


def _change(event: _Event) -> Change:
    if event.type == "DELETE":
        return Change(_text(event.kv.key), None, event.kv.mod_revision)
    return Change(_text(event.kv.key), _entry(event.kv), event.kv.mod_revision)


def _text(key: bytes) -> str:
    """Keys of ours are text; what of others is not becomes a key that nothing of ours has."""
    return key.decode(errors="backslashreplace")
