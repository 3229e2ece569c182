"""What to do when the daemon cannot be reached, does not answer, or is another one than was thought.

Owns: these sentences.  Must not know: which command was asked for.
"""

import os
from pathlib import Path

from overlayd import __version__
from overlayd.client import CallError, ConnectionLost, Unreachable

_NOT_FOR_ALL = """\
overlayd talks to root, to its own user, and to members of the socket's group:
compare `stat -c %G {path}` with `id -nG`, or use sudo.  Its log says whom it turned away."""


def refused(error: CallError) -> str:
    """What to add to an answer `err`; empty where that says all."""
    # As daemons before 0.1 and other implementations name a request that they do not know.
    if "unknown variant" not in str(error) and "unknown request" not in str(error):
        return ""
    return f"The daemon does not know this request: it is older than overlayctl {__version__} (overlayctl version)."


def unavailable(error: Exception, path: str) -> str:
    """What to add to the error that kept the daemon from answering; empty where that says all.  path: of the socket."""
    match error:
        case Unreachable():
            return _unreachable(error.reason, path)
        case ConnectionLost() if error.foreign:
            return (
                f"What answers at {path} is not overlayd, or speaks another protocol: see whose socket it is (ss -xlp)."
            )
        case ConnectionLost() if os.geteuid():  # it accepts, looks at the credentials, and hangs up
            return _NOT_FOR_ALL.format(path=path)
        case ConnectionLost():
            return (
                "overlayd stopped, was restarted, or hung up since there are too many connections: its log says which\n"
                "(journalctl -u overlayd), and which process has them."
            )
        case TimeoutError():
            return (
                "overlayd is there, and busy, stopped (SIGSTOP) or hanging: see its log (journalctl -u overlayd).\n"
                "To wait for longer: --timeout; what overlayctl inspect shows needs no answer of it."
            )
        case _:
            return ""


def _unreachable(reason: OSError, path: str) -> str:
    match reason:
        case FileNotFoundError():
            return (
                "There is no such socket: is overlayd running on this node (systemctl status overlayd)?\n"
                "If it listens elsewhere, name the socket with --socket or OVERLAYD_SOCKET."
            )
        case ConnectionRefusedError() if not Path(path).is_socket():
            return f"{path} is not a socket: name overlayd's with --socket or OVERLAYD_SOCKET."
        case ConnectionRefusedError():
            return (
                f"Nobody listens there: overlayd stopped or crashed (journalctl -u overlayd), and left {path} behind."
            )
        case PermissionError():
            return _NOT_FOR_ALL.format(path=path)
        case _:
            return "Check that overlayd runs on this node, and the socket's path (--socket, OVERLAYD_SOCKET)."
