"""The reference part of docs/protocol.md, made of the message classes and the golden frames.

Owns: its form.  Must not know: whether the document has it (`test_protocol`).
"""

import inspect as source
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from overlayd import wire

GOLDEN = Path(__file__).parent / "golden"
HEADING = "## Requests\n"


def reference() -> str:
    """Everything from the heading on."""
    parts = [HEADING]
    parts += [_message(each, "op", "requests") for each in get_args(wire.Request)]
    parts.append("## Responses\n")
    parts += [_message(each, "result", "responses") for each in get_args(wire.Response)]
    parts.append("## The events\n")
    parts += [_message(each, "event", "events") for each in get_args(wire.Event)]
    parts.append("## Parts of messages\n")
    parts += [_part(each) for each in _parts()]
    return "\n".join(parts)


def _message(kind: type, tag: str, folder: str) -> str:
    name = str(kind.__struct_config__.tag)  # type: ignore[attr-defined]
    lines = [f"### `{name}`\n" if tag != "result" else f"### `{name}` (a result)\n", _doc(kind), ""]
    lines += _keys(kind)
    lines += ["```json", _example(name, tag, folder), "```", ""]
    return "\n".join(lines)


def _part(kind: inspect.StructType) -> str:
    tag = f" (`{kind.tag_field}`: `{kind.tag}`)" if kind.tag_field else ""
    return "\n".join([f"### {kind.cls.__name__}{tag}\n", _doc(kind.cls), "", *_keys(kind.cls)])


def _doc(kind: type) -> str:
    return source.getdoc(kind) or ""


def _keys(kind: type) -> list[str]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    if not info.fields:
        return []
    rows = [f"| `{each.encode_name}` | {_type(each.type)} | {_default(each)} |" for each in info.fields]
    return ["| key | type | when absent |", "|---|---|---|", *rows, ""]


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else None
    return "none" if value in (None, ()) else f"`{msgspec.json.encode(value).decode()}`"


def _type(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata():
            return str((kind.extra_json_schema or {})["title"])
        case inspect.UnionType(types=types):
            present = [each for each in types if not isinstance(each, inspect.NoneType)]
            return " or ".join(map(_type, present))
        case inspect.VarTupleType(item_type=item):
            return f"list of {_type(item)}"
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{each}`" for each in values)
        case inspect.StructType(cls=cls):
            return cls.__name__
        case inspect.BoolType():
            return "bool"
    return "text"


def _example(name: str, tag: str, folder: str) -> str:
    """The shortest golden frame of a message: what it is about, without the frame."""
    found: list[Any] = []
    for path in sorted((GOLDEN / folder).glob("*.json")):
        frame = json.loads(path.read_text())
        body = frame if tag == "event" else frame[tag.replace("op", "request").replace("result", "response")]
        if body[tag] == name:
            found.append(body)
    assert found, f"no golden frame of {name}"
    typical = [each for each in found if len(each) > 1] or found
    return json.dumps(min(typical, key=lambda each: len(json.dumps(each))), ensure_ascii=False)


def _parts() -> list[inspect.StructType]:
    """Every object that a message has within it, by name."""
    top = {*get_args(wire.Request), *get_args(wire.Response), *get_args(wire.Event)}
    found: dict[str, inspect.StructType] = {}

    def visit(kind: inspect.Type) -> None:
        match kind:
            case inspect.UnionType(types=types):
                for each in types:
                    visit(each)
            case inspect.VarTupleType(item_type=item):
                visit(item)
            case inspect.StructType(cls=cls, fields=fields) if cls not in top or cls in visiting:
                if cls not in top:
                    if cls.__name__ in found:
                        return
                    found[cls.__name__] = kind
                for each in fields:
                    visit(each.type)

    visiting = set(top)
    for message in top:
        visit(inspect.type_info(message))
    return [found[name] for name in sorted(found)]
