"""A simulated node: the daemon's cluster room on a state and a journal, without a kernel.

Owns: what stands where the kernel, NAT traversal and the socket are.  Must not know: faults, or what is checked
(`world`), which is told of every change.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address, ip_network
from typing import Any

from overlayd import keys, wire
from overlayd.linux.egress import Egress
from overlayd.linux.surroundings import host_networks
from overlayd.model import overlay
from overlayd.model.layout import Facts
from overlayd.model.rows import Change, Node, Row, RowId, decode, encode
from overlayd.model.state import Draft, State

current: ContextVar[str] = ContextVar("node", default="")


class Crash(BaseException):
    """The process of the node in `current` ends here."""


class Journal:
    """What survives a crash."""

    def __init__(self) -> None:
        self.rows: dict[RowId, bytes] = {}

    def commit(self, change: Change) -> None:
        for id, row in change.items():
            if row is None:
                self.rows.pop(id, None)
            else:
                self.rows[id] = encode(row)


class NoNat:
    """Nothing is found out of NATs, and nobody is cut off."""

    is_cut_off = False

    def candidates(self) -> list[Any]:
        return []


class SimNode:
    """As `daemon.change.node.Node`, as far as the cluster room uses it.  changed: is told of every change, with the
    rows as they were.  forgetful: whether a change is left out of the journal, a planted bug.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        changed: Callable[[Change, Change], None],
        forgetful: Callable[[Change], bool],
    ) -> None:
        self.name = name
        self.journal = journal
        self.facts = Facts(mtu=1420)
        self.state = State(decode(id, data) for id, data in journal.rows.items())
        self._changed = changed
        self._forgetful = forgetful
        self._observers: list[Callable[[Change], None]] = []
        self._lock = asyncio.Lock()
        if self.state.get(Node) is None:
            row = Node(private_key=keys.generate())
            self.state.apply({row.id: row})
            journal.commit({row.id: row})

    async def change(self, decide: Callable[[Draft], Any], **_: object) -> Any:
        async with self._lock:
            await asyncio.sleep(0.002)
            draft = Draft(self.state)
            answer = decide(draft)
            rows: dict[RowId, Row | None] = draft.rows
            inverse = self.state.apply(rows)
            if not self._forgetful(rows):
                self.journal.commit(rows)
            self._changed(rows, inverse)
        for observer in self._observers:
            observer(rows)
        return answer

    async def change_together(self, decide: Callable[[Draft], Any], exclusive: Collection[str]) -> Any:
        return await self.change(decide)

    @contextmanager
    def subscribe(self, observer: Callable[[Change], None]) -> Iterator[None]:
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    async def run(self, work: Callable[..., Any], *arguments: object) -> Any:
        """The work that is asked for is to find the way out of this host, and its networks: it has none of its own."""
        if work is host_networks:
            return ()
        return Egress("eth0", 1500, ip_address(f"192.0.2.{sum(self.name.encode()) % 250 + 1}"), False)

    async def answer(self, request: wire.Request) -> wire.Response:
        """The setup of the overlay, as the daemon's handler does it."""
        assert isinstance(request, wire.SetupGlobalOverlay)
        assert request.slice_cidr is not None
        slice = ip_network(request.slice_cidr)
        await self.change(
            lambda draft: overlay.setup_global(
                draft,
                deployment=request.deployment,
                instance_id=request.instance_id,
                cluster=ip_network(request.cluster_cidr),
                slice=slice,
                wg_port=request.wg_port,
                nat=None,
            )
        )
        return wire.BridgeName("zl-sim")
