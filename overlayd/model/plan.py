"""From what is there and what should be there to the steps between.

Owns: the order of steps.  Must not know: how a step is done.

The same plan serves a request (have: the state before it), a start (have: what the kernel shows) and an audit.
"""

from collections.abc import Hashable, Mapping

from overlayd.model.objects import (
    GLOBAL,
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

# What must be there before what: the fence before everything that it is around; elements before veths, so that a
# container is filtered from its first packet on; peers and routes after the devices they are on, proxies after the
# routes they stand for.  Removal goes the other way round.
ORDER: dict[type[Object], int] = {
    kind: rank for rank, kind in enumerate((Fence, Device, Bridge, DevicePeer, Route, Proxy, Alias, Element, Veth))
}


def plan(have: Mapping[Hashable, Object], want: Mapping[Hashable, Object]) -> list[Step]:
    """The steps from `have` to `want`: removals first (they free names, addresses and ports), then creations and
    changes.

    A removed device takes its peers, routes and aliases along: their steps say so.  Where the node's address changes
    its prefix on the device, because a bridge has or had it with one, the bridge is there meanwhile, and so is the
    route in place of the prefix: the node never is without.
    """
    removed = [Step(thing, None) for key, thing in have.items() if key not in want]
    dead = {step.have.scope for step in removed if isinstance(step.have, Device)}
    removed = [Step(step.have, None, along=device_scope(step.have) in dead) for step in removed]
    changed = [
        Step(there, thing) for key, thing in want.items() if (there := have.get(key)) is not thing and there != thing
    ]
    removed.sort(key=_rank, reverse=True)
    changed.sort(key=_rank)
    swaps = [step for step in changed if _swaps_prefix(step)]
    if not swaps:
        return removed + changed
    before = [step for step in changed if isinstance(step.want, Bridge)]
    changed = [*before, *(step for step in changed if step not in before)]
    last = [step for step in removed if isinstance(step.have, Bridge) or _is_stand_in(step.have)]
    return [*(step for step in removed if step not in last), *changed, *last]


def _swaps_prefix(step: Step) -> bool:
    """Whether a device keeps its addresses, with other prefixes."""
    have, want = step.have, step.want
    if not isinstance(have, Device) or not isinstance(want, Device) or have.addresses == want.addresses:
        return False
    return {address.ip for address in have.addresses} == {address.ip for address in want.addresses}


def _is_stand_in(thing: Object | None) -> bool:
    return isinstance(thing, Route) and thing.source is not None


def _rank(step: Step) -> int:
    thing = step.want or step.have
    return ORDER[type(thing)] if thing is not None else 0


def device_scope(thing: Object | None) -> str | None:
    """The scope of the device that a thing is on and goes with, None when it is on none."""
    if isinstance(thing, DevicePeer | Route):
        return thing.scope
    return GLOBAL if isinstance(thing, Alias) else None
