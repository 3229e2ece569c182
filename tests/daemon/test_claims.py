"""Who gets at the socket that a daemon binds."""

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from overlayd.daemon.endpoint import bind

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


def test_a_member_of_the_group_gets_through_a_directory_that_was_made_for_the_socket() -> None:
    with tempfile.TemporaryDirectory(prefix="ot-") as directory:
        Path(directory).chmod(0o755)
        path = f"{directory}/run/overlayd/overlayd.sock"
        mask = os.umask(0o077)
        try:
            with bind(path, GROUP) as listener:
                listener.listen()
                assert os.umask(0o077) == 0o077, "the mask is as before"
                assert connects(path, [GROUP])
                assert not connects(path, [])
        finally:
            os.umask(mask)
