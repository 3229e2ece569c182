"""Who gets at the socket that a daemon binds, and who is let in."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from overlayd.daemon.server.listener import Admission, Credentials, Place, bind, credentials
from overlayd.errors import StateError

STRANGER, GROUP = 64990, 64991  # a user and a group that need not exist


def connects(path: str, groups: list[int]) -> bool:
    """Whether another user's process, a member of these groups, gets through to the socket."""
    child = os.fork()
    if not child:
        refused = 1
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            os.setgroups(groups)
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            client.connect(path)
            refused = 0
        os._exit(refused)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def path() -> Iterator[str]:
    """Of a socket, in a directory that is not there yet, below one that everybody may search."""
    with tempfile.TemporaryDirectory(prefix="ot-") as directory:
        Path(directory).chmod(0o755)
        yield f"{directory}/run/overlayd/overlayd.sock"


def test_a_member_of_the_group_gets_through_a_directory_that_was_made_for_the_socket(path: str) -> None:
    mask = os.umask(0o077)
    try:
        with bind(path, GROUP) as listener:
            listener.listen()
            assert os.umask(0o077) == 0o077, "the mask is as before"
            assert connects(path, [GROUP])
            assert not connects(path, [])
    finally:
        os.umask(mask)


def test_a_directory_that_is_made_for_the_socket_lets_its_group_through(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "overlayd"
    before = os.umask(0o077)
    try:
        bind(str(directory / "overlayd.sock"), 12345).close()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o755
    found = (directory / "overlayd.sock").stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, 12345)


@pytest.mark.parametrize("groups", [[], [GROUP], [GROUP + 1, GROUP], [*range(1, 5000), GROUP], [GROUP + 1]])
def test_members_of_the_group_are_let_in_and_strangers_are_not(path: str, groups: list[int], monkeypatch) -> None:
    monkeypatch.setattr("grp.getgrnam", lambda name: SimpleNamespace(gr_gid=GROUP))
    with bind(path, None) as listener:
        Path(path).chmod(0o666)  # the file system lets them through: the last word is ours
        listener.listen()
        listener.setblocking(True)
        assert connects(path, groups)
        client, _ = listener.accept()
        with client:
            assert credentials(client)[1:3] == (STRANGER, STRANGER)
            assert Admission("overlayd")(credentials(client)) == (GROUP in groups)


def test_root_and_the_daemons_own_user_are_let_in_without_a_group() -> None:
    assert Admission("")(Credentials(1, 0, 0))
    assert Admission("")(Credentials(1, os.getuid(), STRANGER))
    assert not Admission("")(Credentials(1, STRANGER, STRANGER))


def test_a_group_that_was_asked_for_by_name_must_exist() -> None:
    with pytest.raises(StateError, match="no group no-such-group: create it"):
        Admission("no-such-group")
    assert Admission(None)(Credentials(1, 0, 0)), "the default group need not"


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link to a file"])
def test_what_is_no_socket_is_never_replaced(path: str, kind: str) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True)
    match kind:
        case "file":
            place.write_text("precious")
        case "directory":
            place.mkdir()
        case "fifo":
            os.mkfifo(place)
        case _:
            (place.parent / "target").write_text("precious")
            place.symlink_to("target")
    before = os.lstat(place)
    with pytest.raises(StateError, match="not a socket"):
        bind(path, None)
    assert os.path.samestat(os.lstat(place), before)


def test_a_socket_that_nobody_answers_on_is_replaced(path: str) -> None:
    Path(path).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    with bind(path, None) as listener:
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_place_is_lost_with_its_file_and_taken_again(path: str) -> None:
    place = Place(path, GROUP, 0o600)
    assert not place.is_lost()
    Path(path).unlink()
    assert place.is_lost()
    place.retake().close()
    assert not place.is_lost()
    found = Path(path).stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o600, GROUP)
    place.close()
    assert not Path(path).exists()


def test_a_place_that_is_somebody_elses_by_now_is_left_alone(path: str) -> None:
    place = Place(path, None)
    Path(path).unlink()
    Path(path).write_text("precious")
    assert place.is_lost()
    with pytest.raises(StateError, match="not a socket"):
        place.retake()
    place.close()
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize(
    ("number", "told"),
    [("x", "LISTEN_FDS is 'x', and no number"), ("", "is '', and no"), ("2", "is 2, but descriptor 3 is not a socket")],
)
def test_wrong_words_of_a_service_manager_are_told(number: str, told: str) -> None:
    code = (
        "import os, sys\n"
        "from overlayd.daemon.server.listener import passed\n"
        "os.dup2(os.open(os.devnull, os.O_RDONLY), 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[1])\n"
        "passed()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, number], capture_output=True, text=True, check=False)
    assert told in done.stderr
    assert done.stderr.endswith(": unset it and LISTEN_PID\n")
