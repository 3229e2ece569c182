"""How a line of the log looks.

Owns: the two formats.  Must not know: what is logged.
"""

import logging
import sys
import time

import msgspec


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
    """One JSON object an event: time, level, logger, message, and trace when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode({key: _unicode(text) for key, text in event.items()}).decode()


def set_up(format: str, level: str) -> None:
    """Log to stderr. format: "text" or "json"; level: "debug" to "error"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _unicode(text: str) -> str:
    """The text, with half characters, as a file name that is not UTF-8 has them, in escapes: JSON cannot hold them."""
    return text.encode(errors="backslashreplace").decode()
