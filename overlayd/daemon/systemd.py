"""What a service manager hears of this process, and that it lives (sd_notify(3), sd_watchdog_enabled(3)).

Owns: the messages and their times.  Must not know: what the daemon does.

The watchdog is fed by the event loop: a loop that somebody holds feeds nothing, and the manager ends the process and
starts another one, which adopts the network as it is.
"""

import asyncio
import faulthandler
import os
import socket
import sys
from contextlib import suppress

EXTENSION = 60.0  # our own: seconds for which one message lets a start go on


def notify(state: str) -> None:
    """Tell the service manager, if there is one.  state: lines of sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def watchdog() -> float:
    """Seconds after which the manager takes this process for dead; 0 when it does not look."""
    pid, limit = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    if not limit.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(limit) / 1_000_000


async def feed() -> None:
    """Tell again and again that the loop turns, for as long as that is wanted; until it is cancelled."""
    limit = watchdog()
    if not limit:
        return
    faulthandler.enable(sys.stderr)  # the manager ends us by SIGABRT: the log then shows where each thread was
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(limit / 3)


async def go_on_starting(reason: str) -> None:
    """Let the manager wait for our start, which takes as long as something else does; until it is cancelled."""
    while True:
        notify(f"EXTEND_TIMEOUT_USEC={EXTENSION * 1_000_000:.0f}\nSTATUS={reason}")
        await asyncio.sleep(EXTENSION / 3)
