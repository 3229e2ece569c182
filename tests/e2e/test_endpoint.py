"""Who serves the socket: the real daemon beside the running-process family's own client and beside ours."""

import asyncio
import base64
import json
import os
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint_client import ask, connected, meeting, until, wait_for
from lab import CommandFailed, Connection, Lab
from lab.cluster import Member
from lab.frames import request_frame
from lab.patience import LIMIT
from lab.processes import stop
from running_process_service import ServiceSpec

from overlayd.client import Impostor, NotPublished, OverlayClient, StaleIdentityFile
from overlayd.proto import envelope

FLOODERS = 32
HELD = 20  # changes under way, more than the daemon has threads for
# The acceptance is 30 s; the whole of it with OVERLAYD_FULL=1, else a part, so that the suite stays quick.
FLOOD_SECONDS = 30.0 if os.environ.get("OVERLAYD_FULL") else 5.0


@pytest.fixture(scope="module")
def spec() -> Iterator[ServiceSpec]:
    with tempfile.TemporaryDirectory(prefix="ot", dir="/tmp") as directory, meeting(Path(directory)) as spec:
        yield spec


@pytest.fixture(scope="module")
def served(lab: Lab, spec: ServiceSpec) -> Member:
    """A node whose daemon serves the family's own path, and publishes who it is."""
    member = Member(lab, 3, "served")
    member.node.socket = Path(spec.endpoint)
    member.start("--identity-file", str(spec.identity_path))
    member.set_up()
    return member


def verified(spec: ServiceSpec, seconds: float = 0) -> None:
    """Connect with our own client and verify, once, or until `seconds` are over; raises what it finds."""

    async def connect() -> None:
        async with await OverlayClient.connect(
            spec.endpoint, timeout=seconds, identity_file=str(spec.identity_path)
        ) as client:
            await client.status()

    asyncio.run(connect())


# --- Their client ---


def test_their_client_stays_up_under_a_flood_with_the_handlers_held(served: Member, spec: ServiceSpec) -> None:
    """wireguard-go is stopped, so that every change holds a handler and its thread until it is given up."""
    [wireguard] = served.node.wireguard_pids()
    done = threading.Event()
    answered = [0] * FLOODERS
    outcomes: list[str] = []

    def flood(number: int) -> None:
        batch = b"".join(request_frame(id, "status") for id in range(100))
        with served.node.connect() as client:
            while not done.is_set():
                client.send(batch)
                for id in range(100):
                    assert client.receive()["id"] == id
                answered[number] += 100

    def hold(number: int) -> None:
        keys = {"endpoint": "", "allowed_ips": "", "persistent_keepalive_secs": 0}
        with Connection(served.node.socket, timeout=2 * LIMIT) as client:
            while not done.is_set():
                client.send(request_frame(1, "add_peer", public_key=public_key(number), **keys))
                outcomes.append(client.receive()["response"]["result"])

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(FLOODERS)]
    threads += [threading.Thread(target=hold, args=(number,)) for number in range(HELD)]
    states = set()
    with connected(spec) as client:
        wait_for(client, "up")
        stop(wireguard)
        try:
            for thread in threads:
                thread.start()
            end = time.monotonic() + FLOOD_SECONDS
            while time.monotonic() < end:
                [answer] = ask(client, b'{"op": "status"}')
                assert answer is not None
                assert json.loads(answer)["public_key"] == served.public_key
                states.add(client.state)
                time.sleep(0.01)
            assert "ok" not in outcomes
        finally:
            os.kill(wireguard, signal.SIGCONT)
            done.set()
            for thread in threads:
                thread.join()
    assert len(outcomes) >= HELD
    assert states == {"up"}
    assert min(answered) > 0


def public_key(number: int) -> str:
    return base64.b64encode(bytes([number + 1] * 32)).decode()


