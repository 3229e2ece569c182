"""The form of a finding of the doctor, whichever part finds it.

Owns: the parts of a finding, its severities, and its one line.  Must not know: how anything is looked at, or the wire.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "hint"]

# From the worst: the order in which findings are shown.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")


class Finding(NamedTuple):
    """Something about this node's network that a person should know.

    code: names the kind of finding, in lower case with hyphens ("forward-blocked"); it never changes, for programs
    match it.  severity: "error" for what loses traffic now or is not as the state says, "warning" for what will or may,
    "hint" for what is worth knowing.  object: what it is about, a parameter by its name in sysctl(8)'s notation with
    slashes.  problem: a predicate of the object.  symptom: how it shows, a sentence without its full stop, empty when
    the problem says it already.  remedy: what to do, likewise.
    """

    code: str
    severity: Severity
    object: str
    problem: str
    symptom: str
    remedy: str

    @property
    def line(self) -> str:
        """All of it but the severity and the code, in one line: for the log."""
        return "; ".join(part for part in (f"{self.object} {self.problem}", self.symptom, self.remedy) if part)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; else in the order in which they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
