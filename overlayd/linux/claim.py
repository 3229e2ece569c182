"""The claim of one daemon on a network namespace.

Owns: the log group that is the claim, and who holds it.  Must not know: what is done with the namespace.

The claim is a binding to a group of nfnetlink_log (linux/netfilter/nfnetlink_log.h) that no rule logs to.  A group has
one socket in a network namespace, whichever container that is in; only who has CAP_NET_ADMIN there can bind one; and
the kernel lets go of it when the socket is closed, however its process ends.  An abstract Unix socket would not do: any
user of the host can bind its name first.  Nor a lock file, which a daemon in another container does not see, nor a
table of nftables that its socket owns: libnftables 1.0.6 damages its heap when it lists one.
"""

import socket
import struct
from contextlib import suppress
from errno import EBUSY, EPERM
from pathlib import Path

from overlayd.errors import MechanismError, OverlaydError
from overlayd.linux import capability, process
from overlayd.linux.netlink import NETLINK_NETFILTER, connected, receive
from overlayd.proto.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute, message, refusal

GROUP = 0x6F76  # our own: "ov"

# linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_log.h
_CONFIGURE = 4 << 8 | 1
_COMMAND, _BIND = 1, 1
_NFGENMSG = struct.Struct(">BBH")  # family, version, resource id: the group
_GROUPS = Path("/proc/net/netfilter/nfnetlink_log")  # group, the port of its socket, and counters


class NamespaceInUse(OverlaydError):
    """Another daemon holds the namespace."""


def claim_namespace() -> socket.socket:
    """Claim the network namespace of this process for as long as the returned socket is open.

    Raises NamespaceInUse, which names the holder; MechanismError, where the kernel has no nfnetlink_log for one.
    """
    netlink = connected(NETLINK_NETFILTER)
    try:
        body = _NFGENMSG.pack(0, 0, GROUP) + attribute(_COMMAND, bytes((_BIND,)))
        netlink.send(message(_CONFIGURE, NLM_F_REQUEST | NLM_F_ACK, 1, body))
        number = next(refusal(each.flags, each.body, 20)[0] for each in receive(netlink) if each.type == NLMSG_ERROR)
        if number == EBUSY or (number == EPERM and not capability.missing("CAP_NET_ADMIN")):
            raise NamespaceInUse(
                f"another overlayd owns the links and rules of this network namespace: {_holder()}; stop it first"
            )
        if number:
            raise MechanismError("claim", "network namespace", number, "bind a group of nfnetlink_log")
    except BaseException:
        netlink.close()
        raise
    return netlink


def _holder() -> str:
    """Who holds the group: the first netlink socket that a process opens has its process id for a port."""
    port = 0
    with suppress(OSError):
        for line in _GROUPS.read_text().splitlines():
            group, peer, *_ = map(int, line.split())
            port = peer if group == GROUP else port
    return process.describe(port) if port else "it has just gone"
