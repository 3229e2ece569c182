"""The log's format: every cut, every flipped bit, every page that a power cut may lose."""

import json
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles_log import Change, Rows, body, crc32, header, record, states, written

from overlayd.errors import StateError
from overlayd.proto import log

# One commit is the checkpoint; then a batch of one, and two of two commits.
BATCHES: list[list[Change]] = [
    [{("node", "key"): b'"c2VjcmV0"', ("node", "address"): b'"10.0.0.1"'}],
    [{("service", "web"): b'{"subnet":"10.9.0.16/28"}'}],
    [
        {("address", "10.9.0.18"): b'{"service":"web"}', ("service", "w\u00e9b"): b"[1,2.5,null]"},
        {("service", "web"): None},
    ],
    [{("address", "10.9.0.18"): None}, {("node", "key"): b'"bmV3"', ("node", "absent"): None}],
]
STATES = states(change for batch in BATCHES for change in batch)
PIECES = written(BATCHES)
LOG = b"".join(PIECES)
ENDS = list(accumulate(map(len, PIECES)))  # of the header, of commit 1, 2 ...
LAST_BATCH = ENDS[-1 - len(BATCHES[-1])]


def commits_before(position: int) -> int:
    """How many commits end at `position` or before."""
    return sum(end <= position for end in ENDS[1:])


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_the_format_is_the_documented_one() -> None:
    first, newest = log.checkpoint(STATES[1], 0)
    pieces = [first]
    for batch in BATCHES[1:]:
        floor = newest
        for change in batch:
            newest += 1
            pieces.append(log.record(newest, floor, log.encode_change(change)))
    assert b"".join(pieces) == LOG
    assert log.recover(LOG) == log.Recovered(STATES[-1], 6, len(LOG), 0)


def test_every_cut_is_refused_or_gives_every_whole_commit() -> None:
    for length in range(len(LOG)):
        if length < ENDS[1]:
            with pytest.raises(log.LogDamaged):
                log.recover(LOG[:length])
        else:
            whole = commits_before(length)
            expected = log.Recovered(STATES[whole], whole, ENDS[whole], length - ENDS[whole])
            assert log.recover(LOG[:length]) == expected


