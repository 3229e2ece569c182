"""The kernel's IPsec policies (ip-xfrm(8)): which packets it blocks, or lets pass only through a transformation.

Owns: reading them, and what becomes of packets that none is for.  Must not know: which packets matter
(`model.ipsec`).  Sources: linux/xfrm.h.

Acts in the network namespace that the calling thread is in.
"""

import errno
import socket
import struct
from ipaddress import ip_address, ip_network

from overlayd.errors import MechanismError
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.ipsec import DIRECTIONS, Policy
from overlayd.model.objects import Network
from overlayd.proto.netlink import attributes

_NETLINK_XFRM = 6
_XFRM_MSG_GETSA, _XFRM_MSG_GETPOLICY, _XFRM_MSG_GETDEFAULT = 0x12, 0x15, 0x28
_XFRMA_TMPL, _XFRMA_MARK, _XFRMA_IF_ID = 5, 21, 31
# xfrm_selector: addresses, ports with masks, family, prefix lengths, protocol, link, user
_SELECTOR = struct.Struct("=16s16s2s2s2s2sHBBB3xiI")
# and of xfrm_userpolicy_info behind it, after its lifetimes: priority, index, direction, action
_POLICY = struct.Struct("=IIBB")
_POLICY_AT = _SELECTOR.size + 64 + 32
_TEMPLATE, _OPTIONAL_AT = 64, 50  # the size of an xfrm_user_tmpl, and where it says that it is optional
_BLOCK = 1


def policies() -> list[Policy]:
    """Those of all packets, in the order in which the kernel asks them; what is for marked packets or for links of
    IPsec's own alone is left out.  Empty for a kernel without IPsec.
    """
    try:
        netlink = Netlink(_NETLINK_XFRM)
    except MechanismError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return []
        raise
    with netlink:
        found = [each for each in map(_parsed, netlink.dump("list IPsec policies", _XFRM_MSG_GETPOLICY, b"")) if each]
        if any(each.transforms for each in found) and not netlink.dump("list IPsec keys", _XFRM_MSG_GETSA, b""):
            found = [each._replace(keyless=each.transforms) for each in found]
        found.sort(key=lambda each: each.priority)
        return found + _defaults(netlink)


def _defaults(netlink: Netlink) -> list[Policy]:
    """What is done with packets that no policy is for; an older kernel (before Linux 5.15) lets them pass."""
    request = Request("look up default IPsec policies", "", _XFRM_MSG_GETDEFAULT, 0, bytes(4), (errno.EINVAL,))
    for body in netlink.transact([request]):
        incoming, forwarded, outgoing = bytes(body[:3])
        blocks = zip(DIRECTIONS, (incoming, outgoing, forwarded), strict=True)
        return [Policy(direction, blocks=True) for direction, action in blocks if action == _BLOCK]
    return []


def _parsed(body: memoryview) -> Policy | None:
    to, source, dport, dmask, sport, smask, family, to_length, source_length, protocol, _link, _user = (
        _SELECTOR.unpack_from(body)
    )
    priority, _index, direction, action = _POLICY.unpack_from(body, _POLICY_AT)
    about = dict(attributes(body[_POLICY_AT + 16 :]))
    value, mask = struct.unpack("=II", about[_XFRMA_MARK]) if _XFRMA_MARK in about else (0, 0)
    if direction >= len(DIRECTIONS) or value & mask or any(about.get(_XFRMA_IF_ID, b"")):
        return None
    templates = bytes(about.get(_XFRMA_TMPL, b""))
    return Policy(
        direction=DIRECTIONS[direction],
        source=_network(source, source_length, family),
        destination=_network(to, to_length, family),
        protocol=protocol,
        ports=(int.from_bytes(sport, "big") if any(smask) else 0, int.from_bytes(dport, "big") if any(dmask) else 0),
        blocks=action == _BLOCK,
        transforms=any(not templates[at + _OPTIONAL_AT] for at in range(0, len(templates), _TEMPLATE)),
        priority=priority,
    )


def _network(packed: bytes, length: int, family: int) -> Network:
    address = ip_address(packed if family == socket.AF_INET6 else packed[:4])
    return ip_network((address, length), strict=False)
