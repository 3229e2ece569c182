"""A server that hangs up between two requests, on the event loop of the daemon."""

import asyncio
import socket
import struct

import pytest
from lab.eventloop import run
from lab.patience import until_async

from overlayd.daemon.cluster.connection import Connection, Server, read_url
from overlayd.daemon.cluster.etcd import Etcd
from overlayd.daemon.cluster.refusal import Files
from overlayd.proto.store_answers import Unavailable

ANSWER = b'{"header":{"revision":"7"},"TTL":"30","ID":"9"}'
HOW = pytest.mark.parametrize("breaks", [False, True], ids=["it closes", "it resets"])


class HangsUp:
    """It answers one request of each connection, and then hangs up.  breaks: by a reset, as a machine that was killed
    and came back.
    """

    def __init__(self, *, breaks: bool) -> None:
        self.asked = 0
        self._breaks = breaks

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        self.asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))
        await writer.drain()
        if self._breaks:
            await asyncio.sleep(0.05)  # the answer goes first
            own: socket.socket = writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


def where(listener: asyncio.Server) -> Server:
    return read_url(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", 0)


@HOW
def test_a_connection_that_was_closed_is_not_written_to(breaks: bool) -> None:
    async def work() -> None:
        there = HangsUp(breaks=breaks)
        async with await asyncio.start_server(there.serve, "127.0.0.1") as listener:
            connection = await Connection.open(where(listener), Files())
            assert (await connection.post("/", b"{}")).status == 200
            await until_async(lambda: connection.is_closed)
            with pytest.raises(Unavailable, match="closed the connection"):
                await connection.post("/", b"{}")
            assert there.asked == 1
            connection.close()

    run(work())


@HOW
def test_another_one_is_opened_for_the_next_request(breaks: bool) -> None:
    async def work() -> None:
        there = HangsUp(breaks=breaks)
        async with await asyncio.start_server(there.serve, "127.0.0.1") as listener:
            etcd = Etcd([where(listener)], "alpha", "/", Files(), None)
            for number in range(1, 4):
                assert (await etcd.revoke(9)) is None
                assert there.asked == number
                await until_async(lambda: etcd._idle[0].is_closed)
            etcd.close()

    run(work())
