"""Unreachable routes: where packets for the overlay go when none of our links takes them.

Owns: the requests that make and delete one.  Must not know: around what there is a fence, or why.

Every function acts in the network namespace that the calling thread is in, can be repeated, and raises MechanismError
with what the kernel refused.
"""

import errno

from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import FENCE_METRIC, ROUTE_PROTOCOL, Fence
from overlayd.proto.netlink import NLM_F_CREATE, NLM_F_EXCL


def create(fence: Fence) -> None:
    """Add the route, unless it is there; every other route to the same destination has a lower metric, and is used."""
    _request("add fence", fence, rt.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, errno.EEXIST)


def delete(fence: Fence) -> None:
    """Delete the route if it is there and ours."""
    _request("delete fence", fence, rt.RTM_DELROUTE, 0, errno.ESRCH)


def _request(operation: str, fence: Fence, kind: int, flags: int, tolerated: int) -> None:
    body = rt.unreachable_route_body(fence.destination, ROUTE_PROTOCOL, FENCE_METRIC)
    with Netlink() as netlink:
        netlink.transact([Request(operation, str(fence.destination), kind, flags, body, (tolerated,))])
