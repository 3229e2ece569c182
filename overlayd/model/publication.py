"""When this node tells the cluster what is new of it.

Owns: how long something has to be settled, and how seldom it is told.  Must not know: what is told, or how; time is an
argument, seconds of a clock that does not jump.
"""

# From the specification (cluster.md).
SETTLED, SELDOM = 5.0, 30.0
SHORTEST_WINDOW, LONGEST_WINDOW = 0.2, 60.0


class RecordPace:
    """When this node's record is told: endpoints and candidates flap while a host gets its network."""

    def __init__(self) -> None:
        self._wanted: object = None
        self._since = 0.0
        self._told: object = None
        self._last = -SELDOM

    def due(self, content: object, now: float, *, urgent: bool = False) -> bool:
        """Whether this content is to be told now.  urgent: nobody reaches this node any more."""
        if content != self._wanted:
            self._wanted, self._since = content, now
        if content == self._told:
            return False
        return now >= self._since + SETTLED and (urgent or now >= self._last + SELDOM)

    def told(self, content: object, now: float) -> None:
        """Note that it was told."""
        self._wanted = self._told = content
        self._last = now


class NamesWindow:
    """When names are told: they are gathered for a while that every node makes longer by itself when the cluster has
    much to tell, so that all together stay under a rate.
    """

    def __init__(self) -> None:
        self.length = SHORTEST_WINDOW
        self._opens: float | None = None

    def changed(self, now: float) -> None:
        """Note that there is something to tell."""
        if self._opens is None:
            self._opens = now + self.length

    def due(self, now: float) -> bool:
        return self._opens is not None and now >= self._opens

    @property
    def opens(self) -> float | None:
        """When there is something to tell; None while there is nothing."""
        return self._opens

    def told(self, measured: float, rate: float) -> None:
        """It was told.  measured: changes a second that all nodes together make lately; rate: what they should stay
        under.
        """
        self._opens = None
        self.length = min(max(self.length * max(0.5, measured / rate), SHORTEST_WINDOW), LONGEST_WINDOW)

    def failed(self, now: float) -> None:
        """Note that it could not be told: it is tried once more after a window."""
        self._opens = now + max(self.length, 1.0)
