"""Doing the steps of a plan, in a worker thread, and undoing them when one fails.

Owns: which mechanism does which step, and the order of undo.  Must not know: why a step is wanted.

Every function here blocks; `daemon.change.node` calls `Kernel.apply` from a thread, several at a time for different
resources.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from errno import ENOENT
from itertools import chain, groupby

from overlayd import fault
from overlayd.daemon.change.forgetter import Forgetter
from overlayd.daemon.change.reaper import Reaper
from overlayd.errors import MechanismError
from overlayd.linux import bridge, device, fence, forwarding, link, veth
from overlayd.linux.nft import Nft
from overlayd.linux.wireguard.backend import Backend
from overlayd.model import set_members
from overlayd.model.connections import Rules
from overlayd.model.layout import Layout
from overlayd.model.objects import (
    Address,
    Alias,
    Bridge,
    Device,
    DevicePeer,
    Element,
    Fence,
    Object,
    Proxy,
    Route,
    Step,
    Veth,
)

log = logging.getLogger(__name__)


Failure = tuple[Step, MechanismError]

_RENAMED = (Device, Bridge)  # the links that change their names
_WAYS = (Route, Fence)  # a peer may have a thousand of them


class HalfDone(Exception):
    """Steps were not all done.  error: why.  done: those that were, or were perhaps, in their order."""

    def __init__(self, error: BaseException, done: Sequence[Step]) -> None:
        super().__init__(f"{error}, after {len(done)} steps")
        self.error = error
        self.done = done


class Kernel:
    """The mechanisms of this host.  backend: None on a node without WireGuard, which carries no devices."""

    def __init__(self, backend: Backend | None, nft: Nft) -> None:
        self.backend = backend
        self.nft = nft
        self._reaper = Reaper()
        self._forgetter = Forgetter()
        self._rules = False  # our tables are there, as far as is known
        self._members: dict[Hashable, Element] = {}  # that our sets should have

    def apply(self, steps: Sequence[Step]) -> None:
        """Do the steps in order.  HalfDone: one failed, with what there is to `undo`."""
        done: list[Step] = []
        for batch in _batches(steps):
            try:
                self._try(batch, "apply")
            except Exception as error:
                # What creates one object cleans up by itself; anything else may have failed half-way.
                if batch[0].have is not None or len(batch) > 1 or isinstance(batch[0].want, DevicePeer | Element):
                    done += batch
                raise HalfDone(error, done) from error
            done += batch

    def apply_together(self, changes: Sequence[Sequence[Step]]) -> list[Exception | None]:
        """As `apply` of each, but in one visit to the kernel: changes that all make veths and their set members, or all
        remove some.  Returns what each would raise.
        """
        if len(changes) > 1:
            try:
                return self._create_together(changes) if changes[0][0].have is None else self._delete_together(changes)
            except (HalfDone, OSError) as error:
                log.warning("%d changes are refused together, and tried one by one: %s", len(changes), error)
        return one_by_one(self.apply, changes)

    def _create_together(self, changes: Sequence[Sequence[Step]]) -> list[Exception | None]:
        self.apply([step for change in changes for step in change if isinstance(step.want, Element)])
        wanted = [[want for step in change if isinstance(want := step.want, Veth)] for change in changes]
        for each in chain.from_iterable(wanted):
            fault.point("apply:create:veth")
            self._forgetter.wait_for(each.address.ip)
        refusals = iter(veth.create_all([*chain.from_iterable(wanted)]))
        outcomes: list[Exception | None] = []
        for change, mine in zip(changes, wanted, strict=True):
            refused = {each.name: error for each in mine if (error := next(refusals)) is not None}
            done = [step for step in change if not isinstance(step.want, Veth) or step.want.name not in refused]
            outcomes.append(HalfDone(next(iter(refused.values())), done) if refused else None)
        return outcomes

    def _delete_together(self, changes: Sequence[Sequence[Step]]) -> list[Exception | None]:
        self.apply([step for change in changes for step in change if isinstance(step.have, Veth)])
        self.apply([step for change in changes for step in change if isinstance(step.have, Element)])
        return [None] * len(changes)

    def close(self) -> None:
        """Finish what goes on behind the answers, and let go of the kernel."""
        self._reaper.close()
        self._forgetter.close()
        self.nft.close()

    def repair(self, steps: Sequence[Step], purpose: str = "repair") -> list[Failure]:
        """Do the steps in order, each for itself.  Returns those that could not be done, with their errors."""
        failed: list[Failure] = []
        for batch in _batches(steps):
            try:
                self._try(batch, purpose)
            except MechanismError as error:
                if len(batch) > 1 and isinstance(batch[0].want or batch[0].have, _WAYS):
                    failed += chain.from_iterable(self.repair([step], purpose) for step in batch)
                else:
                    failed += [(step, error) for step in batch]
        return failed

    def forget(self, addresses: Iterable[Address]) -> None:
        """Drop the connections of addresses that lost their holder, behind the answer: the next one starts afresh."""
        self._forgetter.forget(addresses)

    def undo(self, done: Sequence[Step]) -> None:
        """Take back what `apply` has done."""
        for _, error in self.repair([step.inverse() for step in reversed(done)], "undo"):
            log.error("undo failed, the next audit will repair it: %s", error)
        for step in done:
            if isinstance(step.have, _RENAMED) and isinstance(step.want, _RENAMED):
                try:
                    link.forget_name(step.want.name)
                except MechanismError as error:
                    log.error("undo left an alternative name: %s", error)

    def _try(self, batch: list[Step], purpose: str) -> None:
        """Do a batch.  MechanismError is the only error."""
        try:
            if fault.ARMED:
                fault.point(f"{purpose}:{_name(batch[0])}")
            self._do(batch)
        except OSError as error:
            raise MechanismError(purpose, _name(batch[0]), error.errno or 0) from error

    def _do(self, batch: list[Step]) -> None:
        if batch[0].along:
            return
        match batch[0].want or batch[0].have:
            case DevicePeer() as peer:
                self._device_backend(peer.device).set_peers(peer.device, batch)
            case Element():
                self._change_members(batch)
            case Veth() if batch[0].want is None:
                leaving = (step.have for step in batch if isinstance(step.have, Veth))
                self._reaper.delete({each.name: each.netns for each in leaving})
            case Route() | Fence():
                _do_ways(batch)
            case _:
                for step in batch:
                    self._do_one(step.have, step.want)

    def _do_one(self, have: Object | None, want: Object | None) -> None:
        match have, want:
            case None, Device():
                backend = self._device_backend(want.name)
                backend.create(want)
                try:
                    device.configure(want)
                except BaseException:
                    backend.delete(want.name)
                    raise
            case Device(), Device():
                backend = self._device_backend(want.name)
                backend.add_name(have.name, want.name)
                link.rename(have.name, want.name)
                backend.configure(have, want)
                device.change(have, want)
            case Device(), None:
                self._device_backend(have.name).delete(have.name)
            case None, Bridge():
                bridge.create(want)
            case Bridge(), Bridge():
                bridge.change(have, want)
            case Bridge(), None:
                bridge.delete(have.name)
            case None, Veth():
                self._forgetter.wait_for(want.address.ip)
                veth.create(want)
            case Veth(), Veth():
                veth.change(have, want)
            case _:
                self._do_entry(have, want)

    def _do_entry(self, have: Object | None, want: Object | None) -> None:
        """What is no link: an address, a neighbour."""
        match have, want:
            case None, Proxy():
                bridge.create_proxy(want)
            case Proxy(), Proxy():
                bridge.delete_proxy(have)
                bridge.create_proxy(want)
            case Proxy(), None:
                bridge.delete_proxy(have)
            case None, Alias():
                self._forgetter.wait_for(want.address)
                device.create_alias(want)
            case Alias(), None:
                device.delete_alias(have)
            case _:
                raise AssertionError(f"no mechanism for {have} -> {want}")

    def install(self, wanted: Iterable[Element]) -> Layout:
        """Put our rules in place with these members, if any are wanted.  Returns what the sets have then."""
        self._members = {element.key: element for element in wanted}
        if self._members:
            self._put_rules_back()
        closed, _ = set_members.remembered_host(self._members.values())
        if closed:
            try:
                forwarding.enable()
            except MechanismError as error:  # no reason not to start; the sentinel tries again
                log.error("start: %s", error)
        return dict(self.nft.observe())

    def members(self) -> Layout:
        """The members of our nftables sets.  None when our tables are not as we made them: then the next element brings
        them back.
        """
        self._rules = self.nft.intact()
        return dict(self.nft.observe()) if self._rules else {}

    def _change_members(self, batch: list[Step]) -> None:
        """Our tables come with the first element, so that a daemon that was asked for nothing leaves nothing.

        The host forwards for us alone as long as a member says so, which keeps it from being a router between its own
        networks: a refused first setup leaves it as it was.
        """
        opened, _ = set_members.remembered_host(each.want for each in batch if each.have is None)
        closed, _ = set_members.remembered_host(each.have for each in batch if each.want is None)
        forwarding.close(closed)
        try:
            if opened:
                forwarding.enable()
            self._write_members(batch)
        except BaseException:
            forwarding.close(opened)
            raise

    def _write_members(self, batch: list[Step]) -> None:
        for step in batch:
            if isinstance(step.have, Element):
                self._members.pop(step.have.key, None)
            if isinstance(step.want, Element):
                self._members[step.want.key] = step.want
        if not self._rules:
            self._put_rules_back()
        try:
            self.nft.apply(batch)
        except MechanismError as error:
            if error.errno != ENOENT:
                raise
            self._put_rules_back()  # somebody removed a table just now
            self.nft.apply(batch)

    def _put_rules_back(self) -> None:
        """Our tables with all members.  What began without them is judged."""
        members = list(self._members.values())
        self.nft.ensure(members)
        self._rules = True
        self._forgetter.forget_what_breaks(Rules(members))

    def _device_backend(self, device: str) -> Backend:
        if self.backend is None:
            raise MechanismError("configure WireGuard", device, 0, "this node has no WireGuard backend")
        return self.backend


def one_by_one(apply: Callable[[Sequence[Step]], None], changes: Sequence[Sequence[Step]]) -> list[Exception | None]:
    """Apply each change by itself.  Returns what each has raised."""
    outcomes: list[Exception | None] = []
    for change in changes:
        try:
            apply(change)
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)
    return outcomes


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Runs of neighbouring steps that one call does: peers of one device, set elements, ways that come or go, removals
    of veths.
    """
    for _, run in groupby(steps, key=_batch_key):
        batch = list(run)
        first, thing = batch[0], batch[0].want or batch[0].have
        if isinstance(thing, DevicePeer | Element) or _is_veth_removal(first) or _is_way_alone(first):
            yield batch
        else:
            yield from ([step] for step in batch)


