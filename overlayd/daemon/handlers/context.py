"""What every handler works with, and the names of what it locks.

Owns: nothing of its own.  Must not know: any request.
"""

from collections.abc import Callable
from typing import NamedTuple

from overlayd.daemon.candidates import Candidates
from overlayd.daemon.health import Health
from overlayd.daemon.node import Node
from overlayd.daemon.status import StatusView
from overlayd.model.objects import GLOBAL


class Daemon(NamedTuple):
    """The running daemon, as handlers see it.  ask_names: looks up the host names of peers that do not answer; stop:
    ends the daemon once the answers in flight are out.
    """

    node: Node
    status: StatusView
    health: Health
    candidates: Candidates
    boot_id: str
    ask_names: Callable[[], None]
    stop: Callable[[], None]


def service_lock(name: str) -> str:
    return f"service {name}"


def peers_locks(scope: str) -> list[str]:
    """What a change of a scope's peers must have for itself.  Routes have no scope: a destination has one."""
    return [f"peers {scope}"] if scope == GLOBAL else [f"peers {scope}", "routes"]
