"""The way out of the log's lines: as far as their reader takes them, and no farther.

Owns: the descriptor, and what is kept and left out while nobody reads.  Must not know: what a line says.

A log collector that hangs, a full disk behind it, or a terminal that was stopped takes nothing any more.  A daemon that
waited for it would serve nobody until it goes on.
"""

import logging
import os
import select
import threading

# Our own constants.
KEPT = 1 << 20  # bytes that wait for the reader
GRACE = 1.0  # seconds that it has for them at the end
# A pipe that can be written to takes so many bytes at once (pipe(7)); a socket, such as journald's, a quarter of its
# buffer, which is more.
_CHUNK = select.PIPE_BUF


class Outlet(logging.Handler):
    """Writes to a descriptor, which stays open, and never waits but at the end.

    When more waits than is kept, lines are left out; their number follows as soon as the reader goes on.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)
        self._waiting = bytearray()
        self._left_out = 0
        self._turn = threading.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        line = self._line(record)
        with self._turn:
            self._write()
            if self._left_out and len(self._waiting) < KEPT // 2:
                text = f"left out {self._left_out} lines: nobody took what is logged"
                self._left_out = 0
                self._waiting += self._line(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None))
            if len(self._waiting) + len(line) > KEPT:
                self._left_out += 1
                return
            self._waiting += line
            self._write()

    def flush(self) -> None:
        """Write what waits, if the reader takes it in time."""
        with self._turn:
            self._write(GRACE)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _write(self, seconds: float = 0.0) -> None:
        while self._waiting and self._writable.poll(seconds * 1000):
            try:
                written = os.write(self._descriptor, self._waiting[:_CHUNK])
            except BlockingIOError:  # somebody else made it so, and was faster
                return
            except OSError:  # the reader has gone, the disk is full: there is nobody to tell
                self._waiting.clear()
                return
            del self._waiting[:written]
