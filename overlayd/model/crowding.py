"""Tables of the kernel that fill up with containers.

Owns: from when on a person is told, and the words.  Must not know: how a table is read (`linux.neighbours`).
"""

from collections.abc import Iterable

from overlayd.model.findings import Finding

# Our own constant: the part of a neighbour table from which on it is told; each container has two entries or more.
CROWDED = 0.8


def crowded(tables: Iterable[tuple[int, int, int]]) -> list[Finding]:
    """A finding for each neighbour table that is nearly full.  tables: IP version, entries, gc_thresh3 of each."""
    return [_finding(*table) for table in tables if table[1] >= table[2] * CROWDED]


def _finding(version: int, entries: int, limit: int) -> Finding:
    parameter = f"net/ipv{version}/neigh/default/gc_thresh3"
    return Finding(
        code="neighbours-crowded",
        severity="error" if entries >= limit else "warning",
        object=parameter,
        problem=f"is {limit}, and this host with all its containers has {entries} IPv{version} neighbours",
        symptom="at the limit new containers are not reached, and old ones lose each other now and then",
        remedy=f"raise it on the host: sysctl -w {parameter.replace('/', '.')}={limit * 4}",
    )
