"""The contract as JSON Schema (draft 2020-12), made of the message classes.

Owns: how the classes become one document.  Must not know: the messages by name.
"""

import inspect
from typing import Any, get_args

import msgspec

from overlayd.wire.codec import MAX_BODY
from overlayd.wire.requests import Request
from overlayd.wire.responses import Event, Response
from overlayd.wire.values import U64_MAX

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """One document: a frame is a request, a response or an event; every message is under `$defs` by its class."""
    messages = [*get_args(Request), *get_args(Response), *get_args(Event)]
    _, found = msgspec.json.schema_components(messages, ref_template="#/$defs/{name}")
    components = {name: _bounded(each) for name, each in sorted(found.items())}
    for event in get_args(Event):  # its keys stand in the frame object itself
        _tag(components[event.__name__], "frame", "event")
    requests, responses, events = (
        [f"#/$defs/{_name(each)}" for each in get_args(kind)] for kind in (Request, Response, Event)
    )
    return {
        "$schema": DIALECT,
        "title": "overlayd protocol, version 1",
        "description": f"The body of one frame, at most {MAX_BODY} bytes, behind its u32 little-endian length.",
        "oneOf": [
            _frame("request", "request", requests, {"strict": {"type": "boolean", "default": False}}),
            _frame("response", "response", responses, {}),
            *({"$ref": each} for each in events),
        ],
        "$defs": components,
    }


def _frame(tag: str, key: str, messages: list[str], more: dict[str, Any]) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 0, "maximum": U64_MAX, "title": "u64"}
    return {
        "type": "object",
        "properties": {
            "frame": {"const": tag},
            "id": number,
            key: {"oneOf": [{"$ref": each} for each in messages]},
            **more,
        },
        "required": ["frame", "id", key],
    }


def _name(message: type) -> str:
    return message.__name__


def _tag(component: dict[str, Any], key: str, value: str) -> None:
    component["properties"] = {key: {"const": value}, **component["properties"]}
    component["required"] = [key, *component["required"]]


def _bounded(value: Any) -> Any:
    """With the upper bound of u64, which the classes check themselves; open to keys that a later version adds, as every
    reader of the contract has to be; and descriptions without the indentation that Python before 3.13 leaves in them.
    """
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _bounded(each) for key, each in value.items() if key != "additionalProperties"}
    if isinstance(described := made.get("description"), str):
        made["description"] = inspect.cleandoc(described)
    if made.get("title") == "u64":
        made["maximum"] = U64_MAX
    return made
