"""The JSON form of requests, responses and events, in frames and alone.

Owns: encoding, decoding, and what is answered to a bad frame.  Must not know: sockets, or how
received bytes are cut into bodies (`_fast.frame`).

To decode is one typed pass over the bytes.  Only when that fails are they looked at again: `unknown` for keys that the
contract does not have, which are passed over, and `mismatch` for the key to blame.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

import msgspec
from msgspec import Raw, Struct

from overlayd.errors import OverlaydError, ProtocolError, RequestError
from overlayd.wire.mismatch import mismatch, quote
from overlayd.wire.requests import Request
from overlayd.wire.responses import Err, Event, Response
from overlayd.wire.unknown import UnknownKey, without_unknown
from overlayd.wire.values import U64, U64_MAX

Buffer = bytes | bytearray | memoryview

MAX_BODY = 8 * 1024 * 1024  # bytes of one frame's body, both directions


OnUnknown = Callable[[Sequence[UnknownKey]], None]


def pass_over(keys: Sequence[UnknownKey]) -> None:
    """Tell nobody."""


class BadRequest(RequestError):
    """A request frame that can be answered (`id`) but not understood; the message names the key to blame."""

    def __init__(self, id: int, message: str) -> None:
        super().__init__(message)
        self.id = id


class NotARequest(OverlaydError):
    """A response or event frame from a client: to be logged and ignored."""


def decode_request(body: Buffer, unknown: OnUnknown = pass_over) -> tuple[int, Request]:
    """The id and the request of one frame's body.

    unknown: is told of keys of the frame and the request that the contract does not have; they count for nothing, but
    a frame that has `"strict": true` is refused for them.

    Raises BadRequest when the frame has a readable id but its request is unknown or ill-formed, NotARequest for
    other frames of the contract, ProtocolError for what is no frame at all: not JSON, not an object, no id.
    """
    try:
        frame = _client_frame.decode(body)
    except (ValueError, RecursionError) as error:  # every msgspec error is a ValueError, and so is bad UTF-8
        return _decode_leniently(body, error, unknown)
    if type(frame) is not _RequestFrame:
        raise NotARequest(f"{frame.__struct_config__.tag} frame from a client")
    if frame.id > U64_MAX:
        raise ProtocolError("request frame without a readable id")
    return frame.id, frame.request


def decode_id(body: Buffer) -> int:
    """The id of one frame's body, whatever its request is.  Raises NotARequest, ProtocolError as `decode_request`."""
    try:
        envelope = _client_envelope.decode(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a frame: {error}") from None
    if not isinstance(envelope, _Envelope):
        raise NotARequest(f"{envelope.__struct_config__.tag} frame from a client")
    if envelope.id > U64_MAX:
        raise ProtocolError("request frame without a readable id")
    return envelope.id


def decode_request_object(body: Buffer, unknown: OnUnknown = pass_over) -> Request:
    """A request without a frame around it.  unknown: see `decode_request`.

    Raises RequestError naming the key to blame, ProtocolError when it is not JSON.
    """
    try:
        return _request.decode(body)
    except (ValueError, RecursionError):
        request, keys = _without_unknown(body)
        if keys:
            unknown(keys)
        return request


def encode_response(id: int, response: Response) -> bytes:
    """A whole response frame.  An answer that cannot be sent becomes an `err` that says so."""
    try:
        body = _encode(_ResponseFrame(id, response))
    except UnicodeEncodeError:  # a lone surrogate: a name from the system that is not UTF-8
        return encode_response(id, _as_utf8(response))
    return _frame(body) if len(body) <= MAX_BODY else encode_response(id, _too_large(len(body)))


def encode_response_object(response: Response) -> bytes:
    """A response without a frame around it: for `encode_spliced`, or for another carrier."""
    try:
        return _encode(response)
    except UnicodeEncodeError:
        return _encode(_as_utf8(response))


def encode_part(part: Struct) -> bytes:
    """One of many values of a list, for `encode_with`."""
    return _encode(part)


def encode_with(response: Response, field: str, parts: list[bytes]) -> bytes:
    """`encode_response_object` of a response whose list `field` is encoded already, value by value, and empty in it."""
    text = encode_response_object(response)
    if not parts:
        return text
    name = f'"{field}":['.encode()
    head, shown, tail = text.partition(name + b"]")
    if not shown:  # it is left out when it is empty
        head, tail = text[:-1] + b",", b"}"
    first, *others = parts
    whole = [head + name + first, *others]
    whole[-1] += b"]" + tail
    return b",".join(whole)  # one copy: it may be megabytes


def encode_spliced(id: int, response: bytes) -> bytes:
    """A whole response frame around what `encode_response_object` returned."""
    head = b'{"frame":"response","id":%d,"response":' % id
    size = len(head) + len(response) + 1
    if size > MAX_BODY:
        return encode_response(id, _too_large(size))
    return b"".join((size.to_bytes(4, "little"), head, response, b"}"))  # one copy: it may be megabytes


def encode_event(event: Event) -> bytes:
    """A whole event frame: the event's keys stand in the frame object itself."""
    return _frame(b'{"frame":"event",' + _encode(event)[1:])


def encode_request(id: int, request: Request) -> bytes:
    """A whole request frame.  id: u64.  Raises RequestError when it is too large, or has text that is not UTF-8."""
    try:
        body = _encode(_RequestFrame(id, request))
    except UnicodeEncodeError as error:
        raise RequestError(f"the request holds text that is not UTF-8: {error.object!a:.60}") from None
    if len(body) > MAX_BODY:
        raise RequestError(f"the request is {len(body)} bytes, a frame carries at most {MAX_BODY}")
    return _frame(body)


def decode_server_frame(body: Buffer) -> tuple[int, Response] | Event | None:
    """What the daemon sent: an id and its response, or an event; None for an event that a newer daemon added.

    Raises ProtocolError for anything else.
    """
    try:
        try:
            frame = _server_frame.decode(body)
        except msgspec.ValidationError:  # a newer daemon may have keys that we do not know
            frame = _server_frame.decode(msgspec.json.encode(without_unknown(body, _answer_shape(), "frame")[0]))
        if type(frame) is _ResponseFrame:
            if frame.id > U64_MAX:
                raise ValueError("id: expected u64")
            return frame.id, frame.response
        return _event.decode(body) if frame.event in _EVENTS else None
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"bad frame from the daemon: {error}") from None


