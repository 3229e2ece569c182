"""Looking for what is not as it should be.

Owns: doctor.  Must not know: sockets and frames.
"""

from overlayd import wire
from overlayd.daemon.handlers.context import Daemon


async def examine(daemon: Daemon, request: wire.Doctor) -> wire.Response:
    findings = await daemon.doctor.examine()
    return wire.Diagnosis(tuple(wire.Finding(*finding) for finding in findings))
