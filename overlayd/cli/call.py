"""`overlayctl call`: a request of the contract from `key=value` words.

Owns: reading words by the type of the key they are for, and describing the requests.  Must not know: requests by
name; it reads their shapes from the classes, so a new one needs nothing here.
"""

import inspect as source
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from overlayd import wire
from overlayd.errors import OverlaydError, RequestError
from overlayd.spelling import perhaps_meant
from overlayd.wire.mismatch import type_name


class UsageError(OverlaydError):
    """The words on the command line make no request."""


class NotFound(OverlaydError):
    """What a command is about is not there."""


def parse_request(op: str, pairs: list[str]) -> wire.Request:
    """The request `op` with the keys that the words `key=value` or `key.inner=value` give it.  Raises UsageError."""
    shape = _shapes().get(op)
    if shape is None:
        raise UsageError(f"unknown request {op}; {perhaps_meant(op, _shapes()) or 'overlayctl call --list shows all'}")
    request: dict[str, Any] = {"op": op}
    for pair in pairs:
        path, equals, word = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is not key=value")
        _put(request, shape, path, word)
    try:
        return wire.decode_request_object(msgspec.json.encode(request))
    except UnicodeEncodeError:
        raise UsageError("the words are not UTF-8") from None
    except RequestError as error:
        raise UsageError(f"{re.sub(r'^request[.]?', '', str(error))}\nusage of {op}: {_signature(shape)}") from None


def list_requests() -> str:
    """Every request: what it is for, and its keys, those that may be left out in brackets."""
    return "\n".join(
        f"{shape.tag} {_signature(shape)}".rstrip() + f"\n    {_summary(shape.cls)}" for shape in _shapes().values()
    )


def operations() -> list[str]:
    """Every request, by name."""
    return sorted(_shapes())


@cache
def _shapes() -> dict[str, inspect.StructType]:
    union = inspect.type_info(wire.Request)
    assert isinstance(union, inspect.UnionType)
    return {str(one.tag): one for one in union.types if isinstance(one, inspect.StructType)}


def _put(request: dict[str, Any], shape: inspect.Type, path: str, word: str) -> None:
    *parents, key = path.split(".")
    place, places = request, [shape]
    for parent in parents:
        places = _inside(places, parent, path)
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UsageError(f"{path}: {parent} already has a value")
    if key in place:
        raise UsageError(f"{path} is given twice")
    place[key] = _value(_inside(places, key, path)[0], path, word)


def _inside(places: list[inspect.Type], key: str, path: str) -> list[inspect.Type]:
    """The types that `key` may have in a value of one of the types `places`."""
    structs = [one for place in places for one in _alternatives(place) if isinstance(one, inspect.StructType)]
    found = [field.type for struct in structs for field in struct.fields if field.encode_name == key]
    if any(struct.tag_field == key for struct in structs):
        found.append(inspect.StrType())
    if not found:
        keys = sorted({field.encode_name for struct in structs for field in struct.fields})
        raise UsageError(f"there is no key {path}" + (f"; there is {', '.join(keys)}" if keys else ""))
    return found


def _alternatives(shape: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(shape, inspect.UnionType):
        yield from (one for one in shape.types if not isinstance(one, inspect.NoneType))
    else:
        yield shape


def _value(shape: inspect.Type, path: str, word: str) -> object:
    """The JSON value that a word means; the word itself if it means none, which the contract's own check then names."""
    match next(_alternatives(shape)):
        case inspect.Metadata():
            return int(word) if re.fullmatch("-?[0-9]{1,40}", word, re.ASCII) else word
        case inspect.BoolType():
            return {"true": True, "false": False}.get(word, word)
        case inspect.VarTupleType(item_type=inspect.StrType()) if not word.startswith("["):
            return word.split(",") if word else []
        case inspect.VarTupleType() | inspect.StructType():
            try:
                return msgspec.json.decode(word)
            except ValueError as error:
                raise UsageError(f"{path}: expected JSON for {_describe(shape)}: {error}") from None
    return word


def _signature(shape: inspect.StructType) -> str:
    """ "service=TEXT join_global=BOOL [ephemeral=BOOL]" """
    words = (f"{field.encode_name}={_describe(field.type)}" for field in shape.fields)
    return " ".join(word if field.required else f"[{word}]" for word, field in zip(words, shape.fields, strict=True))


def _describe(shape: inspect.Type) -> str:
    match list(_alternatives(shape)):
        case [inspect.Metadata() as integer]:
            return type_name(integer).upper()
        case [inspect.StrType()]:
            return "TEXT"
        case [inspect.BoolType()]:
            return "true|false"
        case [inspect.LiteralType(values=values)]:
            return "|".join(map(str, values))
        case [inspect.VarTupleType(item_type=item)]:
            return f"{_describe(item)},..."
        case [inspect.StructType(tag=None, fields=fields)]:
            return "{" + ",".join(field.encode_name for field in fields) + "}"
        case structs:
            return "|".join(_describe_tagged(one) for one in structs if isinstance(one, inspect.StructType))


def _describe_tagged(shape: inspect.StructType) -> str:
    return "{" + ",".join([f"{shape.tag_field}:{shape.tag}", *(field.encode_name for field in shape.fields)]) + "}"


def _summary(cls: type) -> str:
    return (source.getdoc(cls) or "").splitlines()[0]