def test_every_flipped_bit_is_refused_or_costs_the_last_batch_only() -> None:
    for bit in range(len(LOG) * 8):
        damaged = flipped(LOG, bit)
        if bit // 8 < LAST_BATCH:
            with pytest.raises(log.LogDamaged) as caught:
                log.recover(damaged)
            assert caught.value.offset <= bit // 8
        else:
            whole = commits_before(bit // 8)
            found = log.recover(damaged)
            assert found == log.Recovered(STATES[whole], whole, ENDS[whole], len(LOG) - ENDS[whole])
            assert found.torn


def test_salvage_keeps_what_precedes_every_flipped_bit() -> None:
    for bit in range(len(LOG) * 8):
        damaged = flipped(LOG, bit)
        whole = len(STATES) - 1 if bit // 8 < ENDS[0] else commits_before(bit // 8)
        if whole == 0:
            with pytest.raises(log.LogDamaged, match="nothing can be salvaged"):
                log.salvage(damaged)
        else:
            assert log.salvage(damaged) == log.Recovered(STATES[whole], whole, ENDS[whole], len(LOG) - ENDS[whole])


def test_a_single_damaged_row_of_a_large_checkpoint_leaves_the_rows_before_it() -> None:
    rows = {("peer", f"{at:03}"): b"%d" % at for at in range(300)}
    data, newest = log.checkpoint(rows, 41)
    assert newest == 41 + 5
    damaged = data.replace(b'"200":200', b'"200":201')
    with pytest.raises(log.LogDamaged, match="record 45 of the checkpoint"):
        log.recover(damaged)
    kept = list(rows)[: 3 * log.CHECKPOINT_ROWS]
    assert log.salvage(damaged).rows == {row: rows[row] for row in kept}


@given(st.data())
def test_any_pages_of_a_batch_may_be_missing_after_a_power_cut(data: st.DataObject) -> None:
    """The disk writes a batch's pages in any order: whatever is missing, all that was synced before comes back."""
    page = data.draw(st.sampled_from([16, 64, 512]))
    in_flight = [
        {("t", f"k{at}"): b"%d" % (10 ** data.draw(st.integers(0, 60)))} for at in range(data.draw(st.integers(1, 8)))
    ]
    floor = len(STATES) - 1
    full = LOG + b"".join(record(floor + 1 + at, floor, change) for at, change in enumerate(in_flight))
    size = data.draw(st.integers(len(LOG), len(full)))
    disk = bytearray(full[:size])
    for start in range(len(LOG) // page * page, size, page):
        if data.draw(st.booleans()):
            lost = range(max(start, len(LOG)), min(start + page, size))
            disk[lost.start : lost.stop] = bytes(len(lost))
    found = log.recover(bytes(disk))
    history = states([change for batch in BATCHES for change in batch] + in_flight)
    assert found.sequence >= floor
    assert found.rows == history[found.sequence]
    assert found.good_length + found.torn == size


@given(st.integers(0, len(LOG)), st.integers(0, len(LOG)), st.binary(max_size=80))
def test_any_splice_is_refused_or_gives_a_beginning(one: int, other: int, put: bytes) -> None:
    start, stop = sorted((one, other))
    try:
        found = log.recover(LOG[:start] + put + LOG[stop:])
    except StateError:
        return
    assert found.sequence >= 1
    assert found.rows == STATES[found.sequence]
    assert found.sequence >= commits_before(start)


def test_a_missing_and_a_repeated_record_are_refused() -> None:
    for at in range(2, len(PIECES) - 1):
        with pytest.raises(log.LogDamaged, match="stands where") as caught:
            log.recover(b"".join(PIECES[:at] + PIECES[at + 1 :]))
        assert caught.value.offset == ENDS[at - 1]
        with pytest.raises(log.LogDamaged, match="stands where"):
            log.recover(b"".join(PIECES[:at] + PIECES[at - 1 :]))


def test_a_whole_record_without_a_change_is_refused_even_at_the_end() -> None:
    text = b'{"sets":1}'
    covered = len(text).to_bytes(4, "little") + (7).to_bytes(8, "little") + (6).to_bytes(8, "little") + text
    with pytest.raises(log.LogDamaged, match="does not hold a change"):
        log.recover(LOG + b"\xffREC" + crc32(covered).to_bytes(4, "little") + covered)


def test_what_is_no_journal_is_refused() -> None:
    for data, message in [
        (b"", "empty"),
        (b"OVLAY", "ends inside its header"),
        (b"SQLite format 3\0" * 4, "does not start like a journal"),
        (bytes(4096), "does not start like a journal"),
    ]:
        with pytest.raises(log.LogDamaged, match=message) as caught:
            log.recover(data)
        assert caught.value.offset == 0


def test_another_version_is_refused_and_not_salvaged() -> None:
    covered = header(1, 1)[:-4].replace(b"OVLAYLOG\x01", b"OVLAYLOG\x02")
    data = covered + crc32(covered).to_bytes(4, "little") + LOG[log.HEADER.size :]
    for read in (log.recover, log.salvage):
        with pytest.raises(StateError, match="format 2 is unknown") as caught:
            read(data)
        assert not isinstance(caught.value, log.LogDamaged)


def test_an_empty_checkpoint_is_a_log() -> None:
    data, newest = log.checkpoint({}, 7)
    assert newest == 7
    assert log.recover(data) == log.Recovered({}, 7, len(data), 0)


names = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
rows = st.builds(
    lambda value, spaced: json.dumps(value, separators=(", ", ": ") if spaced else (",", ":")).encode(),
    values,
    st.booleans(),
)
changes = st.dictionaries(st.tuples(names, names), st.none() | rows, max_size=5)


@given(st.lists(changes, max_size=8), st.integers(0, 8))
def test_rows_come_back_byte_for_byte(made: list[Change], checkpoint_after: int) -> None:
    history = states(made)
    checkpoint_after = min(checkpoint_after, len(made))
    data, newest = log.checkpoint(history[checkpoint_after], 0)
    for change in made[checkpoint_after:]:
        newest += 1
        data += log.record(newest, newest - 1, log.encode_change(change))
    found = log.recover(data)
    assert (found.rows, found.sequence, found.torn) == (history[-1], newest, 0)


@given(st.dictionaries(st.tuples(names, names), st.none() | st.integers(0, 99).map(lambda value: b"%d" % value)))
def test_a_body_is_the_documented_json(change: Change) -> None:
    assert json.loads(log.encode_change(change)) == json.loads(body(change))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b" 1",
        b"1\n",
        b"NaN",
        b'1,"x":2',
        b'1},"u":{"k":2',
        b'"\xff"',
        b'"\x00"',
        b'"\\ud800"',
        b"[" * 100_000,
    ],
)
def test_a_row_that_is_not_json_is_refused_by_name_and_not_shown(value: bytes) -> None:
    with pytest.raises(ValueError, match="not all JSON") as caught:
        log.encode_change({("t", "k"): value, ("node", "key"): b'"c2VjcmV0"'})
    assert "c2VjcmV0" not in str(caught.value)


def test_a_name_that_is_not_unicode_is_refused() -> None:
    change: Rows = {("t", "\ud800"): b"1"}
    with pytest.raises(ValueError):
        log.encode_change(change)
