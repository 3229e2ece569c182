"""How a line of the log looks, and which are left out because they repeat others.

Owns: the two formats, and the limits of repetition.  Must not know: what is logged.
"""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from overlayd.daemon.outlet import Outlet

# Our own constants.
WINDOW = 60.0  # seconds in which repetitions are counted
SAME = 10  # warnings with the same words that are logged in a window
ALIKE = 200  # warnings with the same words but other values


_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # syslog(3)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning server: connection closed`: one line an event, whatever a client put into
    it.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = _stamp(record)
        line = f"{stamp} {record.levelname.lower()} {record.name.removeprefix('overlayd.')}: {record.getMessage()}"
        if record.exc_info:
            line += " | " + self.formatException(record.exc_info)
        # What a terminal would act on stands there in escapes: control characters, and marks of direction.
        return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class JsonLines(logging.Formatter):
    """One JSON object an event: time, level, logger, message, the fields of the event, and trace when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        said = {key: _unicode(value) if isinstance(value, str) else value for key, value in event.items()}
        return msgspec.json.encode(said).decode()


class JournalLines(logging.Formatter):
    """Lines of another form behind the priority by which journald knows them (sd-daemon(3))."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelname, 6)}>{self._form.format(record)}"


class _Window:
    """What was logged of one kind of warning since `began`."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.logged: Counter[str] = Counter()
        self.lines = 0
        self.left_out = 0
        self.last: logging.LogRecord | None = None  # that was left out


class Repetition(logging.Filter):
    """Leaves out warnings and errors that come again and again, and says how many.

    In each window, SAME with the same words pass, and ALIKE with the same form of words.  Nothing is left out without
    its number being logged: once the window is over, by `tell`.  log: takes the line that has the number.  clock:
    seconds.
    """

    def __init__(self, log: Callable[[logging.LogRecord], object], clock: Callable[[], float]) -> None:
        super().__init__()
        self._log = log
        self._clock = clock
        self._windows: dict[tuple[str, str], _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        self.tell()
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            window = self._windows.setdefault((record.name, record.msg), _Window(self._clock()))
            words = record.getMessage()
            if window.lines < ALIKE and window.logged[words] < SAME:
                window.logged[words] += 1
                window.lines += 1
                return True
            window.left_out += 1
            window.last = record
            return False

    def tell(self, *, at_the_end: bool = False) -> None:
        """Log what was left out in windows that are over, or in all."""
        with self._lock:
            over = [
                (kind, window)
                for kind, window in self._windows.items()
                if at_the_end or self._clock() - window.began >= WINDOW
            ]
            for kind, _ in over:
                del self._windows[kind]
        for _, window in over:
            if window.last is not None:
                last = window.last
                text = f"left out {window.left_out} more in {WINDOW:g} s like: {last.getMessage()}"
                self._log(logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, None, None))


def set_up(format: str, level: str) -> Repetition:
    """Log to stderr. format: "text" or "json"; level: "debug" to "error".  Returns what leaves repetitions out."""
    handler = Outlet(sys.stderr.fileno())
    form = JsonLines() if format == "json" else TextLines()
    handler.setFormatter(JournalLines(form) if _on_the_journal() else form)
    repetition = Repetition(handler.emit, time.monotonic)
    handler.addFilter(repetition)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    return repetition


def _on_the_journal() -> bool:
    """Whether stderr is a stream of journald's ($JOURNAL_STREAM, systemd.exec(5))."""
    try:
        there = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _unicode(text: str) -> str:
    """The text, with half characters, as a file name that is not UTF-8 has them, in escapes: JSON cannot hold them."""
    return text.encode(errors="backslashreplace").decode()