class _RequestFrame(
    Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True, tag_field="frame", tag="request"
):
    id: U64
    request: Request
    strict: bool = False


class _Envelope(Struct, frozen=True, gc=False, tag_field="frame", tag="request"):
    """A request frame of which only the id need be right."""

    id: U64
    request: Raw = Raw(b"")  # empty: the key is missing
    strict: Raw = Raw(b"false")


class _ResponseFrame(Struct, frozen=True, gc=False, tag_field="frame", tag="response"):
    id: U64
    response: Response


class _SomeResponse(Struct, frozen=True, gc=False, tag_field="frame", tag="response"):
    pass


class _SomeEvent(Struct, frozen=True, gc=False, tag_field="frame", tag="event"):
    event: str = ""


_BOOLS = (b"true", b"false")
_EVENTS = frozenset(event.__struct_config__.tag for event in Event.__args__)

_encode = msgspec.json.Encoder().encode
decode_plain: Callable[[Buffer], _RequestFrame] = msgspec.json.Decoder(_RequestFrame).decode
"""A request frame, its `id` and `request`, without unknown keys.  ValueError, RecursionError: it is something else, or
damaged, which `decode_request` tells apart.  `id` may be over a u64.
"""
_client_frame = msgspec.json.Decoder(_RequestFrame | _SomeResponse | _SomeEvent)
_client_envelope = msgspec.json.Decoder(_Envelope | _SomeResponse | _SomeEvent)
_server_frame = msgspec.json.Decoder(_ResponseFrame | _SomeEvent)
_request: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_event: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def _too_large(size: int) -> Err:
    return Err(f"the answer is too large: {size} bytes, a frame carries at most {MAX_BODY}", "too_large")


