"""The journal of a data directory, read without the daemon: no lock is taken and nothing is written.

Owns: how to read it beside a daemon that writes it, and what in it is secret.  Must not know: what the kernel has.
"""

from pathlib import Path

from overlayd import keys
from overlayd.errors import StateError
from overlayd.model.rows import Attachment, Node, Overlay, Service, decode
from overlayd.model.state import State
from overlayd.proto import log

_ELSEWHERE = "name the daemon's data directory with --data-dir or OVERLAYD_DATA_DIR"


def read(directory: Path) -> State:
    """The state as of the last whole commit.  Raises StateError, which says why there is none: no journal, no
    permission, damage.

    A commit that is just being written looks like a torn end, and is left out.
    """
    path = directory / "journal"
    try:
        if path.exists() and not path.is_file():  # which might never end, or never begin
            raise StateError(f"{path} is not a regular file: {_ELSEWHERE}")
        data = path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}: {_remedy(directory, error)}") from error
    try:
        rows = log.recover(data).rows
    except StateError as error:
        raise StateError(f"{path} is damaged: {error}") from error
    state = State(decode(id, value) for id, value in rows.items())
    if state.get(Node) is None:
        raise StateError(f"{path} knows of no node")
    return state


def _remedy(directory: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "root may read it: use sudo"
    if isinstance(error, FileNotFoundError) and directory.is_dir():
        return "no overlayd has used this directory: name the daemon's with --data-dir or OVERLAYD_DATA_DIR"
    return _ELSEWHERE


def secrets(state: State) -> set[str]:
    """Every text in a state that nobody else may see: private keys, and what NAT servers are logged in to with."""
    private = [row.private_key for row in state.table(Node).values()]
    private += [row.private_key for row in state.table(Service).values()]
    private += [row.private_key for row in state.table(Attachment).values()]
    found = {form(key) for key in private if key for form in (keys.text, bytes.hex)}
    overlay = state.get(Overlay)
    if overlay is not None and overlay.nat:
        relay = overlay.nat.get("relay_server") or {}
        found |= {str(server.get("credential") or "") for server in overlay.nat.get("turn_servers", ())}
        found.add(str(relay.get("auth_credential") or ""))
    return found - {""}
