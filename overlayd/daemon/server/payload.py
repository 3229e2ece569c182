"""Requests that come in an envelope instead of a JSON frame.

Owns: what an envelope's fields mean for a request and its answer.  Must not know: sockets, or what a request does.
"""

import time

import msgspec

from overlayd import wire
from overlayd.errors import ProtocolError, RequestError
from overlayd.proto.envelope import ENCODING_NONE, KIND_REQUEST, Frame, respond


def read_payload(frame: Frame, unknown: wire.OnUnknown = wire.pass_over) -> wire.Request | wire.Err | None:
    """The request in an envelope; `err` when it cannot be one; None for kinds that are no request and get no answer.

    unknown: is told of keys that the contract does not have.

    A payload that is not JSON is `err` too: unlike in a JSON frame, there is an id to answer to.
    """
    if frame.kind != KIND_REQUEST:
        return None
    if frame.encoding != ENCODING_NONE:
        what = f"payload_encoding {frame.encoding} is not supported: send the payload as plain JSON"
        return wire.Err(what, "bad_request")
    if frame.deadline_unix_ms and frame.deadline_unix_ms <= time.time() * 1000:
        return wire.Err("the deadline was over before work on the request could start", "too_late")
    try:
        return wire.decode_request_object(frame.payload, unknown)
    except (RequestError, ProtocolError) as error:
        return wire.Err(str(error), "bad_request")


def answer_payload(frame: Frame, response: wire.Response | bytes) -> bytes:
    """The envelope of an answer; an answer that cannot be sent becomes an `err` that says so."""
    body = response if isinstance(response, bytes) else wire.encode_response_object(response)
    try:
        return respond(frame, body)
    except ProtocolError as error:
        untraced = msgspec.structs.replace(frame, traceparent="", tracestate="")  # it may be the trace that is too long
        return respond(
            untraced, wire.encode_response_object(wire.Err(f"the answer is too large: {error}", "too_large"))
        )