def test_their_client_sees_it_go_and_come_back(served: Member, spec: ServiceSpec) -> None:
    with connected(spec) as client:
        wait_for(client, "up")
        assert served.node.stop() == 0
        assert not spec.identity_path.exists()
        wait_for(client, "down")
        served.start("--identity-file", str(spec.identity_path))
        wait_for(client, "up")
        [answer] = ask(client, b'{"op": "status"}')
        assert answer is not None
        assert json.loads(answer)["public_key"] == served.public_key


# --- Ours ---


def test_our_client_verifies_the_daemon(served: Member, spec: ServiceSpec) -> None:
    verified(spec, 10)
    assert stat.S_IMODE(spec.identity_path.stat().st_mode) == 0o600
    assert served.node.daemon is not None
    plain = served.node.overlayctl("whoami")
    assert str(served.node.daemon.pid) in plain
    assert "verified    no" in plain
    told = json.loads(served.node.overlayctl("whoami", "--identity-file", str(spec.identity_path), "-o", "json"))
    published = json.loads(spec.identity_path.read_bytes())
    assert (told["pid"], told["uid"], told["socket"]) == (served.node.daemon.pid, 0, spec.endpoint)
    assert told["exe_hash"] == bytes(published["exe_hash"]).hex()
    assert told["identity_file"] == str(spec.identity_path)


def test_a_killed_daemon_leaves_a_stale_file(served: Member, spec: ServiceSpec) -> None:
    served.node.kill()
    served.start()  # one that publishes nothing
    with pytest.raises(StaleIdentityFile, match="which is gone"):
        verified(spec)
    with pytest.raises(CommandFailed, match=r"exit code 69(.|\n)*which is gone"):
        served.node.overlayctl("whoami", "--identity-file", str(spec.identity_path))
    spec.identity_path.unlink()
    with pytest.raises(NotPublished):
        verified(spec)
    served.node.stop()
    served.start("--identity-file", str(spec.identity_path))
    verified(spec, 10)


def test_an_impostor_on_the_daemons_path(served: Member, spec: ServiceSpec) -> None:
    """The daemon runs and is published; somebody took its place in the file system.  It is us."""
    path = Path(spec.endpoint)
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            with pytest.raises(Impostor, match=f"process {os.getpid()} serves the socket"):
                verified(spec)
    finally:
        aside.rename(path)
    verified(spec)


# --- Settings ---


def test_another_payload_protocol_another_name_and_no_probes(lab: Lab) -> None:
    member = Member(lab, 4, "set")
    file = member.node.run_directory / "identity.json"
    status = envelope.encode(envelope.Frame(version=1, protocol=0x7123, payload=b'{"op":"status"}', request_id=5))
    member.start("--payload-protocol", "0x7123", "--namespace-id", "elsewhere", "--identity-file", str(file))
    until(file.exists, "the identity is published")
    assert json.loads(file.read_bytes())["ipc_endpoint"] == {
        "namespace_id": "elsewhere",
        "path": str(member.node.socket),
    }
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(member.node.socket))
        raw.sendall(status)
        answer = raw.recv(65536)
    decoded = envelope.decode(answer)
    assert decoded is not None
    assert (decoded[0].protocol, decoded[0].request_id) == (0x7123, 5)
    member.node.stop()
    member.start("--no-probe")
    assert member.request("status")["public_key"]
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(member.node.socket))
        raw.sendall(status)
        assert raw.recv(65536) == b""
    member.node.stop()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--payload-protocol", "0xb232"], "0xb232 is not in 0x7000-0x7eff or 0xf000-0xffff"),
        (["--payload-protocol", "one"], "payload-protocol: not a number: one"),
        (["--no-probe", "--identity-file", "/tmp/x"], "identity-file: of no use with no-probe"),
        (["--identity-file", "/no/such/directory/file"], "cannot publish the identity file"),
    ],
)
def test_settings_that_cannot_be(lab: Lab, options: list[str], said: str) -> None:
    node = next((node for node in lab.nodes if node.name == "cannot"), None) or lab.node("cannot")
    code, log = node.try_daemon(node.daemon_argv(*options))
    assert (code, said in log) == (os.EX_CONFIG, True), log
    assert "Traceback" not in log
