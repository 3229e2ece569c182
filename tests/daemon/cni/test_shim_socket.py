"""Who has a place on the socket of the CNI shim, and who gives way."""

import asyncio
import contextlib
import logging
import socket
from pathlib import Path

import msgspec
import pytest
from lab.patience import until_async as until

from overlayd.daemon.cni import shim_socket
from overlayd.daemon.cni.shim_socket import CniSocket
from overlayd.daemon.server.listener import Credentials, Place
from overlayd.daemon.tasks import Tasks
from overlayd.proto import cni

CALL = msgspec.json.encode(cni.Call(cni.Environment("STATUS"), "{}"))


async def test_a_connection_without_a_call_gives_way_to_one_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    calls = 0

    async def do(call: cni.Call, descriptor: int | None, client: Credentials) -> cni.Answer:
        nonlocal calls
        calls += 1
        await gate.wait()
        return cni.Answer(0, "{}")

    def connect() -> socket.socket:
        made = stack.enter_context(socket.socket(socket.AF_UNIX))
        made.connect(str(tmp_path / "s"))
        return made

    async def ready() -> None: ...

    with contextlib.ExitStack() as stack:
        async with Tasks() as tasks:
            served = CniSocket(do, tasks.spawn, 3 * shim_socket.SHARE)
            place = stack.enter_context(contextlib.closing(Place(str(tmp_path / "s"), None)))
            async with served.serving(place, ready, 60):
                for _ in range(7):
                    connect()
                shim = connect()
                shim.sendall(len(CALL).to_bytes(4, "little") + CALL)
                # Sooner than shim_socket.INCOMPLETE, after which all but this one would be gone.
                async with asyncio.timeout(shim_socket.INCOMPLETE):
                    await until(lambda: calls == 1)
                assert served.calls == 3
                gate.set()
                shim.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(shim, 100)
    told = [record for record in caplog.records if "has not sent its request, and all 3" in record.message]
    assert len(told) == 5
    assert told[0].levelno == logging.WARNING
