"""The client before a daemon that is, or is not, the one that its identity file names.

The other end is this process, over a real socket, and says of itself what each test wants; what only another process
can be (of another user, with its executable replaced) is one.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from lab.patience import LIMIT

from overlayd import wire
from overlayd.client import (
    ConnectionLost,
    Impostor,
    NotPublished,
    OverlayClient,
    ReplacedExecutable,
    StaleIdentityFile,
)
from overlayd.daemon.server import identity as daemon_identity
from overlayd.errors import ProtocolError, StateError
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.identity import DaemonProcess

OPTIONS = {"timeout": 0, "call_timeout": 20}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "identity.json"


@pytest.fixture
def me(path: str) -> DaemonProcess:
    return daemon_identity.current("overlayd", path)


@contextlib.asynccontextmanager
async def answering(path: str, answer: Callable[[Frame], bytes]) -> AsyncIterator[None]:
    """A server that answers probes with `answer`, after an event, and every JSON request with ok."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.encode_event(wire.PeerHealthChanged("k", True)))
        received = b""
        while data := await reader.read(65536):
            received += data
            while len(received) >= 5:
                if received[0] == 1 and received[4] <= 1:
                    decoded = envelope.decode(received)
                    if decoded is None:
                        break
                    frame, consumed = decoded
                    writer.write(answer(frame))
                else:
                    consumed = 4 + int.from_bytes(received[:4], "little")
                    if len(received) < consumed:
                        break
                    writer.write(wire.encode_response(wire.decode_request(received[4:consumed])[0], wire.Ok()))
                received = received[consumed:]
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()


def as_(daemon: DaemonProcess) -> Callable[[Frame], bytes]:
    return lambda probe: identity.answer_probe(probe, identity.encode(daemon))


async def test_the_published_daemon(path: str, file: Path, me: DaemonProcess) -> None:
    daemon_identity.publish(me, file)
    async with (
        answering(path, as_(me)),
        await OverlayClient.connect(path, identity_file=str(file), **OPTIONS) as client,
    ):
        await client.nat_tick()
        who, again = await asyncio.gather(client.whoami(), client.whoami())
        await client.nat_tick()
        assert await anext(client.events()) == wire.PeerHealthChanged("k", True)
    assert who == again
    assert (who.pid, who.uid, who.exe_path) == (os.getpid(), os.getuid(), me.exe_path)
    assert (who.exe_hash, who.identity_file) == (me.exe_hash.hex(), str(file))


async def test_without_a_file_the_process_is_compared(path: str, me: DaemonProcess) -> None:
    async with answering(path, as_(me)), await OverlayClient.connect(path, **OPTIONS) as client:
        assert (await client.whoami()).identity_file is None


async def test_without_a_file_a_lie_about_the_process_is_found(path: str, me: DaemonProcess) -> None:
    other = msgspec.structs.replace(me, pid=1)
    async with answering(path, as_(other)), await OverlayClient.connect(path, **OPTIONS) as client:
        with pytest.raises(Impostor, match=f"process {os.getpid()} serves the socket and says that it is 1"):
            await client.whoami()


@pytest.mark.parametrize(
    ("published", "answered", "found", "why"),
    [
        pytest.param(
            {"pid": os.getppid()},
            {},
            Impostor,
            f"names process {os.getppid()}, process {os.getpid()} serves",
            id="names another process",  # the same in each worker of pytest-xdist
        ),
        ({"pid": 2**22 + 1}, {}, StaleIdentityFile, "which is gone"),
        ({"boot_id": "another"}, {}, StaleIdentityFile, "earlier boot"),
        ({}, {"pid": 1}, Impostor, "pid was"),
        ({}, {"started_at_unix_ms": 5}, StaleIdentityFile, "started_at_unix_ms"),
        ({}, {"boot_id": "another"}, Impostor, "boot_id"),
        ({}, {"exe_path": "/bin/true"}, ReplacedExecutable, "exe_path"),
        ({}, {"exe_hash": bytes(32)}, ReplacedExecutable, "exe_hash"),
        ({}, {"namespace_id": "other"}, Impostor, "namespace_id"),
        ({}, {"path": "/other"}, Impostor, "path"),
        ({"exe_hash": bytes(32)}, {"exe_hash": bytes(32)}, ReplacedExecutable, "published with executable 00000000"),
    ],
)
async def test_what_gives_it_away(
    *,
    path: str,
    file: Path,
    me: DaemonProcess,
    published: dict[str, object],
    answered: dict[str, object],
    found: type[Exception],
    why: str,
) -> None:
    daemon_identity.publish(msgspec.structs.replace(me, **published), file)
    async with answering(path, as_(msgspec.structs.replace(me, **answered))):
        with pytest.raises(found, match=why) as caught:
            await OverlayClient.connect(path, identity_file=str(file), **OPTIONS)
        assert type(caught.value) is found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda probe: envelope.encode(msgspec.structs.replace(probe, request_id=1)), ConnectionLost),
        (envelope.encode, ProtocolError),
        (lambda probe: envelope.respond(probe, bytes(32) + b"x"), ProtocolError),
        (lambda probe: b"\x01\xff\xff\xff\x01", ConnectionLost),
    ],
    ids=["not asked for", "an echo", "another nonce", "too large"],
)
async def test_an_answer_that_is_none(
    path: str, file: Path, me: DaemonProcess, answer: Callable[[Frame], bytes], found: type[Exception]
) -> None:
    daemon_identity.publish(me, file)
    async with answering(path, answer):
        with pytest.raises(found):
            await OverlayClient.connect(path, identity_file=str(file), **OPTIONS)


