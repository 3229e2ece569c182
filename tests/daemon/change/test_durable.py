"""What an error of the disk is to the rest of the daemon."""

import errno
import os

import pytest

from overlayd.daemon.change.durable import refusal
from overlayd.errors import DiskError


@pytest.mark.parametrize(
    "number, another_try",
    [
        *((number, True) for number in (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)),
        *((number, False) for number in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)),
    ],
)
def test_another_try_may_help_unless_the_path_is_wrong(number: int, another_try: bool) -> None:
    assert isinstance(refusal("no", OSError(number, os.strerror(number))), DiskError) == another_try
