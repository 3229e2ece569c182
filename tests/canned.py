"""A daemon that gives canned answers, and overlayctl in a process of its own."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from overlayd import wire

KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PRIVATE = "QK8q3ChZ0eyVJZ4yO2zXvrsI5GIKK/W0FWS9mCvUwm0="


class Canned:
    """Answers each request of one connection after another with `answer(request)`; None hangs up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[wire.Request] = []
        self.greeting = b""
        self.answer: Callable[[wire.Request], wire.Response | None] = lambda request: wire.Ok()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rb") as stream:
                if self.asked is None:
                    return
                connection.sendall(self.greeting)
                while header := stream.read(4):
                    id, request = wire.decode_request(stream.read(int.from_bytes(header, "little")))
                    self.asked.append(request)
                    response = self.answer(request)
                    if response is None:
                        break
                    connection.sendall(wire.encode_response(id, response))

    def close(self) -> None:
        self.asked = None  # type: ignore[assignment]
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._thread.join()
        self._listener.close()


def ctl(*arguments: str) -> subprocess.Popen[str]:
    """overlayctl in a process of its own, which SIGINT interrupts even where we run in the background and ignore it."""
    code = "from overlayd.cli import control; control()"
    argv = ["env", "--default-signal=INT", sys.executable, "-c", code, *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
