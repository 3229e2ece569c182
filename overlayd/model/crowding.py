"""Tables of the kernel that fill up with containers.

Owns: from when on a person is told, and the words.  Must not know: how a table is read (`linux.neighbours`,
`linux.conntrack`).
"""

from collections.abc import Iterable

from overlayd.model.findings import Finding

# Our own constant: the part of a table from which on it is told; each container has two neighbours or more.
CROWDED = 0.8
# And from which on connection tracking is full: it empties, and drops, in moments between.
FULL = 0.98


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


def tracked(connections: int, limit: int) -> list[Finding]:
    """A finding when connection tracking is nearly full.  limit: nf_conntrack_max, 0 for none."""
    if not limit or connections < limit * CROWDED:
        return []
    parameter = "net/netfilter/nf_conntrack_max"
    return [
        Finding(
            code="connections-crowded",
            severity="error" if connections >= limit * FULL else "warning",
            object=parameter,
            problem=f"is {limit}, and this host tracks {connections} connections",
            symptom="at the limit the kernel drops what begins a connection, of containers too",
            remedy=f"see whose they are (conntrack -L), or raise it on the host: sysctl -w"
            f" {parameter.replace('/', '.')}={limit * 4}",
        )
    ]
