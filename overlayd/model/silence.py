"""When a device that does not answer counts as hung.

Owns: the count of readings without an answer, and how many it takes.  Must not know: how a device is read, or ended.

Readings are counted and not seconds: when the whole machine stood still, and we with it, no reading was lost but the
one that was under way.
"""

# Our own constants, all in readings in a row.
# Each waits five seconds for what takes milliseconds, and once more before the end: half a minute.  A device that is
# merely starved, on a machine with many times more to do than it can, answers one of so many; and so long without being
# told anything costs a tunnel that works nothing.
HUNG = 5
LONGEST = 32 * HUNG  # what hangs again and again is ended every quarter of an hour at most
CALM = 300  # so many answers, five minutes, and what was is forgotten


class Silence:
    """What is known of one device's answering."""

    def __init__(self) -> None:
        self.unheard = 0  # readings without an answer, since the last one with
        self.patience = HUNG
        self._answers = 0

    def answered(self) -> bool:
        """A reading had an answer.  Returns whether the one before it had none."""
        was_silent, self.unheard = self.unheard > 0, 0
        self._answers += 1
        if self._answers >= CALM:
            self.patience = HUNG
        return was_silent

    def unanswered(self) -> bool:
        """A reading had no answer.  Returns whether the device counts as hung, which takes twice as long the next
        time.
        """
        self._answers = 0
        self.unheard += 1
        if self.unheard < self.patience:
            return False
        self.unheard, self.patience = 0, min(2 * self.patience, LONGEST)
        return True
