"""CHECK: what of a container's interface is not as the ADD made it.

Owns: what is looked at, and the words.  Must not know: who asks.  Changes nothing.
"""

from collections.abc import Iterator
from dataclasses import replace

from overlayd.daemon.change.inspect import present
from overlayd.daemon.change.node import Node
from overlayd.linux import netns
from overlayd.linux.observe import observe_veth
from overlayd.model import drift
from overlayd.model.layout import Layout, layout
from overlayd.model.objects import Element, NetnsPath, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Overlay, Service


async def differences(node: Node, handle: str, descriptor: int | None) -> list[str]:
    """One line each; none when all is well.  descriptor: of the namespace.  MechanismError: the kernel refuses."""
    row = node.state.get(Attachment, handle)
    if row is None or row.file is None:
        return [f"{handle} is not attached"]
    if descriptor is None:
        return [f"{handle}: its namespace cannot be seen"]
    if netns.identify_file(descriptor, row.file.path).identity != row.file.identity:
        return [f"{handle} is attached in another network namespace"]
    own = layout(node.state, node.facts, {row.id})
    if _has_another_way(node, row):
        own = {key: _without_default(thing) if isinstance(thing, Veth) else thing for key, thing in own.items()}
    around = layout(node.state, node.facts, {(Overlay.table, ""), (Service.table, row.service)})
    return await node.run(_look, node, row.file, descriptor, own, around)


def _has_another_way(node: Node, row: Attachment) -> bool:
    """Whether another interface of the namespace may have its default route: the first one has it."""
    return any(
        other is not row
        and other.default_route
        and other.file is not None
        and row.file is not None
        and other.file.identity == row.file.identity
        for other in node.state.table(Attachment).values()
    )


def _without_default(veth: Veth) -> Veth:
    return replace(veth, routes=frozenset(route for route in veth.routes if route.prefixlen))


def _look(node: Node, file: NetnsPath, descriptor: int, own: Layout, around: Layout) -> list[str]:
    """In a worker thread."""
    found: list[str] = []
    with netns.lent(file, descriptor):
        for thing in own.values():
            if isinstance(thing, Veth):
                found += _veth(thing, observe_veth(thing.name, file))
    steps = plan(present(node.kernel, around), around)
    if not node.kernel.nft.intact():
        found.append("the packet filter is not overlayd's own")
    else:
        members = node.kernel.members()
        wanted = {key: thing for key, thing in own.items() if isinstance(thing, Element)}
        steps += plan({key: members[key] for key in wanted if key in members}, wanted)
    return [*found, *(f"{object} {problem}" for object, problem in drift.describe(steps))]


def _veth(want: Veth, seen: Veth | None) -> Iterator[str]:
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
