"""Lines of the log reach who reads them, and wait for nobody who does not."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from overlayd.daemon import outlet
from overlayd.daemon.outlet import KEPT, Outlet


class Pipe:
    """A log, and the end of it that is read."""

    def __init__(self, read: int, write: int) -> None:
        self.outlet = Outlet(write)
        self._read = read
        self._ends = [read, write]

    def say(self, text: str) -> None:
        self.outlet.handle(logging.LogRecord("x", logging.INFO, "f", 1, text, None, None))

    def heard(self) -> str:
        """What is there to be read, without waiting for more."""
        os.set_blocking(self._read, False)
        text = b""
        with suppress(BlockingIOError):
            while data := os.read(self._read, 1 << 16):
                text += data
        return text.decode()

    def close(self) -> None:
        for each in self._ends:
            os.close(each)
        self._ends = []

    def hang_up(self) -> None:
        os.close(self._ends.pop(0))


@pytest.fixture(params=["pipe", "socket"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    if request.param == "pipe":
        ends = os.pipe()
    else:
        one, other = socket.socketpair()
        ends = one.detach(), other.detach()
    made = Pipe(*ends)
    yield made
    made.close()


def test_each_line_is_there_as_soon_as_it_is_logged(pipe: Pipe) -> None:
    for text in ("one", "é 漢", "half a character: \udcff"):
        pipe.say(text)
        assert pipe.heard() == text.encode(errors="backslashreplace").decode() + "\n"


def test_a_reader_that_stands_still_is_not_waited_for_and_misses_the_last_lines_alone(pipe: Pipe) -> None:
    lines = [f"{number} {'x' * 1000}" for number in range(3 * KEPT // 1000)]
    for each in lines:
        pipe.say(each)
    text = pipe.heard()
    assert text.startswith(lines[0])
    for _ in lines:  # each line that is logged takes along what the reader has made room for
        pipe.say("more")
        text += pipe.heard()
    assert text.endswith("more\n")
    heard = [each for each in text.splitlines() if each != "more"]
    whole = [each for each in heard if each.endswith("x" * 1000)]
    assert whole == lines[: len(whole)] and len(whole) > KEPT // 1100
    told = f"left out {len(lines) - len(whole)} lines: nobody took what is logged"
    assert [each for each in heard if each not in whole] == [told]


def test_a_reader_that_has_gone_is_no_fault(pipe: Pipe) -> None:
    pipe.hang_up()
    for _ in range(3):
        pipe.say("x" * 100)


def test_the_end_waits_for_a_slow_reader_and_not_for_one_that_stands_still(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * 1000
    for _ in range(700):
        pipe.say(text)
    monkeypatch.setattr(outlet, "GRACE", 0.01)
    pipe.outlet.flush()
    monkeypatch.setattr(outlet, "GRACE", 30.0)
    flushing = threading.Thread(target=pipe.outlet.flush)
    flushing.start()
    heard = 0
    while flushing.is_alive():
        heard += len(pipe.heard())
    flushing.join()
    heard += len(pipe.heard())
    assert heard == 700 * 1001
