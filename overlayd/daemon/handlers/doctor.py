"""Looking for what is not as it should be.

Owns: doctor.  Must not know: sockets and frames.
"""

from overlayd import wire
from overlayd.daemon.handlers.context import Daemon
from overlayd.model.findings import Finding


async def examine(daemon: Daemon, request: wire.Doctor) -> wire.Response:
    findings = await daemon.doctor.examine()
    return wire.Diagnosis(tuple(map(as_sent, findings)))


def as_sent(finding: Finding) -> wire.Finding:
    """A finding in the words of the protocol."""
    return wire.Finding(
        object=finding.object,
        problem=finding.problem,
        remedy=finding.remedy,
        code=finding.code,
        severity=finding.severity,
        symptom=finding.symptom or None,
    )
