"""When a path counts as lost: WireGuard's own timers, played through on two ends with a path that breaks."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.path_loss import INITIATION, KEEPALIVE, UNANSWERED, PathLoss

KEY = b"k" * 32
DATA = 128
PASSIVE = 10  # KEEPALIVE_TIMEOUT


class Seen(NamedTuple):
    rx_bytes: int
    tx_bytes: int


class Readings:
    """A device with one peer, read every second.  lost: when its path was."""

    def __init__(self) -> None:
        self.subject, self.now = PathLoss(), 100.0
        self.rx = self.tx = 0
        self.lost: list[float] = []
        self.read(0)

    def read(self, seconds: float = 1.0, *, rx: int = 0, tx: int = 0) -> None:
        self.now, self.rx, self.tx = self.now + seconds, self.rx + rx, self.tx + tx
        if self.subject.observe({KEY: Seen(self.rx, self.tx)}, self.now):
            self.lost.append(self.now)


def test_data_that_nobody_answers() -> None:
    readings = Readings()
    readings.read(rx=DATA, tx=DATA)
    broken = readings.now
    for _ in range(20):
        readings.read(tx=DATA)
    assert readings.lost == [broken + UNANSWERED], "once"
    assert readings.subject.is_lost(KEY)
    before = readings.subject.answers(KEY)
    readings.read(rx=DATA)
    assert not readings.subject.is_lost(KEY)
    assert readings.subject.answers(KEY) == before + 1


def test_a_receiver_that_has_fallen_silent_learns_it_from_its_initiation() -> None:
    readings = Readings()
    readings.read(rx=DATA, tx=DATA)
    broken = readings.now
    for _ in range(int(UNANSWERED)):
        readings.read()
    assert readings.lost == [], "it may have had nothing to say"
    readings.read(tx=INITIATION)
    assert readings.lost == [broken + UNANSWERED + 1]


def test_what_needs_no_answer() -> None:
    readings = Readings()
    for _ in range(200):
        readings.read(tx=KEEPALIVE)
    assert readings.lost == []


def test_a_stream_in_one_direction_is_answered_by_keepalives() -> None:
    readings = Readings()
    for second in range(200):
        readings.read(tx=DATA, rx=KEEPALIVE if second % PASSIVE == PASSIVE - 1 else 0)
    assert readings.lost == []


def test_a_rekey_after_a_long_silence_is_no_loss() -> None:
    readings = Readings()
    readings.read(100.0)
    readings.read(tx=DATA + INITIATION)
    readings.read(rx=92 + DATA, tx=DATA)
    assert readings.lost == []


def test_a_rekey_that_takes_several_initiations_is_no_loss() -> None:
    readings = Readings()
    readings.read(rx=DATA)
    for _ in range(2):
        readings.read(tx=INITIATION)
        readings.read(4.0)
    readings.read(rx=92 + DATA)
    assert readings.lost == []


def test_a_peer_whom_our_answers_do_not_reach() -> None:
    readings = Readings()
    readings.read(rx=DATA, tx=DATA)
    for second in range(40):
        readings.read(**({"rx": INITIATION, "tx": 92} if second % 5 == 0 else {}))
    assert len(readings.lost) == 1


@pytest.mark.parametrize("pause", [1.0, 5.0])
def test_readings_that_come_late_count_no_passive_keepalive_as_missing(pause: float) -> None:
    readings = Readings()
    for _ in range(60):
        readings.read(pause, tx=DATA, rx=KEEPALIVE)
    readings.read(PASSIVE, tx=DATA)
    assert readings.lost == []


def test_a_peer_that_is_added_anew_or_gone_begins_anew() -> None:
    readings = Readings()
    readings.read(tx=DATA)
    readings.subject.observe({}, readings.now)
    readings.read(UNANSWERED)
    readings.read(tx=DATA)
    readings.rx = readings.tx = 0
    readings.read(UNANSWERED)
    assert readings.lost == []


@given(st.lists(st.tuples(st.sampled_from([0, KEEPALIVE, DATA]), st.booleans()), max_size=200))
def test_who_is_answered_as_wireguard_answers_is_never_lost(sent: list[tuple[int, bool]]) -> None:
    """Our end sends what it likes; the other answers data at once, or with a keepalive after 10 s."""
    readings = Readings()
    due: int | None = None
    for second, (tx, at_once) in enumerate(sent):
        rx = 0
        if tx == DATA and due is None:
            due = second if at_once else second + PASSIVE
        if due is not None and second >= due:
            rx, due = KEEPALIVE, None
        readings.read(tx=tx, rx=rx)
    assert readings.lost == []
