"""What a client may hold, and what ends a connection or the server."""

import asyncio
import contextlib
import fcntl
import sys
import termios
import time

import pytest
from lab.patience import LIMIT
from lab.patience import until_async as until
from serving import (
    STATUS,
    Client,
    Fake,
    change,
    connect,
    json_frame,
    payload,
    probe,
    serving,
    settle,
    status,
    told,
)

from overlayd import wire
from overlayd.daemon.server.connection import UNFINISHED, Limits

# --- Limits ---


async def test_requests_in_flight_are_counted_exactly(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers, limits=Limits(in_flight=4)), await connect(path) as client:
        client.send(*(change(id, f"c{id}") for id in range(1, 8)))
        await until(lambda: len(handlers.begun) == 4)
        await settle()
        assert handlers.begun == ["c1", "c2", "c3", "c4"]
        handlers.open("c3")
        assert await client.answers(1) == [(3, "c3")]
        await settle()
        assert handlers.begun == ["c1", "c2", "c3", "c4", "c5"]
        for id in range(1, 8):
            handlers.open(f"c{id}")
        assert sorted(await client.answers(6)) == [(id, f"c{id}") for id in (1, 2, 4, 5, 6, 7)]


async def test_answers_that_wait_their_turn_are_in_flight_too(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers, limits=Limits(in_flight=4)), await connect(path) as client:
        client.send(change(1, "a"), status(2), status(3), change(4, "b"), change(5, "c"))
        await until(lambda: len(handlers.begun) == 2)
        await settle()
        assert handlers.begun == ["a", "b"]
        handlers.open("a")
        assert await client.answers(3) == [(1, "a"), (2, "status"), (3, "status")]
        await until(lambda: handlers.begun == ["a", "b", "c"])
        handlers.open("b")
        handlers.open("c")
        assert await client.answers(2) == [(4, "b"), (5, "c")]


@pytest.mark.parametrize("waited_for", [False, True], ids=["on the spot", "in their turn"])
async def test_answers_are_not_made_for_a_client_that_does_not_read(path: str, waited_for: bool) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers) as server, await connect(path) as stalled, await connect(path) as other:
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(change(0, "a") if waited_for else status(0), *(status(id) for id in range(1, 500)))
        handlers.open("a")
        await until(lambda: handlers.reads > 0)
        await settle()
        assert handlers.reads < 5
        assert server.buffered < 3_000_000
        for event in range(100):
            server.publish(wire.PeerHealthChanged("k", event % 2 == 0))
            server.publish(wire.PeerHealthChanged(f"{event}", True))
        handlers.status = STATUS
        other.send(status(1))
        assert [await other.receive() for _ in range(201)][200]["id"] == 1
        stalled.reader._transport.resume_reading()  # type: ignore[attr-defined]
        received = [await stalled.receive() for _ in range(500 + 101)]
    assert [one["id"] for one in received if one["frame"] == "response"] == list(range(500))
    events = [one for one in received if one["frame"] == "event"]
    assert [one["healthy"] for one in events if one["pubkey"] == "k"] == [False]  # the newest of each peer
    assert len(events) == 101


async def test_events_for_a_client_that_does_not_read_are_bounded(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers, limits=Limits(events=3)) as server, await connect(path) as stalled:
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(status(1))
        await until(lambda: handlers.reads > 0)
        await settle()
        for number in (*range(10), 7, 10):
            server.publish(wire.PeerHealthChanged(f"{number}", True))
        stalled.reader._transport.resume_reading()  # type: ignore[attr-defined]
        received = [await stalled.receive() for _ in range(4)]
    assert [one["pubkey"] for one in received[1:]] == ["9", "7", "10"]


