"""Which steps of a repair are taken now, and when the others are.

Owns: what is paced together, and what waits for what.  Must not know: how a step is taken, or the time: `now` is an
argument, in seconds of any clock that does not run backwards.

A step that is not due yet, because its object is lost again and again (`model.backoff`), waits.  When it would create
a bridge or a device, whatever is on that waits with it.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from overlayd.model.backoff import Backoff
from overlayd.model.objects import Bridge, Device, Element, Fence, Object, Proxy, Step, Veth
from overlayd.model.plan import device_scope

# The key of all members of our nftables sets, which are paced together.
RULESET: Hashable = ("ruleset", "")


class Paced(NamedTuple):
    """now: the steps to take.  again: when the first of the others is due, None when no step has to wait."""

    now: list[Step]
    again: float | None


class Pacing:
    """The pacing of steps, by the objects that they put back."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff

    def split(self, steps: Sequence[Step], now: float) -> Paced:
        """Tell the steps that are due from those that are not.  The order stays."""
        dues = [self._backoff.due(pace_key(step), now, guards=_guards(step)) for step in steps]
        waiting = [(step, due) for step, due in zip(steps, dues, strict=True) if due > now]
        absent = {
            _place(step.want) for step, _ in waiting if step.have is None and isinstance(step.want, Bridge | Device)
        }
        taken = [step for step, due in zip(steps, dues, strict=True) if due <= now and _place(step.want) not in absent]
        return Paced(taken, min((due for _, due in waiting), default=None))

    def taken(self, steps: Iterable[Step], now: float, cost: float) -> None:
        """Note that steps were taken, or tried: until `now`, in `cost` seconds together."""
        for key in {pace_key(step) for step in steps}:
            self._backoff.restored(key, now, cost)


def pace_key(step: Step) -> Hashable:
    """What is paced together: the ruleset as a whole, any other object by itself."""
    thing = step.want or step.have
    assert thing is not None
    return RULESET if isinstance(thing, Element) else thing.key


def _guards(step: Step) -> bool:
    """Whether others are unprotected while the object of a step is away."""
    return isinstance(step.want or step.have, Element | Fence)


def _place(thing: Object | None) -> Hashable:
    """The bridge or device that a thing is, or is on, by key; None for what is on none."""
    if isinstance(thing, Bridge | Veth | Proxy):
        return ("bridge", thing.service)
    return ("device", thing.scope if isinstance(thing, Device) else device_scope(thing))
