"""Requests so large that they are decoded beside the loop: in their turn, within limits, and at nobody's cost."""

import asyncio
import contextlib
import time

import pytest
from lab.patience import until_async as until
from serving import Fake, change, connect, json_frame, payload, serving, settle, status, told

from overlayd.daemon.server.connection import Limits
from overlayd.daemon.server.large import LARGE, LONGEST, MOST_VALUES

SPACE = b" " * LARGE
NAMES = b'"zl-web-b",' * MOST_VALUES
PRUNE = b'{"op":"prune_orphan_bridges","live_bridge_names":[' + NAMES[:-1] + b"]}"
TOO_MANY = f"request.live_bridge_names: too large: a request has at most {MOST_VALUES} values, and a text 1 MiB"


def large(id: int, request: bytes = b'{"op":"status"}') -> bytes:
    return json_frame(b'{"frame":"request","id":%d,"request":%s%s}' % (id, request, SPACE))


async def test_large_requests_are_served_in_their_turn(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, await connect(path) as client:
        client.send(status(1), large(2), status(3), change(4, "a"), large(5), payload(6), status(7))
        client.send(large(8, b'{"op":"allocate_ip","service":"b","join_global":false}'), status(9))
        assert await client.answers(3) == [(1, "status"), (2, "status"), (3, "status")]
        handlers.open("a")
        handlers.open("b")
        assert await client.answers(6) == [
            (4, "a"),
            (5, "status"),
            (6, "status"),
            (7, "status"),
            (8, "b"),
            (9, "status"),
        ]
        client.send(payload(10, b'{"op":"status"' + SPACE + b"}"), status(11))
        assert await client.answers(2) == [(10, "status"), (11, "status")]
        await until(lambda: server.buffered == 0)


async def test_too_many_values_are_refused_by_the_key(path: str) -> None:
    async with serving(path), await connect(path) as client:
        client.send(large(1, PRUNE), payload(2, PRUNE), large(3, b'{"op":"nope"}'), large(4, b'{"op":"status","x":1}'))
        client.send(large(5, b'{"op":"unregister_dns","name":"%s"}' % (b"n" * (LONGEST + 1))))
        assert await client.answers(5) == [
            (1, TOO_MANY),
            (2, TOO_MANY),
            (3, 'request.op: unknown op "nope"'),
            (4, "status"),
            (5, TOO_MANY.replace("live_bridge_names", "name")),
        ]


async def test_a_large_body_that_is_no_frame_closes_the_connection(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(path) as server:
        for body in (SPACE + b"7", b"[" * LARGE, b'{"frame":"request","request":' + PRUNE + b"}"):
            async with await connect(path) as client:
                client.send(status(1), json_frame(body))
                assert [told(one) for one in await client.receive_all()] == [(1, "status")]
        await until(lambda: not server.connections)
    assert caplog.text.count("connection closed: ") == 3


async def test_a_client_that_is_gone_or_half_gone_while_its_request_is_decoded(path: str) -> None:
    async with serving(path) as server:
        async with await connect(path) as rude:
            rude.send(large(1, PRUNE))
            await until(lambda: server.buffered > 0)
        async with await connect(path) as client:
            client.send(large(1, PRUNE), status(2))
            client.writer.write_eof()
            assert [told(one) for one in await client.receive_all()] == [(1, TOO_MANY), (2, "status")]
        await until(lambda: not server.connections)
        await settle()
        assert server.buffered == 0


async def test_requests_that_are_worked_on_count(path: str, caplog: pytest.LogCaptureFixture) -> None:
    handlers = Fake()
    asked = large(1, b'{"op":"allocate_ip","service":"a","join_global":false}')
    async with serving(path, handlers) as server, contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(await connect(path))
        client.send(asked, asked, change(2, "b"))
        await until(lambda: len(handlers.begun) == 3)
        await until(lambda: server.buffered > 2 * LARGE)
        handlers.open("a")
        handlers.open("b")
        await client.answers(3)
        await until(lambda: server.buffered == 0)


async def test_requests_of_a_client_that_has_hung_up_count_until_they_are_done(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = Fake()
    asked = large(1, b'{"op":"allocate_ip","service":"a","join_global":false}')
    limits = Limits(buffered=3 * len(asked))
    async with serving(path, handlers, limits=limits) as server, await connect(path) as small:
        for count in (1, 2):
            async with await connect(path) as rude:
                rude.send(asked)
                await until(lambda count=count: len(handlers.begun) == count)
        assert server.buffered > 2 * LARGE
        async with await connect(path) as third:
            third.send(asked, asked)
            with pytest.raises(EOFError):
                await third.receive()
        assert server.connections and server.buffered > 2 * LARGE  # to cut off who has hung up frees nothing
        small.send(status(1))  # and who holds little is spared
        assert await small.answers(1) == [(1, "status")]
        handlers.open("a")
        await until(lambda: server.buffered == 0)
    assert "cut off" in caplog.text


async def test_others_are_served_between_large_requests(path: str) -> None:
    """Whatever is large gets one turn: a quiet client waits for no more than the decoding of one."""
    async with serving(path), await connect(path) as hog, await connect(path) as quiet:
        hog.send(*[large(id, PRUNE) for id in range(20)])
        answering = asyncio.create_task(hog.answers(20))
        waits = []
        while not answering.done():
            began = time.monotonic()
            quiet.send(status(1))
            await quiet.answers(1)
            waits.append(time.monotonic() - began)
        assert await answering == [(id, TOO_MANY) for id in range(20)]
        assert len(waits) > 20