async def test_a_message_that_stays_incomplete_closes_its_connection(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(path, limits=Limits(incomplete=0.2)),
        await connect(path) as idle,
        await connect(path) as dribbling,
        await connect(path) as enveloped,
    ):
        enveloped.send(probe()[:-1])
        dribbling.send(status(1), status(2)[:4])
        assert await dribbling.answers(1) == [(1, "status")]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            while True:  # a byte now and then does not buy time
                dribbling.send(b" ")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await dribbling.reader.readexactly(1)
        with pytest.raises(EOFError):
            await enveloped.receive()
        idle.send(status(3))  # a client that only waits is left alone
        assert await idle.answers(1) == [(3, "status")]
    assert caplog.text.count("stayed incomplete for 0.2 s") == 2


async def test_a_message_that_we_do_not_read_is_not_called_incomplete(path: str) -> None:
    handlers = Fake()
    limits = Limits(in_flight=1, incomplete=0.1)
    async with serving(path, handlers, limits=limits) as server, await connect(path) as client:
        client.send(change(1, "a"), status(2)[:10])
        await until(lambda: handlers.begun == ["a"])
        client.send(status(2)[10:])
        [connection] = server.connections
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.5)
        assert not connection.closed_since
        handlers.open("a")
        assert await client.answers(2) == [(1, "a"), (2, "status")]