def _batch_key(step: Step) -> tuple[type[object], str, bool, bool, bool]:
    thing = step.want or step.have
    device = thing.device if isinstance(thing, DevicePeer | Route) else ""
    comes, goes = (step.have is None, step.want is None) if isinstance(thing, Route | Fence | Veth) else (False, False)
    return (type(thing), device, comes, goes, step.along)


def _is_way_alone(step: Step) -> bool:
    """Whether a way comes or goes, and is not changed."""
    return isinstance(step.want or step.have, _WAYS) and (step.have is None or step.want is None)


def _do_ways(batch: Sequence[Step]) -> None:
    """Ways that come, of one device, or go; one that changes."""
    match batch[0].have, batch[0].want:
        case None, Route():
            device.create_routes([want for step in batch if isinstance(want := step.want, Route)])
        case Route(), None:
            device.delete_routes(have for step in batch if isinstance(have := step.have, Route))
        case None, Fence():
            fence.create(want for step in batch if isinstance(want := step.want, Fence))
        case Fence(), None:
            fence.delete(have for step in batch if isinstance(have := step.have, Fence))
        case Route() as have, Route() as want:
            device.change_route(have, want)
        case have, want:
            raise AssertionError(f"no mechanism for {have} -> {want}")


def _is_veth_removal(step: Step) -> bool:
    return step.want is None and isinstance(step.have, Veth)


def _name(step: Step) -> str:
    verb = "create" if step.have is None else "delete" if step.want is None else "change"
    return f"{verb}:{type(step.want or step.have).__name__.lower()}"
