"""The daemon's other socket, at which the CNI shim calls it, for `overlayctl cni`.

Owns: one exchange.  Must not know: what a command does.
"""

import asyncio
import errno
import json
from typing import Any

from overlayd.client.client import CallError, Unreachable


class CniRefused(CallError):
    """The daemon answered with an error.  number: CNI's code."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(str(told.get("msg", "refused without a word")))
        self.number = int(told.get("code", 0))


async def call(socket: str, command: str, config: str, *, path: str = "") -> str:
    """Send one command that is about no container, and return what the shim would print.

    config: as the shim's standard input.  path: what the shim has as CNI_PATH.  CniRefused: the daemon's error;
    Unreachable: nobody answers there.
    """
    request = json.dumps({"cni": {"command": command, "path": path}, "config": config}).encode()
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(len(request).to_bytes(4, "little") + request)
            size = int.from_bytes(await reader.readexactly(4), "little")
            answer = json.loads(await reader.readexactly(size))
        finally:
            writer.close()
    except OSError as error:
        raise Unreachable(socket, error) from error
    except asyncio.IncompleteReadError as error:
        raise Unreachable(socket, ConnectionResetError(errno.ECONNRESET, "overlayd hung up")) from error
    if answer["exit"]:
        raise CniRefused(json.loads(answer["stdout"]))
    return str(answer["stdout"])
