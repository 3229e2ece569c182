"""The real daemon between hostile clients: damaged frames of every op, damaged envelopes, floods of connections, and
kills under load.  A quiet client is served all the while.

`make hostile` does all of it many times over (OVERLAYD_HOSTILE), and prints what the quiet client waited.
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from damaged_envelopes import SEEDS, damage
from lab import Connection, Lab, Refused
from lab.cluster import Member, besides_version
from lab.frames import frame, request_frame
from lab.node import Node
from lab.patience import LIMIT, until

from overlayd import wire
from overlayd.errors import OverlaydError

TIMES = int(os.environ.get("OVERLAYD_HOSTILE", "1"))
FRAMES, ENVELOPES, CONNECTIONS, KILLS, CLIENTS = 2_000 * TIMES, 1_000 * TIMES, 400 * TIMES, 2 + TIMES // 4, 50
AT_ONCE = 20  # messages of one connection
MOST_MEMORY = 400 * 1024 * 1024  # bytes: the 256 MiB that connections may hold, and the daemon itself
GOLDEN = sorted((Path(__file__).parents[1] / "golden/requests").iterdir())
BODIES = [json.dumps(json.loads(each.read_text()), ensure_ascii=False).encode() for each in GOLDEN]
TELLING = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"-1",
    b"1e400",
    b"\\ud800",
    b"\xff",
    b"\0",
    b"9" * 30,
    b'"x":1,',
]
# Done as they are asked, these would end the test, reach processes of this machine, or start a thousand devices.
NOT_DONE = (wire.Shutdown, wire.AttachContainer, wire.SetupServiceOverlay, wire.SetupGlobalOverlay)


@pytest.fixture
def alpha() -> Iterator[Member]:
    with Lab() as lab:
        alpha = Member(lab, 1, "alpha")
        alpha.node.cold = True  # its memory is looked at
        alpha.start()
        alpha.set_up({"enabled": False})
        alpha.set_up_service("web")
        yield alpha


@contextlib.contextmanager
def watched(alpha: Member, what: str) -> Iterator[None]:
    """A quiet client asks on; at the end nothing has leaked, nothing is an error of ours, and memory is bounded."""
    assert alpha.node.daemon is not None
    process, waits, peak = psutil.Process(alpha.node.daemon.pid), [], [0]
    descriptors = process.num_fds()
    over = threading.Event()

    def ask() -> None:
        with Connection(alpha.node.socket) as quiet:
            while not over.is_set():
                began = time.monotonic()
                quiet.request("status")
                waits.append(time.monotonic() - began)
                peak[0] = max(peak[0], process.memory_info().rss)
                over.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: waits)  # it is connected before anybody takes all connections
        yield
    finally:
        over.set()
        asking.join()
    waits.sort()
    p99 = waits[int(len(waits) * 0.99)]
    print(f"{what}: quiet client p99 {p99 * 1e3:.1f} ms of {len(waits)}, peak RSS {peak[0] >> 20} MiB")
    until(
        lambda: process.num_fds() <= descriptors + 4, lambda: f"{process.num_fds()} descriptors, {descriptors} before"
    )
    assert peak[0] < MOST_MEMORY
    log = alpha.node.log.read_text(errors="replace")
    assert "unexpected error" not in log
    assert "Traceback" not in log


def exchange(node: Node, messages: bytes) -> bytes:
    """Send, hang up half, and take what comes until the daemon closes."""
    received = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(node.socket))  # without a timeout: with one, a full queue is an error at once
        client.settimeout(LIMIT)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(messages)
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                received += data
    return received


def damaged_body(chance: random.Random) -> bytes:
    body = bytearray(chance.choice(BODIES))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(3):
            case 0:
                body[at:at] = chance.choice(TELLING)
            case 1:
                del body[at : at + chance.randrange(8)]
            case 2:
                other = chance.choice(BODIES)
                body[at : at + chance.randrange(8)] = other[: chance.randrange(len(other))]
    return bytes(body)


def is_harmless(body: bytes) -> bool:
    try:
        return not isinstance(wire.decode_request(body)[1], NOT_DONE)
    except OverlaydError:
        return True


def in_threads(work: Callable[[random.Random], None], number: int) -> None:
    """Do it so many times, in four threads; what one raises fails the test."""
    failures: list[BaseException] = []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(number // 4):
                work(chance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_damaged_frames_of_every_op(alpha: Member) -> None:
    def send(chance: random.Random) -> None:
        bodies = [body for _ in range(AT_ONCE) if is_harmless(body := damaged_body(chance))]
        messages = bytearray(b"".join(map(frame, bodies)))
        if chance.random() < 0.1:
            messages[chance.randrange(len(messages))] = chance.randrange(256)
            if not is_harmless(bytes(messages[4:])):
                return
        exchange(alpha.node, bytes(messages))

    with watched(alpha, f"{FRAMES} damaged frames"):
        in_threads(send, FRAMES // AT_ONCE)


def test_damaged_envelopes(alpha: Member) -> None:
    with watched(alpha, f"{ENVELOPES} damaged envelopes"):
        in_threads(lambda chance: exchange(alpha.node, damage(chance, chance.choice(SEEDS))) and None, ENVELOPES)


def test_a_flood_of_connections(alpha: Member) -> None:
    status = request_frame(1, "status")

    def come_and_go(chance: random.Random) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(alpha.node.socket))
                client.settimeout(LIMIT)
                with contextlib.suppress(OSError):
                    client.sendall(status[: chance.choice([0, 3, len(status)])])

    with watched(alpha, f"{CONNECTIONS} connections"):
        in_threads(come_and_go, CONNECTIONS // 20)


def test_kills_under_load_lose_nothing_that_was_answered(alpha: Member) -> None:
    over = threading.Event()
    answered: dict[str, str] = {}

    def work(number: int) -> None:
        turn = 0
        while not over.is_set():
            with contextlib.suppress(OSError, EOFError, Refused), Connection(alpha.node.socket) as client:
                while not over.is_set():
                    turn += 1
                    name, ip = f"n{number}", f"10.200.1.{turn % 200 + 1}"
                    client.request("register_dns", name=name, ip=ip)
                    answered[name] = ip
                    client.request("status")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            before = len(answered)
            until(lambda before=before: len(answered) >= min(CLIENTS, before + 1))  # type: ignore[misc]
            alpha.node.kill()
            alpha.node.start()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    with Connection(alpha.node.socket) as client:
        assert client.request("status")["service_count"] == 1
        assert besides_version(client.request("doctor")["findings"]) == []
    assert answered
