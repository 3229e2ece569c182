"""Who can reach the socket by its permissions."""

import os
from pathlib import Path

from overlayd.daemon.server import listener


def test_a_directory_that_is_made_for_the_socket_lets_its_group_through(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "overlayd"
    before = os.umask(0o077)
    try:
        listener.bind(str(directory / "overlayd.sock"), 12345).close()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o755
    found = (directory / "overlayd.sock").stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, 12345)
