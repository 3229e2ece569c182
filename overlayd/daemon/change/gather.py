"""Many small changes of one kind become one: those who wait for the same resources are gathered into a group.

Owns: who waits in which group, and what became of each.  Must not know: how a group is carried out
(`daemon.change.node`).

The first of a group leads it: it queues for the resources, and carries out all that have joined when its turn comes.  A
group takes nobody more once another request has queued behind it, so that gathering lets nobody overtake.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from overlayd.model.state import Draft

T = TypeVar("T")


class Decision(Generic[T]):
    """One decision, and what became of it: `outcome` is what it returned once the change has taken effect."""

    __slots__ = ("_answer", "_decide", "_refusal", "outcome")

    def __init__(self, decide: Callable[[Draft], T]) -> None:
        self._decide = decide
        self._answer: T | None = None
        self._refusal: Exception | None = None
        self.outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def take(self, draft: Draft) -> bool:
        """Put the decision's rows into the draft; False when it refuses, and the draft is not to be used.

        May be done again, on another state, when what followed was undone.
        """
        self._refusal = None
        try:
            self._answer = self._decide(draft)
        except Exception as error:  # it is for who asked, and for nobody else of the group
            self._refusal = error
        return self._refusal is None

    def settle(self) -> None:
        """Tell who asked what became of it: what was taken has taken effect."""
        if self._refusal is not None:
            self.outcome.set_exception(self._refusal)
        else:
            self.outcome.set_result(self._answer)  # type: ignore[arg-type]

    def fail(self, error: Exception) -> None:
        """Tell who asked that it came to nothing."""
        self.outcome.set_exception(error)


class Group:
    """Decisions that are carried out together.  resources: what they need for themselves."""

    def __init__(self, resources: tuple[str, ...]) -> None:
        self.resources = resources
        self.decisions: list[Decision[object]] = []
        self.size = 0  # of all of them


class Gathering:
    """The groups that still take members.  largest: how many of size 1 a group takes."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._open: dict[tuple[str, ...], Group] = {}

    def join(self, resources: Collection[str], decision: Decision[T], size: int = 1) -> Group | None:
        """Join the group that waits for `resources`.  Returns a new group when there is none: its first member leads
        it, and has to queue for the resources before anybody else can.  size: how many others it is as much work as.
        """
        names = tuple(resources)
        group = self._open.get(names)
        leads = group is None or group.size + size > self._largest
        if group is None or leads:
            self.queued_behind(names, everything=False)
            group = self._open[names] = Group(names)
        group.decisions.append(decision)  # type: ignore[arg-type]
        group.size += size
        return group if leads else None

    def close(self, group: Group) -> None:
        """The turn of a group has come: it takes nobody more."""
        if self._open.get(group.resources) is group:
            del self._open[group.resources]

    def queued_behind(self, names: Collection[str], everything: bool) -> None:
        """Somebody else queues for these resources, or for all there are: groups that need one of them are closed."""
        for resources in list(self._open):
            if everything or not set(names).isdisjoint(resources):
                del self._open[resources]
