"""CHECK: what of a container's interface is not as the ADD made it.

Owns: what is looked at.  Must not know: who asks.  Changes nothing.
"""

from overlayd.daemon.change.kernel_layout import present
from overlayd.daemon.change.node import Node
from overlayd.daemon.cni import interface
from overlayd.linux import netns
from overlayd.model import drift
from overlayd.model.layout import Layout, layout
from overlayd.model.objects import Element, NetnsPath, Step, Veth
from overlayd.model.plan import plan
from overlayd.model.rows import Attachment, Overlay, Service


async def differences(node: Node, handle: str, descriptor: int | None, *, default_route: bool) -> list[str]:
    """One line each; none when all is well.  descriptor: of the namespace.  default_route: the ADD told that it goes
    through this interface, if any does.  MechanismError: the kernel refuses.
    """
    row = node.state.get(Attachment, handle)
    if row is None or row.file is None:
        return [f"{handle} is not attached"]
    if descriptor is None:
        return [f"{handle}: its namespace cannot be seen"]
    if netns.identify_file(descriptor, row.file.path).identity != row.file.identity:
        return [f"{handle} is attached in another network namespace"]
    own = layout(node.state, node.facts, {row.id})
    if not default_route:
        own = {
            key: interface.without_default_route(each) if isinstance(each, Veth) else each for key, each in own.items()
        }
    around = layout(node.state, node.facts, {(Overlay.table, ""), (Service.table, row.service)})
    rivals = interface.rivals_of(node.state, row)

    def look(file: NetnsPath) -> list[str]:
        """In a worker thread."""
        with netns.lent(file, descriptor):
            legs = [thing for thing in own.values() if isinstance(thing, Veth)]
            inside = [line for leg in legs for line in interface.differences(leg, file, rivals)]
        return [*inside, *_around(node, own, around)]

    return await node.run(look, row.file)


def _around(node: Node, own: Layout, around: Layout) -> list[str]:
    """What the container's packets need beside its interface.  In a worker thread."""
    steps = plan(present(node.kernel, around), around)
    if not node.kernel.nft.intact():
        return ["the packet filter is not overlayd's own", *_told(steps)]
    members = node.kernel.members()
    wanted = {key: thing for key, thing in own.items() if isinstance(thing, Element)}
    steps += plan({key: members[key] for key in wanted if key in members}, wanted)
    return _told(steps)


def _told(steps: list[Step]) -> list[str]:
    return [f"{object} {problem}" for object, problem in drift.describe(steps)]
