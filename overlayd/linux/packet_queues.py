"""Which queues of netfilter are read by a program (an IPS, a filter in user space).

Owns: that look.  Must not know: who hands packets to them.

Acts in the network namespace that the calling thread is in.
"""

from pathlib import Path


def being_read() -> frozenset[int]:
    """The numbers of these queues."""
    try:
        shown = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    except OSError:  # the kernel has none, or nobody has used one
        return frozenset()
    return frozenset(int(line.split()[0]) for line in shown.splitlines() if line.strip())
