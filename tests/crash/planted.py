"""Deliberate bugs, which the harness must find.

Owns: one function a bug, that breaks overlayd in the process that calls it: a daemon of a cell, and nothing else.  Must
not know: how a bug is found.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from overlayd.daemon.change import apply, locks, node
from overlayd.model import attachments
from overlayd.model.rows import Change

_pending: set[asyncio.Task[None]] = set()


def answers_before_it_is_durable() -> None:
    """The journal is written, but nobody waits for it."""
    commit = node.Node._commit

    async def hurried(self: node.Node, change: Change, then: Callable[[], None] | None = None) -> None:
        _pending.add(asyncio.create_task(commit(self, change)))
        if then is not None:
            then()

    node.Node._commit = hurried  # type: ignore[method-assign]


def leaves_half_of_a_failed_request() -> None:
    """What was done before the failure is not undone."""
    apply.Kernel.undo = _nothing  # type: ignore[method-assign]


def keeps_the_address_of_a_detached_container() -> None:
    """It is nobody's, and never given again."""
    attachments.ipam.release = _nothing  # type: ignore[attr-defined]


def believes_that_the_kernel_is_as_it_was() -> None:
    """A start reads the journal and does not look at the kernel."""

    async def trusting(_self: node.Node) -> tuple[list[Any], list[Any]]:
        return [], []

    node.Node.reconcile = trusting  # type: ignore[method-assign]


def lets_everybody_in_at_once() -> None:
    """Requests do not wait for those that came before."""

    @asynccontextmanager
    async def hold(*_: object, **__: object) -> AsyncIterator[None]:
        yield

    locks.ResourceLocks.hold = hold  # type: ignore[assignment]


def _nothing(*_: Any) -> None:
    pass


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        answers_before_it_is_durable,
        leaves_half_of_a_failed_request,
        keeps_the_address_of_a_detached_container,
        believes_that_the_kernel_is_as_it_was,
        lets_everybody_in_at_once,
    )
}
