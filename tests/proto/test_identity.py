"""Identities: the contract's bytes, hostile replies, the identity file, and telling daemons apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError, StateError
from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.identity import DaemonProcess, Suspicion
from overlayd.proto.protobuf import bytes_field, varint_field

CONTRACT = json.loads((Path(__file__).parents[1] / "vectors/envelope.json").read_text())
VECTORS = {vector["id"]: bytes.fromhex(vector["hex"]) for vector in CONTRACT["vectors"]}

# The file spells the image's last byte, a line feed, as an escape sequence.
_IMAGE = CONTRACT["identity"]["hashed_bytes"].replace("\\n", "\n").encode()
DAEMON = DaemonProcess(
    exe_hash=blake3(_IMAGE).digest(),
    exe_sha256=hashlib.sha256(_IMAGE).digest(),
    **{key: value for key, value in CONTRACT["identity"].items() if key != "hashed_bytes"},
)
NONCE = bytes(range(32))


def but(**changes: Any) -> DaemonProcess:
    return msgspec.structs.replace(DAEMON, **changes)


def frame_of(wire: bytes) -> Frame:
    decoded = envelope.decode(wire)
    assert decoded is not None
    return decoded[0]


texts = st.text(st.characters(codec="utf-8"), max_size=20)
hashes = st.binary(min_size=32, max_size=32)
uint32s = st.integers(0, (1 << 32) - 1)
identities = st.builds(
    DaemonProcess,
    pid=uint32s,
    exe_path=texts,
    namespace_id=texts,
    path=texts,
    started_at_unix_ms=st.integers(0, (1 << 64) - 1),
    boot_id=texts,
    exe_hash=hashes,
    exe_sha256=hashes,
    idle_timeout_secs=st.none() | uint32s,
)


# --- the message --------------------------------------------------------------------------------------------------


def test_the_identity_is_the_contracts_byte_for_byte() -> None:
    assert identity.encode(DAEMON) == VECTORS["V06"]
    assert identity.decode(VECTORS["V06"]) == DAEMON


@given(identities)
def test_round_trips(daemon: DaemonProcess) -> None:
    assert identity.decode(identity.encode(daemon)) == daemon
    assert identity.from_json(identity.to_json(daemon)) == daemon


def test_an_idle_timeout_of_zero_is_not_the_absence_of_one() -> None:
    assert identity.decode(identity.encode(but(idle_timeout_secs=0))).idle_timeout_secs == 0
    assert identity.decode(identity.encode(but(idle_timeout_secs=None))).idle_timeout_secs is None


def test_an_identity_without_the_older_hash_is_read() -> None:
    without = VECTORS["V06"].removesuffix(bytes_field(3, DAEMON.exe_sha256))
    assert len(without) == len(VECTORS["V06"]) - 34
    assert identity.decode(without) == but(exe_sha256=bytes(32))


def test_a_repeated_endpoint_is_merged_and_unknown_fields_are_skipped() -> None:
    more = bytes_field(4, bytes_field(2, b"/run/b.sock") + bytes_field(9, b"?")) + bytes_field(77, b"?")
    assert identity.decode(VECTORS["V06"] + more) == but(path="/run/b.sock")


@pytest.mark.parametrize(("damage", "says"), [
    (VECTORS["V06"][:-1], "past the end"),
    (b"", "endpoint"),
    (identity.encode(but(exe_hash=bytes(31))), "31"),
    (identity.encode(but(exe_sha256=bytes(33))), "33"),
    (VECTORS["V06"] + bytes_field(8, b"md5"), "md5"),
    (VECTORS["V06"] + bytes_field(6, b"\xff"), "UTF-8"),
    (VECTORS["V06"] + varint_field(2, 1), "field 2"),
    (VECTORS["V06"] + bytes_field(1, b"1"), "field 1"),
    (VECTORS["V06"] + bytes_field(4, varint_field(2, 1)), "field 2"),
    (VECTORS["V06"] + bytes_field(4, b"\x7b" * 100 + b"\x7c" * 100), "too deep"),
])  # fmt: skip
def test_a_malformed_identity_is_refused(damage: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        identity.decode(damage)


@given(st.binary(max_size=80), st.integers(0, 200))
def test_an_untrusted_identity_raises_nothing_else(noise: bytes, at: int) -> None:
    for message in (noise, VECTORS["V06"][:at] + noise, VECTORS["V06"][:at] + noise + VECTORS["V06"][at:]):
        try:
            identity.decode(message)
        except ProtocolError:
            continue


# --- probe and reply ----------------------------------------------------------------------------------------------


def test_a_probe_gets_the_contracts_answer() -> None:
    assert identity.answer_probe(frame_of(VECTORS["V01"]), identity.encode(DAEMON)) == VECTORS["V04"]


def test_our_probe_is_the_brokers() -> None:
    assert envelope.encode(identity.probe_request(NONCE)) == VECTORS["V02"]


PROBE = frame_of(VECTORS["V01"])


def test_a_probe_is_checked_in_order() -> None:
    """Each fault is reported although all later ones are there too."""
    faults = [("version", 2), ("kind", 1), ("encoding", 1), ("payload", b"")]
    says = ["version 2", "kind 1", "encoding 1", "nonce of 0"]
    for first, expected in enumerate(says):
        request = msgspec.structs.replace(PROBE, **dict(faults[first:]))
        with pytest.raises(ProtocolError, match=expected):
            identity.answer_probe(request, b"")


def test_our_own_answer_is_believed() -> None:
    request = identity.probe_request(NONCE)
    reply = frame_of(identity.answer_probe(request, identity.encode(DAEMON)))
    assert identity.parse_probe_reply(reply, request) == DAEMON


@pytest.mark.parametrize(("change", "says"), [
    ({"version": 0}, "version 0"),
    ({"protocol": 0xF0DE}, "0xf0de"),
    ({"kind": envelope.KIND_REQUEST}, "kind 0"),
    ({"encoding": envelope.ENCODING_ZSTD}, "encoding 1"),
    ({"request_id": 8}, "id 8"),
    ({"payload": NONCE[:-1]}, "nonce"),
    ({"payload": NONCE[::-1] + VECTORS["V06"]}, "nonce"),
    ({"payload": NONCE}, "endpoint"),
])  # fmt: skip
def test_a_reply_that_does_not_fit_its_probe_is_refused(change: dict[str, Any], says: str) -> None:
    reply = msgspec.structs.replace(frame_of(VECTORS["V04"]), **change)
    with pytest.raises(ProtocolError, match=says):
        identity.parse_probe_reply(reply, PROBE)


# --- the identity file --------------------------------------------------------------------------------------------


def test_the_file_has_the_contracts_keys() -> None:
    assert json.loads(identity.to_json(but(idle_timeout_secs=None))) == {
        "pid": 4242,
        "exe_path": "/usr/local/bin/overlayd",
        "exe_hash_algorithm": "blake3",
        "exe_hash": list(DAEMON.exe_hash),
        "legacy_exe_sha256": list(DAEMON.exe_sha256),
        "boot_id": "11111111-2222-3333-4444-555555555555",
        "ipc_endpoint": {"namespace_id": "overlayd", "path": "/run/user/1000/overlayd.sock"},
        "started_at_unix_ms": 1700000000000,
        "idle_timeout_secs": None,
    }


def test_a_file_of_an_older_daemon_is_read() -> None:
    content = json.loads(identity.to_json(DAEMON))
    del content["legacy_exe_sha256"], content["idle_timeout_secs"]
    content["added_later"] = True
    read = identity.from_json(json.dumps(content).encode())
    assert read == but(exe_sha256=bytes(32), idle_timeout_secs=None)


@pytest.mark.parametrize(("change", "says"), [
    ({"pid": "4242"}, "pid"),
    ({"pid": 1 << 32}, "pid"),
    ({"exe_hash": [0] * 31}, "exe_hash"),
    ({"exe_hash": [256] * 32}, "exe_hash"),
    ({"exe_hash_algorithm": "sha256"}, "sha256"),
    ({"ipc_endpoint": {"path": "/x"}}, "namespace_id"),
    ({"started_at_unix_ms": -1}, "started_at_unix_ms"),
])  # fmt: skip
def test_a_malformed_file_says_which_key(change: dict[str, Any], says: str) -> None:
    content = json.loads(identity.to_json(DAEMON)) | change
    with pytest.raises(StateError, match=says):
        identity.from_json(json.dumps(content).encode())


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b'{"pid": 1', b'{"exe_path": "\xff"}'])
def test_what_is_no_identity_file(content: bytes) -> None:
    with pytest.raises(StateError, match="identity file"):
        identity.from_json(content)


# --- telling daemons apart ----------------------------------------------------------------------------------------


def judge(answered: DaemonProcess, boot_id: str = DAEMON.boot_id, runs: bool = True) -> identity.Mismatch | None:
    return identity.mismatch(DAEMON, answered, boot_id=boot_id, published_pid_runs=runs)


def test_the_same_daemon_is_trusted() -> None:
    assert judge(DAEMON) is None
    assert judge(but(exe_sha256=bytes(32), idle_timeout_secs=None)) is None  # no part of who it is


@pytest.mark.parametrize(("found", "suspicion", "field"), [
    (judge(but(pid=7)), Suspicion.IMPOSTOR, "pid"),
    (judge(but(path="/elsewhere")), Suspicion.IMPOSTOR, "path"),
    (judge(but(namespace_id="other")), Suspicion.IMPOSTOR, "namespace_id"),
    (judge(but(boot_id="another")), Suspicion.IMPOSTOR, "boot_id"),
    (judge(but(pid=7), runs=False), Suspicion.STALE_FILE, "pid"),
    (judge(DAEMON, boot_id="another"), Suspicion.STALE_FILE, "boot_id"),
    (judge(but(pid=7, boot_id="another"), boot_id="another"), Suspicion.STALE_FILE, "boot_id"),
    (judge(but(started_at_unix_ms=1)), Suspicion.STALE_FILE, "started_at_unix_ms"),
    (judge(but(exe_hash=bytes(32))), Suspicion.REPLACED_EXECUTABLE, "exe_hash"),
    (judge(but(exe_path="/usr/bin/other")), Suspicion.REPLACED_EXECUTABLE, "exe_path"),
])  # fmt: skip
def test_impostors_stale_files_and_replaced_executables_are_told_apart(
    found: identity.Mismatch | None, suspicion: Suspicion, field: str
) -> None:
    assert found is not None
    assert (found.suspicion, found.field) == (suspicion, field)
    assert found.published != found.found


def test_a_mismatch_reads_as_a_sentence() -> None:
    assert str(judge(but(pid=7))) == "another process answers on the socket: pid was 4242, is 7"
    assert str(judge(DAEMON, runs=False)) == "the identity file is of an earlier process: pid was 4242, is gone"
