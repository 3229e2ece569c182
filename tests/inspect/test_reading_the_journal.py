"""The journal read beside the daemon that writes it, and what is said of one that cannot be read."""

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from overlayd.daemon.change.journal import Journal
from overlayd.errors import StateError
from overlayd.inspect import journal
from overlayd.model.rows import Node, Overlay, encode

NODE = Node(private_key=b"k" * 32)
OVERLAY = Overlay(deployment="d", instance_id="i", interface="zl-g", cluster=ip_network("10.2.0.0/16"), wg_port=51820)


def names(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


async def test_it_is_read_while_a_daemon_holds_it(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    try:
        await made.commit({NODE.id: encode(NODE)})
        before = (tmp_path / "journal").read_bytes()
        assert journal.read(tmp_path).get(Overlay) is None
        await made.commit({OVERLAY.id: encode(OVERLAY)})
        state = journal.read(tmp_path)
        assert (state.node, state.get(Overlay)) == (NODE, OVERLAY)
        assert (tmp_path / "journal").read_bytes().startswith(before), "nothing was written"
        assert names(tmp_path) == {"journal", "lock"}
    finally:
        await made.close()


async def test_a_commit_that_is_just_being_written_is_left_out(tmp_path: Path) -> None:
    made = Journal.open(tmp_path)
    await made.commit({NODE.id: encode(NODE)})
    await made.commit({OVERLAY.id: encode(OVERLAY)})
    await made.close()
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole[:-3])
    assert journal.read(tmp_path).get(Overlay) is None
    assert (tmp_path / "journal").read_bytes() == whole[:-3], "it is the daemon's to cut"


async def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    for directory, says in (
        (tmp_path / "mistyped", "No such file or directory: name the daemon's data directory"),
        (Path(__file__), "Not a directory: name the daemon's data directory"),
        (tmp_path, "No such file or directory: no overlayd has used this directory"),
    ):
        with pytest.raises(StateError, match=says):
            journal.read(directory)
    os.mkfifo(tmp_path / "journal")
    with pytest.raises(StateError, match="is not a regular file"):  # and not waited for
        journal.read(tmp_path)
    (tmp_path / "journal").unlink()
    made = Journal.open(tmp_path)
    await made.commit({OVERLAY.id: encode(OVERLAY)})
    with pytest.raises(StateError, match="knows of no node"):
        journal.read(tmp_path)
    await made.commit({NODE.id: encode(NODE)})
    await made.close()
    data = bytearray((tmp_path / "journal").read_bytes())
    data[20] ^= 1
    (tmp_path / "journal").write_bytes(data)
    with pytest.raises(StateError, match="is damaged"):
        journal.read(tmp_path)
