"""How a line of the log looks, and which are left out."""

import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.daemon.logs import ALIKE, SAME, WINDOW, JsonLines, Repetition, TextLines


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("overlayd.daemon.server", logging.WARNING, "f", 1, "said %s", (text,), None)


@pytest.mark.parametrize("hostile", [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200F)])
def test_nothing_that_a_terminal_acts_on_reaches_the_text_log(hostile: str) -> None:
    line = TextLines().format(record(f"a{hostile}b"))
    assert line.isprintable()
    assert line.endswith(f"Z warning daemon.server: said a{ascii(hostile)[1:-1]}b")


def test_what_can_be_shown_stays() -> None:
    assert TextLines().format(record("é 漢 \\ 'x'")).endswith("said é 漢 \\ 'x'")


def test_a_trace_is_on_the_same_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        event = record("")
        event.exc_info = (ValueError, error, error.__traceback__)
    line = TextLines().format(event)
    assert "two\\nlines" in line
    assert "\n" not in line


def test_json_holds_the_text_as_it_was() -> None:
    line = JsonLines().format(record("\x1b[1m\u202e"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert msgspec.json.decode(line)["message"] == "said \x1b[1m\u202e"


def test_json_takes_a_name_that_is_no_utf8() -> None:
    line = JsonLines().format(record("veth\udcff"))
    assert msgspec.json.decode(line)["message"] == r"said veth\udcff"


class Hour:
    """A log in virtual time: what reaches it, and the filter in front of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.repetition = Repetition(lambda record: self.lines.append(record.getMessage()), lambda: self.now)

    def warn(self, message: str, *values: object, level: int = logging.WARNING) -> None:
        record = logging.LogRecord("overlayd.x", level, "f", 1, message, values, None)
        if self.repetition.filter(record):
            self.lines.append(record.getMessage())


def test_the_same_warning_again_and_again_is_counted() -> None:
    log = Hour()
    for _ in range(1000):
        log.warn("peer %s is away", "a")
        log.now += 0.01
    assert log.lines == ["peer a is away"] * SAME
    log.warn("peer %s is away", "b")  # other words are not the same
    assert log.lines[-1] == "peer b is away"
    log.now = WINDOW
    log.repetition.tell()  # also when nothing else happens
    assert log.lines[-1] == f"left out {1000 - SAME} more in 60 s like: peer a is away"
    log.warn("peer %s is away", "a")
    assert log.lines[-1] == "peer a is away"
    log.repetition.tell(at_the_end=True)
    assert len(log.lines) == SAME + 3


def test_one_form_of_words_with_ever_other_values_is_counted_too() -> None:
    log = Hour()
    for number in range(ALIKE + 7):
        log.warn("connection closed: %s", number)
        log.warn("another: %s", 1)
    assert sum(line.startswith("connection") for line in log.lines) == ALIKE
    log.now = WINDOW + 1
    log.warn("anything", level=logging.INFO)
    assert f"left out 7 more in 60 s like: connection closed: {ALIKE + 6}" in log.lines


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans()), max_size=400))
def test_no_warning_is_lost_without_a_number(events: list[tuple[int, int, bool]]) -> None:
    """What was logged and what was counted are together what was said; what is no warning always passes."""
    log = Hour()
    for what, pause, informs in events:
        log.now += pause
        log.warn("w%s", what, level=logging.INFO if informs else logging.WARNING)
    log.repetition.tell(at_the_end=True)
    counted = sum(int(line.split()[2]) for line in log.lines if line.startswith("left out"))
    assert sum(not line.startswith("left out") for line in log.lines) + counted == len(events)


def test_the_end_tells_what_was_left_out() -> None:
    log = Hour()
    for _ in range(SAME + 1):
        log.warn("x")
    log.repetition.tell(at_the_end=True)
    assert log.lines[-1] == "left out 1 more in 60 s like: x"
