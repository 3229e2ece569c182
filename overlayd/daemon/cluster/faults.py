"""Why this node is not in its cluster, or not as its journal says."""

from overlayd.errors import OverlaydError


class Refused(OverlaydError):
    """This node cannot be in the cluster as it was started; the daemon ends."""


class Copied(Refused):
    """The same data directory is at work on another machine: this one must not use the keys and addresses in it."""


class Waiting(OverlaydError):
    """There is no cluster yet."""


class Conflict(OverlaydError):
    """What the journal says is ours, the store says is another's."""
