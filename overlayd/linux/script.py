"""Scripts: what is to be done to links of the host and inside a container, in a row.

Owns: the operations that scripts are made of, and what their refusals are called.  Must not know: what a script is for;
how its system calls are done (`syscalls`).

A script does what the functions it is named after do (`Netlink.transact`, `link.await_ready` and others), and its
errors are theirs.  But while it runs, other threads do as well; and several scripts share one visit to the kernel.
"""

import os
import socket
from collections.abc import Callable, Sequence
from errno import ENOENT, ETIMEDOUT
from functools import cache, partial

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux import netns, syscalls, sysctl
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import IGNORED, UNWRITABLE, look_up_request, solicited_group
from overlayd.linux.netlink import Netlink, Request
from overlayd.linux.route_messages import table_filter
from overlayd.linux.syscalls import LATER
from overlayd.model.objects import Interface
from overlayd.proto.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, attribute, message, refusal

# What stands in an acknowledgement before the kernel's own explanation.
_EXPLANATION = 20

_LINK, _ADDRESS = 16, 8  # bytes of ifinfomsg, ifaddrmsg
_UP = attribute(rt.IFLA_OPERSTATE, bytes([rt.IF_OPER_UP]))[:5]


class Script:
    """Operations in a row.  Between `enter` and `leave` they act inside a namespace, else on the host.

    `run` does them; then `finish` tells how that ended.
    """

    def __init__(self) -> None:
        self._calls = syscalls.Sequence()
        self._refusals: list[Callable[[int], MechanismError]] = []  # of each operation, from an errno
        self._requests: dict[int, Sequence[Request]] = {}  # of the operations that are netlink messages

    @property
    def calls(self) -> syscalls.Sequence:
        return self._calls

    @property
    def stopped(self) -> int | None:
        """At which operation it stopped; None when all are done."""
        return self._calls.stopped

    @property
    def length(self) -> int:
        """How many operations it has: the number of the next one."""
        return len(self._refusals)

    def point(self, name: str) -> None:
        """Pass a fault point."""
        if fault.ARMED:
            self._calls.point(name)
            self._refusals.append(partial(MechanismError, "pass", name))

    def transact(self, requests: Sequence[Request], tolerated: tuple[int, ...] = ()) -> None:
        """Send requests; one whose index is LATER acts on the link that was found last."""
        self.point(f"netlink:{requests[0].operation}")
        self._requests[self.length] = requests
        self._calls.send(_messages(requests, NLM_F_ACK), len(requests), tolerated)
        self._refusals.append(partial(MechanismError, requests[0].operation, requests[0].object))

    def find(self, name: str) -> None:
        """Find a link, for the requests behind this."""
        self._calls.find(name.encode())
        self._refusals.append(partial(MechanismError, "find link", name))

    def set_parameter(
        self, name: str, value: str, tolerated: tuple[int, ...] = (), *, unless_there: bool = False
    ) -> None:
        """Set a kernel parameter.  unless_there: a read-only /proc/sys with the right value is fine."""
        self.point("sysctl")
        self._calls.write(sysctl.path(name).encode() + b"\0", value.encode(), tolerated, unless_there=unless_there)
        self._refusals.append(partial(sysctl.refused, name, value))

    def ignore_routers(self, name: str) -> None:
        """As `link.ignore_routers`, of the link of that name."""
        for parameter in IGNORED:
            self.set_parameter(f"ipv6/conf/{name}/{parameter}", "0", UNWRITABLE)

    def enter(self, descriptor: int) -> None:
        """Act inside the namespace of `descriptor`, which has to stay open until the script is finished."""
        self._calls.enter(descriptor)
        self._refusals.append(netns.no_way_in)

    def leave(self) -> None:
        """Act on the host again."""
        self._calls.leave()
        self._refusals.append(partial(MechanismError, "leave", "network namespace"))

    def require_no_routes(self, table: int) -> None:
        """Stop if there are unicast routes in the table."""
        # ENOENT: a table that nobody has used.
        self._calls.require_empty(bytearray(_dump_of_table(table)), (ENOENT,))
        self._refusals.append(partial(MechanismError, "list routes", "all"))

    def await_ready(self, *names: str) -> None:
        """As `link.await_ready`."""
        requests = [look_up_request(name) for name in names]
        self._requests[self.length] = requests
        self._calls.await_attribute(_messages(requests, NLM_F_ACK), len(names), _LINK, _UP, len(names))
        self._refusals.append(partial(_not_ready, names[0], "it does not come up"))

    def await_answering(self, address: Interface) -> None:
        """Wait until the link that was found last answers for a new IPv6 address.

        A kernel worker joins the group in which neighbours ask for the address (its solicited-node group) some time
        after the address was added; whoever asks before asks again only after a second.
        """
        body = rt.address_filter(LATER, socket.AF_INET6)
        request = Request("list groups", "all", rt.RTM_GETMULTICAST, NLM_F_DUMP, body)
        group = attribute(rt.IFA_MULTICAST, solicited_group(address).packed)
        self._calls.await_attribute(_messages([request], 0), 1, _ADDRESS, group, 1)
        self._refusals.append(partial(_not_ready, str(address), "the link does not answer for it"))

    def finish(self) -> bool:
        """Whether all is done; False when a `require_no_routes` has stopped it.  Raises what was refused."""
        at = self.stopped
        if at is None:
            return True
        failed, number, flags, body, raised = self._calls.refusal
        if raised is not None:
            raise raised
        if not number:
            return False
        if at in self._requests and body:
            request = self._requests[at][failed]
            raise MechanismError(request.operation, request.object, *refusal(flags, memoryview(body), _EXPLANATION))
        raise self._refusals[at](number)

    def go_on(self, at: int) -> None:
        """Let the next run begin with that operation."""
        self._calls.go_on(at)


def run(host: Netlink, scripts: Sequence[Script]) -> None:
    """Do the scripts, one after the other: a refusal ends the script that it is of."""
    home = netns.open_own()
    try:
        syscalls.run(host.fileno(), home, [script.calls for script in scripts])
    finally:
        os.close(home)


@cache
def _dump_of_table(table: int) -> bytes:
    return message(rt.RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 0, table_filter(table))


def _messages(requests: Sequence[Request], flags: int) -> bytearray:
    found = (message(each.type, each.flags | NLM_F_REQUEST | flags, 0, each.body) for each in requests)
    return bytearray(b"".join(found))


def _not_ready(name: str, complaint: str, number: int) -> MechanismError:
    return MechanismError("configure", name, number, complaint if number == ETIMEDOUT else "")
