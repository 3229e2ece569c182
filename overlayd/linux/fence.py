"""Unreachable routes: where packets for the overlay go when none of our links takes them.

Owns: the requests that make and delete one.  Must not know: around what there is a fence, or why.

Every function acts in the network namespace that the calling thread is in, can be repeated, and raises MechanismError
with what the kernel refused.
"""

import errno
from collections.abc import Iterable

from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import unreachable_route_body
from overlayd.model.objects import FENCE_METRIC, ROUTE_PROTOCOL, Fence
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL


def create(fences: Iterable[Fence]) -> None:
    """Add the routes, unless they are there; others to the same destinations have a lower metric, and are used."""
    _transact("add fence", fences, rt.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, errno.EEXIST)


def delete(fences: Iterable[Fence]) -> None:
    """Delete those of the routes that are there and ours."""
    _transact("delete fence", fences, rt.RTM_DELROUTE, 0, errno.ESRCH)


def _transact(operation: str, fences: Iterable[Fence], kind: int, flags: int, tolerated: int) -> None:
    asked = []
    for fence in fences:
        body = unreachable_route_body(fence.destination, ROUTE_PROTOCOL, FENCE_METRIC)
        asked.append(Request(operation, str(fence.destination), kind, flags, body, (tolerated,)))
    with Netlink() as netlink:
        netlink.transact(asked)
