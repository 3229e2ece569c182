"""Other processes, in words.

Owns: what /proc tells of a process for a message.  Must not know: why it is named.
"""

from pathlib import Path


def describe(pid: int) -> str:
    """`pid 71 uid 0 (overlayd --data-dir /srv)`, or the number alone of a process that is gone or out of sight."""
    process = Path(f"/proc/{pid}")
    try:
        command = process.joinpath("cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        return f"pid {pid} uid {process.stat().st_uid} ({command})"
    except OSError:
        return f"pid {pid}"