async def test_when_all_hold_too_much_whoever_holds_most_is_cut_off(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    small, large = status(1), json_frame(b" " * 50_000 + status(2)[4:])
    async with (
        serving(path, limits=Limits(buffered=100_000)) as server,
        await connect(path) as innocent,
        await connect(path) as hog,
        await connect(path) as another,
    ):
        innocent.send(small[:-1])
        hog.send(json_frame(b" " * 200_000)[:80_000])
        await until(lambda: server.buffered == len(small) - 1 + 80_000)
        another.send(large[:40_000])  # the last straw
        with pytest.raises(EOFError):
            await hog.receive()
        await until(lambda: server.buffered == len(small) - 1 + 40_000)
        innocent.send(small[-1:])
        another.send(large[40_000:])
        assert await innocent.answers(1) == [(1, "status")]
        assert await another.answers(1) == [(2, "status")]
        await until(lambda: server.buffered == 0)
    assert caplog.text.count("cut off") == 1


async def test_unread_answers_count_as_well(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers, limits=Limits(buffered=2_500_000)) as server, contextlib.AsyncExitStack() as all:
        for _ in range(8):
            client = await all.enter_async_context(await connect(path))
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            client.send(status(1))
        await until(lambda: handlers.reads == 8)
        await until(lambda: len(server.connections) < 8)
        assert 0 < server.buffered <= 2_500_000


# --- The end of a connection, the end of the server ---


async def test_a_client_that_half_closes_gets_its_answers(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, await connect(path) as client:
        client.send(*(status(id) for id in range(300)), change(300, "a"), status(301), payload(302))
        client.writer.write_eof()
        assert await client.answers(300) == [(id, "status") for id in range(300)]
        await settle()
        assert server.connections
        handlers.open("a")
        assert [told(one) for one in await client.receive_all()] == [(300, "a"), (301, "status"), (302, "status")]
        await until(lambda: not server.connections)


async def test_a_half_closed_client_may_read_late(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers), await connect(path) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(*(status(id) for id in range(50)))
        client.writer.write_eof()
        await until(lambda: handlers.reads > 0)
        await settle()
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert [told(one)[0] for one in await client.receive_all()] == list(range(50))


async def test_the_end_inside_a_frame_is_logged_and_what_was_whole_is_answered(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as server:
        async with await connect(path) as client:
            client.send(status(1), status(2)[:-1])
            client.writer.write_eof()
            assert [told(one) for one in await client.receive_all()] == [(1, "status")]
        async with await connect(path) as client:
            client.send(status(1))
            client.writer.write_eof()
            assert [told(one) for one in await client.receive_all()] == [(1, "status")]
        await until(lambda: not server.connections)
    assert caplog.text.count("truncated frame") == 1


async def test_a_client_that_is_gone_leaves_its_changes_running_and_nothing_else(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server:
        async with await connect(path) as client:
            client.send(change(1, "a"), status(2))
            await until(lambda: handlers.begun == ["a"])
        async with await connect(path) as rude:  # resets: it leaves answers unread
            rude.send(*(status(id) for id in range(2000)))
            await rude.receive()
        await settle()
        handlers.open("a")
        await until(lambda: handlers.done == ["a"])
        await until(lambda: not server.connections)


async def test_a_stop_answers_what_is_in_flight_and_refuses_the_rest(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, await connect(path) as client, await connect(path) as idle:
        client.send(change(1, "a"), status(2))
        await until(lambda: handlers.begun == ["a"])
        stopping = asyncio.create_task(server.drain(LIMIT))
        await until(lambda: server.stopping)
        client.send(change(3, "b"), status(4))
        idle.send(payload(5))
        assert await idle.answers(1) == [(5, "shutting down")]
        handlers.open("a")
        answers = [told(one) for one in await client.receive_all()]
        assert answers == [(1, "a"), (2, "status"), (3, "shutting down"), (4, "shutting down")]
        await stopping
        assert handlers.begun == ["a"]
        assert not server.connections


async def test_a_stop_tells_whose_change_it_does_not_wait_for(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, await connect(path) as client:
        client.send(change(1, "a"), change(2, "a"), status(3))
        await until(lambda: len(handlers.begun) == 2)
        await server.drain(0.05)
        (first, second, third) = [told(one) for one in await client.receive_all()]
        assert (first[0], second[0], third) == (1, 2, (3, "status"))
        assert {first[1], second[1]} == {UNFINISHED}
        handlers.open("a")  # later: nobody is left to be told
        await until(lambda: len(handlers.done) == 2)


def unread(client: Client) -> int:
    """The bytes that a client sends and the server has not taken from the kernel (unix_outq_len of net/unix)."""
    descriptor = client.writer.get_extra_info("socket").fileno()
    taken_by_kernel = int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return client.writer.transport.get_write_buffer_size() + taken_by_kernel


async def test_a_stop_under_load_answers_everything_that_has_arrived(path: str) -> None:
    handlers = Fake()
    async with serving(path, handlers) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connect(path)) for _ in range(20)]
        for client in clients:
            client.send(*(status(id) for id in range(1000)))
        receiving = [asyncio.create_task(client.receive_all()) for client in clients]
        await until(lambda: not any(map(unread, clients)))
        await server.drain(LIMIT)
        for received in receiving:
            answers = [told(one) for one in await received]
            assert [id for id, _ in answers] == list(range(1000))
            assert {what for _, what in answers} <= {"status", "shutting down"}


async def test_a_client_that_does_not_read_does_not_stop_the_stop(path: str) -> None:
    handlers = Fake()
    handlers.status = b'{"result":"status","x":"' + b"x" * 1_000_000 + b'"}'
    async with serving(path, handlers) as server, await connect(path) as stalled:
        stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
        stalled.send(*(status(id) for id in range(50)))
        await until(lambda: handlers.reads > 0)
        await server.drain(LIMIT)
        await until(lambda: not server.connections)


async def test_a_client_is_told_once_of_each_unknown_key_and_how_often_it_came(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    odd = b'{"frame":"request","id":1,"request":{"op":"status","verbos":true}}'
    async with serving(path) as server:
        async with await connect(path) as client, await connect(path) as another:
            client.send(*[json_frame(odd)] * 5)
            another.send(json_frame(odd), payload(1, b'{"op":"status","more":1}'))
            assert await client.answers(5) == [(1, "status")] * 5
            assert await another.answers(2) == [(1, "status")] * 2
        await until(lambda: not server.connections)
    assert caplog.text.count("passed over: request.verbos: unknown key") == 1
    assert caplog.text.count("passed over: request.more: unknown key") == 1
    assert caplog.text.count("request.verbos: unknown key, sent 6 times") == 1


async def test_a_strict_frame_is_refused_for_an_unknown_key(path: str) -> None:
    async with serving(path) as server, await connect(path) as client:
        client.send(json_frame(b'{"strict":true,"frame":"request","id":1,"request":{"op":"status","x":1}}'), status(2))
        assert await client.answers(2) == [(1, "request.x: unknown key"), (2, "status")]
        assert server.connections
