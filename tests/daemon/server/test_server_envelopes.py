"""Who may connect, and requests in envelopes, alone and mixed with everything else."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.patience import until_async as until
from serving import (
    Fake,
    change,
    connect,
    json_frame,
    payload,
    probe,
    serving,
    status,
    told,
)

from overlayd import wire
from overlayd.daemon.server import listener
from overlayd.daemon.server.connection import Limits
from overlayd.proto import envelope
from overlayd.proto.envelope import Frame

# --- Who may connect ---


ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(bytes.fromhex(sys.argv[2]))
    sys.stdout.write(s.recv(65536).hex())
"""
SYSTEM_PYTHON = "/usr/bin/python3"  # strangers may not enter the home of whoever runs the tests


@pytest.fixture
def open_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ot") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("uid", "gid", "welcome"),
    [(0, 0, True), (65534, 65534, False), (65534, 1, True), (1, 65534, True), (2, 65534, False)],
    ids=["root", "stranger", "of the group", "member by the user database", "another user"],
)
async def test_the_kernel_says_who_connects(
    open_directory: Path, uid: int, gid: int, welcome: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The file's mode would keep strangers out as well: it is opened to all, so that only the check is left."""
    socket = open_directory / "s"
    admits = listener.Admission("daemon")
    assert admits.gid == 1
    async with serving(str(socket), admits=admits):
        socket.chmod(0o666)
        argv = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", SYSTEM_PYTHON, "-S", "-c", ASK]
        process = await asyncio.create_subprocess_exec(
            *argv, socket, status(7).hex(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        said, complaint = await process.communicate()
    assert bool(said) is welcome, complaint
    assert ("not allowed" in caplog.text and f"uid {uid} gid {gid}" in caplog.text) is not welcome


# --- Envelopes ---


async def test_requests_in_envelopes(path: str) -> None:
    handlers = Fake()
    handlers.open("web")
    past, future = int(time.time() * 1000) - 1, int(time.time() * 1000) + 60_000
    allocate = b'{"op":"allocate_ip","service":"web","join_global":false}'
    async with serving(path, handlers), await connect(path) as client:
        client.send(
            payload(1),
            payload(2, allocate),
            payload(3, encoding=1),
            payload(4, deadline_unix_ms=past),
            payload(5, deadline_unix_ms=future),
            payload(6, b"not json"),
            payload(7, b'{"op":"release_ip"}'),
            payload(8, kind=envelope.KIND_CANCEL),
            payload(9, kind=envelope.KIND_RESPONSE),
            payload(10, traceparent="00-a-b-01", tracestate="v=1"),
        )
        frames = [await client.receive() for _ in range(8)]
    assert all(isinstance(one, Frame) and one.kind == envelope.KIND_RESPONSE for one in frames)
    said = dict(told(one) for one in frames)
    assert (said[1], said[2], said[5], said[10]) == ("status", "web", "status", "status")
    assert "payload_encoding 1" in said[3]
    assert "deadline" in said[4]
    assert "not JSON" in said[6]
    assert "request.ip" in said[7]
    assert set(said) == {1, 2, 3, 4, 5, 6, 7, 10}
    assert (frames[-1].traceparent, frames[-1].tracestate) == ("00-a-b-01", "v=1")


async def test_an_answer_too_large_for_an_envelope_is_an_error(path: str) -> None:
    handlers = Fake()
    handlers.status = b"x" * (16 * 1024 * 1024)
    async with serving(path, handlers), await connect(path) as client:
        client.send(payload(1), status(2), payload(3, traceparent="t" * (16 * 1024 * 1024 - 100)))
        handlers.open("a")
        for id, said in await client.answers(3):
            assert "too large" in said, id


async def test_events_go_to_those_who_speak_json(path: str) -> None:
    event = wire.NatEndpointChanged("k", "192.0.2.1:1")
    async with serving(path) as server, contextlib.AsyncExitStack() as stack:
        silent, json, enveloped, both = [await stack.enter_async_context(await connect(path)) for _ in range(4)]
        json.send(status(1))
        enveloped.send(probe(), payload(1))
        both.send(probe(), payload(1), status(1))
        for client, count in ((json, 1), (enveloped, 2), (both, 3)):
            for _ in range(count):
                await client.receive()
        await until(lambda: len(server.connections) == 4)
        server.publish(event)
        for client in (silent, json, both):
            assert (await client.receive())["event"] == "nat_endpoint_changed"
        enveloped.send(payload(2))
        assert await enveloped.answers(1) == [(2, "status")]


async def test_a_slow_request_is_logged_with_its_trace(path: str, caplog: pytest.LogCaptureFixture) -> None:
    handlers = Fake()
    allocate = b'{"op":"allocate_ip","service":"web","join_global":false}'
    async with serving(path, handlers, limits=Limits(slow=1.0)), await connect(path) as client:
        client.send(
            payload(1, allocate, traceparent="00-abc\n\x1b[31m", tracestate="x" * 10_000), change(2, "web"), status(3)
        )
        await until(lambda: len(handlers.begun) == 2)
        await asyncio.sleep(1.1)
        handlers.open("web")
        await client.answers(3)
        client.send(change(4, "web"))
        await client.answers(1)
    enveloped, plain = [line for line in caplog.messages if "slow request" in line]
    assert "allocate_ip took " in plain
    assert f"pid {os.getpid()}" in plain
    assert r"traceparent '00-abc\n\x1b[31m'" in enveloped
    assert len(enveloped) < 500


# --- Everything mixed ---


MESSAGES = st.lists(
    st.sampled_from(["status", "change", "bad", "probe", "payload", "payload change", "ignored"]), max_size=40
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=MESSAGES, cuts=st.lists(st.integers(0, 4000), max_size=12), limit=st.sampled_from([1, 2, 5, 1024]))
def test_any_mixture_in_any_pieces_is_answered(path: str, kinds: list[str], cuts: list[int], limit: int) -> None:
    """Every request once, to its own id and in its own kind of frame; quick ones in order and never before a change
    that was asked for earlier.
    """
    allocate = b'{"op":"allocate_ip","service":"c","join_global":false}'
    make: dict[str, Callable[[int], bytes]] = {
        "status": status,
        "change": lambda id: change(id, "c"),
        "bad": lambda id: json_frame(b'{"frame":"request","id":%d,"request":{}}' % id),
        "probe": lambda id: probe(id.to_bytes(32, "little")),
        "payload": payload,
        "payload change": lambda id: payload(id, allocate),
        "ignored": lambda id: payload(id, kind=envelope.KIND_EVENT),
    }
    stream = b"".join(make[kind](id) for id, kind in enumerate(kinds, 1))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    handlers = Fake()
    handlers.open("c")

    async def converse() -> list[dict[str, object] | Frame]:
        async with serving(path, handlers, limits=Limits(in_flight=limit, turn=3)), await connect(path) as client:
            for start, end in itertools.pairwise(edges):
                client.send(stream[start:end])
                await asyncio.sleep(0)
            client.writer.write_eof()
            return await client.receive_all()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        received = runner.run(converse())
    probes = [one for one in received if isinstance(one, Frame) and one.protocol == envelope.PROTOCOL_PROBE]
    assert [int.from_bytes(one.payload[:8], "little") for one in probes] == [
        id for id, kind in enumerate(kinds, 1) if kind == "probe"
    ]
    answers = [one for one in received if one not in probes]
    ids = [told(one)[0] for one in answers]
    assert sorted(ids) == [id for id, kind in enumerate(kinds, 1) if kind not in ("probe", "ignored")]
    for one, id in zip(answers, ids, strict=True):
        assert isinstance(one, Frame) is kinds[id - 1].startswith("payload")
        assert (told(one)[1] == "c") is kinds[id - 1].endswith("change")
    quick = [id for id in ids if not kinds[id - 1].endswith("change")]
    assert quick == sorted(quick)
    for id in quick:
        before = {one for one in range(1, id) if kinds[one - 1].endswith("change")}
        assert before <= set(ids[: ids.index(id)])