async def test_no_file(path: str, file: Path, me: DaemonProcess) -> None:
    async with answering(path, as_(me)):
        with pytest.raises(NotPublished, match="--identity-file"):
            await OverlayClient.connect(path, identity_file=str(file), **OPTIONS)


async def test_a_file_that_is_none(path: str, me: DaemonProcess) -> None:
    async with answering(path, as_(me)):
        with pytest.raises(StateError, match="identity file"):
            await OverlayClient.connect(path, identity_file="/proc/self/status", **OPTIONS)


async def test_a_daemon_that_is_starting_is_waited_for(path: str, file: Path, me: DaemonProcess) -> None:
    daemon_identity.publish(msgspec.structs.replace(me, pid=2**22 + 1), file)
    async with answering(path, as_(me)):
        connecting = asyncio.create_task(OverlayClient.connect(path, timeout=20, identity_file=str(file)))
        await asyncio.sleep(0.05)
        assert not connecting.done()
        daemon_identity.publish(me, file)
        async with await connecting as client:
            assert (await client.whoami()).pid == me.pid


# --- What only another process can be ---


def verify(path: str, file: Path, seconds: float = 0) -> None:
    async def connect() -> None:
        async with await OverlayClient.connect(path, timeout=seconds, identity_file=str(file)):
            pass

    asyncio.run(connect())


OF_ANOTHER_USER = """
import os, socket
os.setresuid(65534, 65534, 65534)
listener = socket.socket(fileno=0)
listener.listen()
print("listening", flush=True)
while True:
    listener.accept()
"""


def test_a_process_of_a_user_who_may_not(path: str, file: Path, me: DaemonProcess) -> None:
    """The kernel notes who calls listen(2)."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        process = subprocess.Popen([sys.executable, "-c", OF_ANOTHER_USER], stdin=listener, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"listening\n"
        daemon_identity.publish(msgspec.structs.replace(me, pid=process.pid), file)
        with pytest.raises(Impostor, match=f"process {process.pid}, which serves the socket, is of user 65534"):
            verify(path, file)
        os.chown(file, 65534, -1)  # published by that very user: then it may be the one, and is probed
        with pytest.raises(ConnectionLost):
            verify(path, file)
    finally:
        process.kill()
        process.communicate()


REPLACED = """
import os, socket, sys
from pathlib import Path
from overlayd.daemon.server import identity as daemon_identity
from overlayd.proto import envelope, identity
path, file, other = sys.argv[1:]
if not os.path.exists(file):
    daemon_identity.publish(daemon_identity.current("overlayd", path), Path(file))
    if other:
        os.execv(other, [other, *sys.orig_argv[1:]])
claimed = identity.encode(identity.from_json(Path(file).read_bytes()))
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(path)
    listener.listen()
    while True:
        connection = listener.accept()[0]
        received = b""
        while envelope.decode(received) is None and (data := connection.recv(65536)):
            received += data
        connection.sendall(identity.answer_probe(envelope.decode(received)[0], claimed))
        connection.recv(1)
"""


@pytest.mark.parametrize("replaced", [False, True])
def test_a_process_that_executes_another_file_and_lies_about_it(
    path: str, file: Path, tmp_path: Path, replaced: bool
) -> None:
    """Same pid, same claims as published: only what the kernel says it runs gives it away."""
    one, other = tmp_path / "one", tmp_path / "other"
    image = Path(sys.executable).resolve().read_bytes()
    for copy, content in ((one, image), (other, image + b"\0")):
        copy.write_bytes(content)
        copy.chmod(0o755)
    environment = os.environ | {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [one, "-c", REPLACED, path, file, other if replaced else ""]
    process = subprocess.Popen(argv, env=environment)
    try:
        if replaced:
            with pytest.raises(ReplacedExecutable, match=f"process {process.pid} was published with executable"):
                verify(path, file, LIMIT)
        else:
            verify(path, file, LIMIT)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["/dev/zero", "fifo", "directory", "text"])
def test_what_is_no_identity_file_is_named_at_once(tmp_path: Path, kind: str) -> None:
    at = tmp_path / kind if kind != "/dev/zero" else Path(kind)
    match kind:
        case "fifo":
            os.mkfifo(at)
        case "directory":
            at.mkdir()
        case "text":
            at.write_text("a: b\n" * 100_000)
    code = "import sys; from overlayd.client import identity; identity.read(sys.argv[1])"
    done = subprocess.run(  # a process of its own: it may be read for ever
        [sys.executable, "-c", code, str(at)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "StateError" in done.stderr and str(at) in done.stderr.splitlines()[-1]