def _as_utf8(response: Response) -> Err:
    if isinstance(response, Err):
        return Err(response.message.encode(errors="backslashreplace").decode(), response.code)
    return Err("the answer holds text that is not UTF-8", "internal")


def _decode_leniently(body: Buffer, error: Exception, unknown: OnUnknown) -> tuple[int, Request]:
    """What `decode_request` returns or raises for a frame that the typed decoder refused with `error`."""
    try:
        envelope = _client_envelope.decode(body)
    except (ValueError, RecursionError) as reason:
        raise ProtocolError(f"not a frame: {reason}") from None
    assert isinstance(envelope, _Envelope), f"the other frames have no two readings: {error}"
    if envelope.id > U64_MAX:
        raise ProtocolError("request frame without a readable id")
    if not envelope.request:
        raise BadRequest(envelope.id, "request: required key is missing")
    if bytes(envelope.strict) not in _BOOLS:
        raise BadRequest(envelope.id, "strict: expected bool")
    try:
        request, keys = _without_unknown(envelope.request)
    except RequestError as refusal:
        raise BadRequest(envelope.id, str(refusal)) from None
    keys = [*without_unknown(body, _frame_shape(), "frame")[1], *keys]
    if keys and bytes(envelope.strict) == b"true":
        raise BadRequest(envelope.id, str(keys[0]))
    unknown(keys)
    return envelope.id, request


def _without_unknown(body: Buffer | Raw) -> tuple[Request, list[UnknownKey]]:
    """A request object and its unknown keys, without which it is decoded.

    Raises RequestError saying what else is wrong with it, ProtocolError when it is not JSON.
    """
    keys: list[UnknownKey] = []
    try:
        return _request.decode(body), keys
    except (ValueError, RecursionError) as error:
        refusal: Exception = error
    try:
        known, keys = without_unknown(body, _request_shape(), "request")
        if keys:
            body = msgspec.json.encode(known)
            return _request.decode(body), keys
    except (ValueError, RecursionError) as error:
        refusal = error
    raise RequestError(_what_is_wrong(body, refusal))


def _what_is_wrong(body: Buffer | Raw, error: Exception) -> str:
    """What a person should read about a request object that the typed decoder refused with `error`.

    Raises ProtocolError when it is not JSON.
    """
    try:
        value = msgspec.json.decode(body)
    except msgspec.ValidationError:  # JSON, but a number that no type of ours could hold
        return _in_our_words(error)
    except (ValueError, RecursionError) as reason:
        raise ProtocolError(f"not JSON: {reason}") from None
    return mismatch(value, _request_shape(), "request") or _twice(bytes(body)) or _in_our_words(error)


def _twice(body: bytes) -> str:
    """Which key a request has twice; it is well when the last of two counts, as in `value` above."""
    found = ""

    def look(pairs: list[tuple[str, object]]) -> object:
        nonlocal found
        values: dict[str, object] = {}
        for key, value in pairs:
            if key in values and not found:
                found = f"request: key {quote(key)} stands twice, as {quote(values[key])} and {quote(value)}"
            values[key] = value
        return values

    with suppress(ValueError, RecursionError):
        json.loads(body, object_pairs_hook=look)
    return found


def _in_our_words(error: Exception) -> str:
    """What the decoder says of a request, "Integer value out of range - at `$.node_id`", as errors of ours read."""
    what, _, at = str(error).partition(" - at `$")
    return f"request{at.rstrip('`')}: {what}"


@cache
def _request_shape() -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(Request)


@cache
def _frame_shape() -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(_Envelope)


@cache
def _answer_shape() -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(_ResponseFrame)
