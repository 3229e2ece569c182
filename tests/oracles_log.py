"""The journal's log, slow and obvious: what a file must contain byte by byte, and which states it may give back."""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence

Row = tuple[str, str]
Change = Mapping[Row, bytes | None]
Rows = dict[Row, bytes]


def states(changes: Iterable[Change]) -> list[Rows]:
    """The rows before the first change, after the first, after the second and so on."""
    rows: Rows = {}
    history = [rows]
    for change in changes:
        rows = dict(rows)
        for row, value in change.items():
            rows.pop(row, None)
            if value is not None:
                rows[row] = value
        history.append(rows)
    return history


def crc32(data: bytes) -> int:
    """CRC-32 of ISO-HDLC (zlib, Ethernet), a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def body(change: Change) -> bytes:
    set_: dict[str, dict[str, object]] = {}
    removed: dict[str, list[str]] = {}
    for (table, key), value in change.items():
        if value is None:
            removed.setdefault(table, []).append(key)
        else:
            set_.setdefault(table, {})[key] = json.loads(value)
    return json.dumps([set_, removed], separators=(",", ":"), ensure_ascii=False).encode()


def record(sequence: int, floor: int, change: Change) -> bytes:
    text = body(change)
    covered = struct.pack("<IQQ", len(text), sequence, floor) + text
    return b"\xffREC" + struct.pack("<I", crc32(covered)) + covered


def header(first: int, durable: int) -> bytes:
    covered = b"OVLAYLOG" + struct.pack("<IQQ", 1, first, durable)
    return covered + struct.pack("<I", crc32(covered))


def written(batches: Sequence[Sequence[Change]]) -> list[bytes]:
    """The pieces of a log: header, then a record a change.  The first batch is one change, the checkpoint."""
    pieces = [header(1, 1)]
    sequence = 0
    for batch in batches:
        floor = sequence
        for change in batch:
            sequence += 1
            pieces.append(record(sequence, floor, change))
    return pieces
