"""The format of the journal: rows to bytes, and bytes back to rows or a refusal.

Owns: the layout of the log, what counts as whole, torn or damaged, and what may be kept of a damaged one.  Must not
know: files, directories, locks, when to sync (`daemon.change.journal`), or what a row means (`model.state`).

The state is a set of rows, `(table, key) -> JSON`; a change sets and removes some of them; one commit is one change
and becomes one record.  A log is::

    header   magic 8 | version u32 | first u64 | durable u64 | crc u32          (crc over all before it)
    record   marker 4 | crc u32 | length u32 | sequence u64 | floor u64 | body  (crc over all after it)
    record   ...

Integers are little-endian, crc is CRC-32 (zlib), `length` is the body's in bytes.  The body is the change as JSON,
`[{table: {key: row}}, {table: [removed key]}]`.  `sequence` grows by exactly 1 a record.  Rows keep their bytes: they
are copied into the body and sliced out of it, never parsed and printed again (hence msgspec's `Raw`).

Two numbers tell a power cut from damage:

- The records `first..durable` of the header are a checkpoint: all live rows when the file was made.  They were synced
  before the file got its name, so no power cut explains one that is missing.  A log's first commit is a checkpoint
  too: no log ever lies on the disk whose beginning is not known to be whole, and no cut leaves an empty state.
- `floor` is the newest sequence that was durable when the record was written.  The records of a batch, which share a
  sync, share their floor.  A disk may keep a batch's later pages and lose an earlier one, so a whole record after a bad
  one proves damage only when its floor says that the bad one had been durable.

Limits, which no format escapes that writes a commit once: a log that was cut at any byte after its checkpoint, or
whose last batch was damaged after it was acknowledged, looks like a power cut in that batch, and recovers to the commit
before.  It is never silent: all but a cut between two records is reported as torn, and the caller keeps the bytes.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice

import msgspec

from overlayd.errors import StateError

Row = tuple[str, str]
Change = Mapping[Row, bytes | None]

MAGIC = b"OVLAYLOG"
VERSION = 1
# 0xFF never occurs in UTF-8, so no body holds the marker and a search for it finds records only.
MARKER = b"\xffREC"
HEADER = struct.Struct("<8sIQQI")
RECORD = struct.Struct("<4sIIQQ")
_COVERED_FROM = 8  # a record's crc covers what follows the marker and itself

# Rows a record of a checkpoint: framing stays below 1 %, and damage to one record leaves all rows before it to salvage.
CHECKPOINT_ROWS = 64

_Body = tuple[dict[str, dict[str, msgspec.Raw]], dict[str, list[str]]]
_decoder = msgspec.json.Decoder(_Body)


class LogDamaged(StateError):
    """The log is not what was written; offset: the byte at which the damaged part starts."""

    def __init__(self, offset: int, what: str) -> None:
        self.offset = offset
        super().__init__(f"damaged at byte {offset}: {what}")


class Recovered(msgspec.Struct, frozen=True):
    """rows: the state; sequence: the newest record's; good_length: bytes that hold it; torn: bytes after those."""

    rows: dict[Row, bytes]
    sequence: int
    good_length: int
    torn: int


class _Record(msgspec.Struct, frozen=True):
    sequence: int
    floor: int
    body: memoryview
    end: int


def encode_change(change: Change) -> bytes:
    """The body of the record of `change` (a value of None removes the row).

    It is read back at once: a body that cannot be read is discovered by the commit, not by the next start.
    Raises ValueError when a value is not exactly one JSON value without space around it, or a name is not Unicode.
    """
    set_: dict[str, dict[str, msgspec.Raw]] = {}
    removed: dict[str, list[str]] = {}
    for (table, key), value in change.items():
        if value is None:
            removed.setdefault(table, []).append(key)
        else:
            set_.setdefault(table, {})[key] = msgspec.Raw(value)
    body = msgspec.json.encode((set_, removed))
    try:
        body.decode()  # the JSON decoder passes over the strings it slices out
        readable = _decode_change(body) == change
    except (ValueError, RecursionError):
        readable = False
    if not readable:  # the names alone: a row may hold a private key
        raise ValueError(f"the rows of this change are not all JSON: {sorted(change)}")
    return body


def record(sequence: int, floor: int, body: bytes) -> bytes:
    """One record; floor: the newest sequence that is durable now."""
    covered = RECORD.pack(MARKER, 0, len(body), sequence, floor)[_COVERED_FROM:] + body
    return MARKER + zlib.crc32(covered).to_bytes(4, "little") + covered


