"""How a line of the log looks."""

import logging

import msgspec
import pytest

from overlayd.daemon.logs import JsonLines, TextLines


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
