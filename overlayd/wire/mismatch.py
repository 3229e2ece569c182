"""Which key of a refused JSON value is to blame, in a person's words.

Owns: the wording.  Must not know: frames, or the messages by name; it reads their shapes from the classes.

The typed decoder has refused the bytes already; it is fast and exact, but what it says names Python types.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import inspect

# Ours: enough to recognise a value by, and no more of a hostile one.
LONGEST_QUOTED = 60

U64_MAX = 2**64 - 1


def mismatch(value: object, expected: inspect.Type, path: str) -> str | None:
    """What is wrong with a decoded JSON value, and where; None when it is as expected.

    expected: from `msgspec.inspect.type_info`.  path: names the value ("request"); the keys
    inside are added to it ("request.handle.pid").
    """
    match expected:
        case inspect.StructType():
            return _in_struct(value, expected, path)
        case inspect.UnionType(types=types) if any(isinstance(one, inspect.NoneType) for one in types):
            present = tuple(one for one in types if not isinstance(one, inspect.NoneType))
            if value is None:
                return None
            return mismatch(value, present[0] if len(present) == 1 else inspect.UnionType(present), path)
        case inspect.UnionType(types=types):
            return _in_tagged(value, [one for one in types if isinstance(one, inspect.StructType)], path)
        case inspect.VarTupleType(item_type=item, max_length=most):
            if not isinstance(value, list):
                return _expected("list", value, path)
            if most is not None and len(value) > most:
                return f"{path}: at most {most} items, got {len(value)}"
            return _first(mismatch(one, item, f"{path}[{number}]") for number, one in enumerate(value))
        case inspect.LiteralType(values=values):
            return None if value in values else _expected(" or ".join(map(quote, values)), value, path)
        case inspect.Metadata(type=inspect.IntType() as bounds):
            ok = type(value) is int and (bounds.ge or 0) <= value <= (U64_MAX if bounds.le is None else bounds.le)
            return None if ok else _expected(type_name(expected), value, path)
        case inspect.StrType(max_length=most):
            if isinstance(value, str) and most is not None and len(value) > most:
                return f"{path}: at most {most} characters, got {len(value)}"
            return None if isinstance(value, str) else _expected("string", value, path)
        case inspect.BoolType():
            return None if isinstance(value, bool) else _expected("bool", value, path)
    raise TypeError(f"no rule for {expected}")


def type_name(expected: inspect.Type) -> str:
    """The contract's name of an integer type ("u16"); the title that the type carries."""
    assert isinstance(expected, inspect.Metadata)
    return str((expected.extra_json_schema or {})["title"])


def quote(value: object) -> str:
    """A decoded JSON value as it may stand in a message: short, on one line."""
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
        case str() if len(value) > LONGEST_QUOTED:
            return quote(value[:LONGEST_QUOTED]) + "..."
        case int() if value.bit_length() > 64:
            return f"an integer of {value.bit_length()} bits"
    return msgspec.json.encode(value).decode()


def _expected(what: str, value: object, path: str) -> str:
    return f"{path}: expected {what}, got {quote(value)}"


def _first(findings: Iterable[str | None]) -> str | None:
    return next((finding for finding in findings if finding is not None), None)


def _in_tagged(value: object, types: list[inspect.StructType], path: str) -> str | None:
    if not isinstance(value, dict):
        return _expected("object", value, path)
    field = types[0].tag_field
    tag = value.get(field)
    if field not in value:
        return f"{path}.{field}: required key is missing"
    if not isinstance(tag, str):
        return _expected("string", tag, f"{path}.{field}")
    for one in types:
        if one.tag == tag:
            return _in_struct(value, one, path)
    return f"{path}.{field}: unknown {field} {quote(tag)}"


def _in_struct(value: object, expected: inspect.StructType, path: str) -> str | None:
    if not isinstance(value, dict):
        return _expected("object", value, path)
    return _first(_in_field(value, field, f"{path}.{field.encode_name}") for field in expected.fields)


def _in_field(value: Mapping[str, Any], field: inspect.Field, path: str) -> str | None:
    if field.encode_name in value:
        return mismatch(value[field.encode_name], field.type, path)
    return f"{path}: required key is missing" if field.required else None
