"""What the doctor says of peers that do not answer.

Owns: when that is this node's trouble rather than theirs, and the words.  Must not know: how it is found out
(`health`).
"""

from collections.abc import Sequence
from typing import NamedTuple

from overlayd.model.findings import Finding, Severity

FEW = 4  # our own: so many are named one by one


class SilentPeer(NamedTuple):
    """name: for people.  endpoint: where it is sent to, "" when unknown.  waited: seconds since the first of what was
    sent that has no answer.  last_handshake: its age in seconds, None for never.
    """

    name: str
    endpoint: str
    waited: float
    last_handshake: float | None


def silent_peers(silent: Sequence[SilentPeer], answering: int) -> list[Finding]:
    """answering: how many other peers do answer.  When none does, it is this node that is cut off: an error; while some
    do, those that do not are most likely down themselves: a warning.
    """
    if not silent:
        return []
    if answering:
        remedy = "see whether that node runs and has the same keys, and whether its firewall lets WireGuard's port in"
    else:
        remedy = (
            "no peer answers: see whether this host reaches theirs, a firewall between drops UDP, or this node's key,"
            " clock or port changed"
        )
    severity: Severity = "warning" if answering else "error"
    if len(silent) > FEW:
        names = ", ".join(each.name for each in silent[:FEW])
        problem = f"do not answer for up to {_span(max(each.waited for each in silent))}"
        return [Finding("peer-silent", severity, f"{len(silent)} peers ({names}, ...)", problem, _SYMPTOM, remedy)]
    return [Finding("peer-silent", severity, f"peer {each.name}", _problem(each), _SYMPTOM, remedy) for each in silent]


_SYMPTOM = "what is sent grows and what is received stands still: containers behind it are not reached"


def _problem(peer: SilentPeer) -> str:
    where = f" at {peer.endpoint}" if peer.endpoint else ""
    last = f"{_span(peer.last_handshake)} ago" if peer.last_handshake is not None else "never"
    return f"has not answered{where} for {_span(peer.waited)}; last handshake {last}"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
