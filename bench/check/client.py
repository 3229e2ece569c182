"""A client that costs little: frames made beforehand, answers counted and only then looked at.

Owns: that connection.  Must not know: what is asked.
"""

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LENGTH = struct.Struct("<I")
EVENT = b'{"frame":"event"'  # what nobody asked for does not count
TOGETHER = 500  # requests in one write: the answers to them fit in the socket's buffer


class Client:
    """A context manager: one connection to a daemon."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def ask(self, frame: bytes) -> bytes:
        """One request; its answer's body.  RuntimeError when it is refused."""
        return self.ask_all([frame])

    def ask_all(self, frames: Sequence[bytes]) -> bytes:
        """Pipeline requests; the answers, one after the other.  RuntimeError when one is refused."""
        answers = b"".join(self._exchange(frames[at : at + TOGETHER]) for at in range(0, len(frames), TOGETHER))
        if (at := answers.find(b'"result":"err"')) >= 0:
            raise RuntimeError(f"refused: {answers[max(at - 100, 0) : at + 400]!r}")
        return answers

    def ask_each(self, frames: Sequence[bytes]) -> list[float]:
        """One request after the other; seconds that each took."""
        times = []
        for frame in frames:
            start = time.perf_counter()
            self.ask(frame)
            times.append(time.perf_counter() - start)
        return times

    def _exchange(self, frames: Sequence[bytes]) -> bytes:
        self.socket.sendall(b"".join(frames))
        received, at, left = bytearray(), 0, len(frames)
        while left:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError("the daemon closed the connection")
            received += data
            while left and len(received) >= at + LENGTH.size:
                end = at + LENGTH.size + LENGTH.unpack_from(received, at)[0]
                if end > len(received):
                    break
                left -= not received.startswith(EVENT, at + LENGTH.size)
                at = end
        return bytes(received)
