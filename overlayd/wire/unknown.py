"""Keys of a request that the contract does not have.

Owns: which they are, what they may have been meant to be, and the request without them.  Must not know: frames, or the
messages by name; it reads their shapes from the classes.

The typed decoder takes no unknown key, so a client that sends none pays nothing for this.  However many there are, no
object is made of more than MOST_TOLD of them.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, inspect

from overlayd._fast.jsonscan import next_keys

# Ours: enough to find the fault, and no more of a hostile client's.
MOST_TOLD = 8
LONGEST_KEY = 40  # characters of a key in a message
LIKE = 0.6  # from 0 to 1: how like a known key must be to be called the nearest
LONGEST_TAG = 256  # bytes, escapes included
AT_ONCE = 64  # keys that are read before other threads may go on


class UnknownKey(NamedTuple):
    """parent: the path of its object, as in errors ("request.handle").  known: the keys that such an object has."""

    parent: str
    key: str
    known: tuple[str, ...]

    @property
    def path(self) -> str:
        """The path of the key, as in errors ("request.handle.pdi")."""
        key = self.key
        plain = len(key) <= LONGEST_KEY and key.isidentifier() and key.isascii()
        return f"{self.parent}.{key if plain else ascii(key[:LONGEST_KEY])}"

    @property
    def nearest(self) -> str:
        """The known key that is most like it; empty when none is."""
        from difflib import get_close_matches  # noqa: PLC0415 -- only who mistypes a key needs it

        return (get_close_matches(self.key[:LONGEST_KEY], self.known, 1, LIKE) or [""])[0]

    def __str__(self) -> str:
        nearest = self.nearest
        return f"{self.path}: unknown key" + (f"; did you mean {nearest}?" if nearest else "")


def without_unknown(
    value: bytes | bytearray | memoryview | Raw, expected: inspect.Type, path: str
) -> tuple[object, list[UnknownKey]]:
    """A JSON value without the keys that its type does not have, ready to be encoded again, and the first of those.

    Only what the type has is looked into.  What is no value of the type stays as it is: it is for `mismatch` to name.
    ValueError, RecursionError: it is not JSON.
    """
    found: list[UnknownKey] = []
    bare = msgspec.json.decode(value, type=Raw)  # without space around it
    return _known_part(bare, expected, path, found), found


def _known_part(value: Raw, expected: inspect.Type, path: str, found: list[UnknownKey]) -> object:
    first = bytes(memoryview(value)[:1])
    if first == b"{" and (types := _structs(expected)):
        shape = _chosen(value, types)
        return value if shape is None else _known_keys(value, shape, path, found)
    if first == b"[" and isinstance(expected, inspect.VarTupleType) and _structs(expected.item_type):
        try:
            items = _items(expected.max_length).decode(value)
        except msgspec.ValidationError:  # too many
            return value
        return [_known_part(one, expected.item_type, f"{path}[{at}]", found) for at, one in enumerate(items)]
    return value


def _known_keys(value: Raw, shape: inspect.StructType, path: str, found: list[UnknownKey]) -> dict[str, object]:
    fields = {field.encode_name: field.type for field in shape.fields}
    tag = () if shape.tag_field is None else (shape.tag_field,)
    unknown = _unknown_keys(value, {*tag, *fields})
    found += (UnknownKey(path, key, tuple(fields)) for key in islice(unknown, MOST_TOLD - len(found)))
    known: dict[str, object] = {}
    for key, part in _parts((*tag, *fields), value).items():
        known[key] = _known_part(part, fields[key], f"{path}.{key}", found) if key in fields else part
    return known


def _unknown_keys(value: Raw, known: set[str]) -> Iterator[str]:
    """Each once for every time that an object has it, in their order."""
    at = 0
    while at >= 0:
        keys, at = next_keys(value, at, AT_ONCE)
        yield from (key for key in map(_text.decode, keys) if key not in known)


def _parts(names: tuple[str, ...], value: Raw) -> dict[str, Raw]:
    """What an object has of these keys; the others are passed over without making anything of them."""
    parts = _those_of(names).decode(value)
    return {name: part for name, part in zip(names, msgspec.structs.astuple(parts), strict=True) if part is not UNSET}


@cache
def _those_of(names: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    fields = [(f"f{at}", Raw | UnsetType, UNSET) for at in range(len(names))]
    return msgspec.json.Decoder(
        msgspec.defstruct("Parts", fields, rename={f"f{at}": name for at, name in enumerate(names)})
    )


@cache
def _items(most: int | None) -> msgspec.json.Decoder[list[Raw]]:
    return msgspec.json.Decoder(Annotated[list[Raw], Meta(max_length=most)])


def _structs(expected: inspect.Type) -> Sequence[inspect.StructType]:
    """The types of objects that a type allows."""
    types = expected.types if isinstance(expected, inspect.UnionType) else (expected,)
    return [one for one in types if isinstance(one, inspect.StructType)]


def _chosen(value: Raw, types: Sequence[inspect.StructType]) -> inspect.StructType | None:
    """The type that an object's tag names; None when it names none."""
    field = types[0].tag_field
    if field is None:
        return types[0]
    tag = _parts((field,), value).get(field)
    if tag is None or len(memoryview(tag)) > LONGEST_TAG:
        return None
    name = msgspec.json.decode(tag)
    return next((one for one in types if one.tag == name), None)


_text = msgspec.json.Decoder(str)
