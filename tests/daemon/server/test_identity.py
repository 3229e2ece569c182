"""The identity of a real process, and the real file that publishes it."""

import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from lab.patience import until

from overlayd.daemon.server import identity
from overlayd.errors import StateError
from overlayd.proto import identity as proto
from overlayd.proto.identity import DaemonProcess

SOCKET = "/run/overlayd/overlayd.sock"


@pytest.fixture
def me() -> DaemonProcess:
    return identity.current("overlayd", SOCKET)


def test_the_identity_is_this_process(me: DaemonProcess) -> None:
    executable = Path("/proc/self/exe").read_bytes()
    assert me.pid == os.getpid()
    assert me.exe_path == str(Path(f"/proc/{os.getpid()}/exe").readlink())
    assert me.exe_hash == blake3(executable).digest()
    assert me.exe_sha256 == hashlib.sha256(executable).digest()
    assert me.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(me.boot_id) == 36
    assert (me.namespace_id, me.path, me.idle_timeout_secs) == ("overlayd", SOCKET, None)
    assert 1_600_000_000_000 < me.started_at_unix_ms < 10_000_000_000_000


def test_a_large_executable_is_hashed_in_chunks(tmp_path: Path) -> None:
    content = os.urandom(3 * identity._CHUNK + 17)
    file = tmp_path / "image"
    file.write_bytes(content)
    assert identity._hashes(file) == (blake3(content).digest(), hashlib.sha256(content).digest())


def test_the_running_executable_is_hashed_though_its_path_was_replaced(tmp_path: Path) -> None:
    original = Path(sys.executable).resolve().read_bytes()
    image = tmp_path / "image"
    image.write_bytes(original)
    image.chmod(0o755)
    program = (
        "import os, sys; os.unlink(sys.argv[1]); open(sys.argv[1], 'w').write('another')\n"
        "from overlayd.daemon.server import identity; print(identity.current('n', '/s').exe_hash.hex())"
    )
    environment = os.environ | {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([image, "-c", program, image], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == blake3(original).hexdigest()
    assert image.read_text() == "another"


def test_a_path_that_is_not_text_is_the_same_on_the_wire_and_in_the_file() -> None:
    me = identity.current("overlayd", os.fsdecode(b"/run/\xff.sock"))
    assert me.path == "/run/�.sock"
    assert proto.decode(proto.encode(me)) == proto.from_json(proto.to_json(me)) == me


def test_the_file_is_private_whole_and_leaves_no_draft(me: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "overlayd.identity.json"
    umask = os.umask(0o277)  # a umask that would take our own right to write
    try:
        identity.publish(me, file)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert proto.from_json(file.read_bytes()) == me
    assert list(tmp_path.iterdir()) == [file]


def test_a_draft_of_a_process_that_died_is_no_obstacle(me: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "id"
    (tmp_path / f".id.{me.pid}").write_text("half of an iden")
    identity.publish(me, file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_never_sees_half_a_file(me: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "id"
    short, long = me, msgspec.structs.replace(me, exe_path="/" + "x" * 20_000)
    identity.publish(short, file)
    done = threading.Event()
    seen: list[DaemonProcess] = []

    def read() -> None:
        while not done.is_set():
            seen.append(proto.from_json(file.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(200):
            identity.publish(long if turn % 2 else short, file)
        until(lambda: seen)
    finally:
        done.set()
        reader.join()
    assert {len(one.exe_path) for one in seen} <= {len(short.exe_path), len(long.exe_path)}


def test_a_clean_stop_removes_the_file_once(me: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "id"
    identity.publish(me, file)
    identity.withdraw(me, file)
    assert not file.exists()
    identity.withdraw(me, file)


def test_the_file_of_a_successor_is_left_alone(me: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "id"
    identity.publish(me, file)
    successor = msgspec.structs.replace(me, pid=me.pid + 1)
    identity.publish(successor, file)
    identity.withdraw(me, file)
    assert proto.from_json(file.read_bytes()) == successor


def test_a_refusal_names_the_file_and_keeps_what_was_published(me: DaemonProcess, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="missing/id"):
        identity.publish(me, tmp_path / "missing" / "id")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    with pytest.raises(StateError, match="occupied"):
        identity.publish(me, occupied)
    assert list(tmp_path.iterdir()) == [occupied]
    with pytest.raises(StateError, match="occupied"):
        identity.withdraw(me, occupied)


def test_a_file_that_is_no_identity_file_is_not_replaced(me: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_bytes(b"what nobody wants to lose")
    with pytest.raises(StateError, match="is not an identity file, and stays"):
        identity.publish(me, file)
    assert file.read_bytes() == b"what nobody wants to lose" and [*tmp_path.iterdir()] == [file]
    file.write_bytes(b"")
    identity.publish(me, file)
    identity.publish(me, file)
    assert proto.from_json(file.read_bytes()) == me
