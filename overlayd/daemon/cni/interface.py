"""A container's interface as it is inside its namespace.

Owns: how it differs from what its ADD made, the words for that, whose the default route is, and making the interface
again.  Must not know: which command asks.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import attachment_locks, service_lock
from overlayd.linux import netns
from overlayd.linux.observe import observe_veth
from overlayd.model.layout import Facts, Layout, veths
from overlayd.model.objects import NetnsPath, Network, Veth
from overlayd.model.rows import Attachment
from overlayd.model.state import State

log = logging.getLogger(__name__)


async def has_default_route(node: Node, row: Attachment, descriptor: int) -> bool:
    """Whether what is for the outside goes through this interface: of several in a namespace one has the route.
    descriptor: of the namespace.  MechanismError: the kernel refuses the look.
    """
    rivals = rivals_of(node.state, row)
    if row.file is None or not row.default_route or not rivals:
        return row.default_route
    return await node.run(_shows_default_route, row, row.file, descriptor)


def _shows_default_route(row: Attachment, file: NetnsPath, descriptor: int) -> bool:
    with netns.lent(file, descriptor):
        seen = observe_veth(row.host_end(), file)
    return seen is not None and _leads_outside(seen.routes)


async def restore(node: Node, row: Attachment, descriptor: int) -> None:
    """Make the links of an attachment again, with the same names, addresses and MACs, where they are not as the ADD
    made them.  descriptor: of the namespace.  MechanismError: one cannot be made.
    """
    file = row.file
    if file is None:
        return
    rivals, found = rivals_of(node.state, row), list[str]()

    def look(_kernel: Kernel, want: Layout) -> Layout:
        wrong = {each.key: differences(each, file, rivals) for each in want.values() if isinstance(each, Veth)}
        for problems in wrong.values():
            found.extend(problems)
        return {key: thing for key, thing in want.items() if not wrong[key]}

    locks = [*attachment_locks(row.handle, file, row.isolation_network), service_lock(row.service)]
    with netns.lent(file, descriptor):
        async with node.comparing(lambda state, facts: iter(legs(state, facts, row)), look, exclusive=locks) as steps:
            failures = await node.repair(steps)
    if found:
        log.warning("%s is made again, for it is added again, and %s", row.handle, "; ".join(found))
    for _, error in failures:
        raise error


def rivals_of(state: State, row: Attachment) -> list[Attachment]:
    """The other attachments in a namespace that ask for its default route as well."""
    return [each for each in state.sharing(row) if each.default_route]


def legs(state: State, facts: Facts, row: Attachment) -> list[Veth]:
    """The links of an attachment as they should be."""
    return [*veths(state, facts, row)]


def differences(want: Veth, file: NetnsPath, rivals: Sequence[Attachment]) -> list[str]:
    """How a link differs, inside its namespace too, which is lent; none when all is well.  rivals: see `rivals_of`.  In
    a worker thread.  MechanismError: the kernel refuses the look.
    """
    seen = observe_veth(want.name, file)
    if seen is not None and _leads_outside(want.routes - seen.routes):
        theirs = (observe_veth(each.host_end(), file) for each in rivals)
        if any(_leads_outside(each.routes) for each in theirs if each is not None):
            want = without_default_route(want)
    return list(_differences(want, seen))


def without_default_route(want: Veth) -> Veth:
    """As a link should be that another one keeps from having it."""
    return replace(want, routes=frozenset(route for route in want.routes if route.prefixlen))


def _leads_outside(routes: Iterable[Network]) -> bool:
    return any(not route.prefixlen for route in routes)


def _differences(want: Veth, seen: Veth | None) -> Iterator[str]:
    """Routes that others have added are theirs."""
    if seen is None:
        yield f"{want.name} is gone"
        return
    if not seen.interface:
        yield f"{want.name}: {seen.fault}"
        return
    if seen.interface != want.interface:
        yield f"{want.interface} is called {seen.interface}"
    if seen.service != want.service:
        yield f"{want.name} is on {seen.bridge or 'no bridge'}, not on {want.bridge}"
    if seen.address.ip.is_unspecified:  # it has none, or several
        yield f"{want.interface} does not have {want.address} as its only address"
    elif seen.address != want.address:
        yield f"{want.interface} has the address {seen.address}, not {want.address}"
    for what, has, should in (
        ("MAC", seen.mac.hex(":"), want.mac.hex(":")),
        ("MTU", seen.mtu, want.mtu),
    ):
        if has != should:
            yield f"{want.interface} has the {what} {has}, not {should}"
    for route in sorted(want.routes - seen.routes, key=str):
        yield f"the route to {route} through {want.interface} is gone"
    for fault in filter(None, seen.fault.split(", ")):
        if not fault.endswith(" gateways"):  # of others' routes
            yield f"{want.name}: {fault}"
