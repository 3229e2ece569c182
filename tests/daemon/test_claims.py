"""Who gets at the socket that a daemon binds."""

import os
import subprocess
import tempfile
from pathlib import Path

from overlayd.daemon.endpoint import bind

STRANGER, GROUP = 64990, 64991  # a user and a group that need not exist


def connects(path: str, groups: list[int]) -> bool:
    """Whether another user's process, a member of these groups, gets through to the socket."""
    argv = ["socat", "-u", "OPEN:/dev/null", f"UNIX-CONNECT:{path}"]
    done = subprocess.run(argv, user=STRANGER, group=STRANGER, extra_groups=groups, capture_output=True, check=False)
    return done.returncode == 0


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
