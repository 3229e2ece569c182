"""A limit on the memory of a node's processes.

Owns: one control group, of either version, made and removed.  Must not know: what runs in it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.patience import until

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


@contextmanager
def limited(size: int) -> Iterator[list[str]]:
    """A group that may have `size` bytes and no swap.  Yields the prefix of a command line that is to run in it."""
    name = f"overlayd-lab-{secrets.token_hex(4)}"
    if V1.is_dir():
        group = V1 / name
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(size))
        (group / "memory.swappiness").write_text("0")
    else:
        (V2 / "cgroup.subtree_control").write_text("+memory")
        group = V2 / name
        group.mkdir()
        (group / "memory.max").write_text(str(size))
        (group / "memory.swap.max").write_text("0")
    try:
        # By way of this process: a node has a /sys of its own.
        yield ["sh", "-c", f'echo $$ > /proc/{os.getpid()}/root{group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        home = group.parent / "cgroup.procs"

        def is_removed() -> bool:
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):  # it has just ended
                    home.write_text(pid)
            with suppress(OSError):  # while one of its processes is about to be gone
                group.rmdir()
            return not group.exists()

        until(is_removed, f"{group} stays")