def checkpoint(rows: Mapping[Row, bytes], sequence: int) -> tuple[bytes, int]:
    """A whole log of just `rows`, to replace one whose newest record is `sequence`, and its own newest sequence.

    The rows must come from changes that `encode_change` accepted: they are not checked again.
    """
    pending = iter(rows.items())
    records: list[bytes] = []
    newest = sequence
    while part := list(islice(pending, CHECKPOINT_ROWS)):
        tables: dict[str, dict[str, msgspec.Raw]] = {}
        for (table, key), value in part:
            tables.setdefault(table, {})[key] = msgspec.Raw(value)
        newest += 1
        records.append(record(newest, sequence, msgspec.json.encode((tables, {}))))
    header = HEADER.pack(MAGIC, VERSION, sequence + 1, newest, 0)[:-4]
    return b"".join((header, zlib.crc32(header).to_bytes(4, "little"), *records)), newest


def recover(data: bytes) -> Recovered:
    """The state that `data`, the content of a journal, holds.

    Raises LogDamaged when anything but a write that never finished explains the bytes; StateError when another version
    wrote them.
    """
    first, durable = _header(data)
    rows, sequence, position = _replay(data, HEADER.size, first - 1)
    if sequence < durable:
        raise LogDamaged(position, f"record {sequence + 1} of the checkpoint ({first} to {durable}) is not whole")
    if found := _record_at(data, position):
        if found.sequence != sequence + 1:
            raise LogDamaged(position, f"record {found.sequence} stands where {sequence + 1} belongs")
        raise LogDamaged(position, f"record {found.sequence} is whole and does not hold a change")
    for later in _search(data, position + 1):
        if later.floor > sequence:
            raise LogDamaged(
                position,
                f"record {sequence + 1} is not whole, and record {later.sequence}, written after it was durable, is",
            )
    return Recovered(rows, sequence, position, len(data) - position)


def salvage(data: bytes) -> Recovered:
    """What a damaged log still holds up to the damage; `torn` counts the bytes given up.  A bad header is passed over.

    Raises LogDamaged when no record is whole before the damage; StateError when another version wrote the log.
    """
    try:
        before = _header(data)[0] - 1
    except LogDamaged:
        found = _record_at(data, HEADER.size)
        before = found.sequence - 1 if found else 0
    rows, sequence, position = _replay(data, HEADER.size, before)
    if position == HEADER.size:
        raise LogDamaged(min(position, len(data)), "nothing whole precedes the damage, so nothing can be salvaged")
    return Recovered(rows, sequence, position, len(data) - position)


def _header(data: bytes) -> tuple[int, int]:
    """The sequences (first, durable) of the checkpoint that the log starts with."""
    if not data:
        raise LogDamaged(0, "the file is empty, and no journal ever is")
    if len(data) < HEADER.size:
        raise LogDamaged(0, f"the file ends inside its header, after {len(data)} bytes of {HEADER.size}")
    magic, version, first, durable, crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise LogDamaged(0, "the file does not start like a journal")
    if crc != zlib.crc32(data[: HEADER.size - 4]):
        raise LogDamaged(0, "the header fails its checksum")
    if version != VERSION:
        raise StateError(f"journal format {version} is unknown to this overlayd, which reads and writes {VERSION}")
    return first, durable


def _replay(data: bytes, position: int, sequence: int) -> tuple[dict[Row, bytes], int, int]:
    """Rows, newest sequence and end of the records that follow `sequence` without a fault from `position` on."""
    rows: dict[Row, bytes] = {}
    while (found := _record_at(data, position)) and found.sequence == sequence + 1:
        try:
            change = _decode_change(found.body)
        except (ValueError, RecursionError):
            break  # `recover` names this fault: the record is whole, so it cannot be a torn one
        for row, value in change.items():
            if value is None:
                rows.pop(row, None)
            else:
                rows[row] = value
        sequence, position = found.sequence, found.end
    return rows, sequence, position


def _search(data: bytes, position: int) -> Iterator[_Record]:
    """Every whole record that starts at `position` or later, whatever lies between them."""
    while (position := data.find(MARKER, position)) >= 0:
        found = _record_at(data, position)
        if found:
            yield found
        position = found.end if found else position + 1


def _record_at(data: bytes, position: int) -> _Record | None:
    """The record that starts at `position`, or None when there is no whole one."""
    start = position + RECORD.size
    if start > len(data):
        return None
    marker, crc, length, sequence, floor = RECORD.unpack_from(data, position)
    end = start + length
    if marker != MARKER or end > len(data):
        return None
    view = memoryview(data)
    if zlib.crc32(view[position + _COVERED_FROM : end]) != crc:
        return None
    return _Record(sequence, floor, view[start:end], end)


def _decode_change(body: bytes | memoryview) -> dict[Row, bytes | None]:
    set_, removed = _decoder.decode(body)
    change: dict[Row, bytes | None] = {(table, key): None for table, keys in removed.items() for key in keys}
    for table, keyed in set_.items():
        for key, value in keyed.items():
            change[table, key] = bytes(value)
    return change
