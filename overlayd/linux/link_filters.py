"""XDP programs, tc filters and queueing disciplines of our links and of the way out that may drop packets.

Owns: reading them.  Must not know: which of them are in the way (`model.link_filters`).  Sources: linux/if_link.h,
linux/rtnetlink.h, linux/pkt_cls.h, linux/pkt_sched.h, linux/tc_act/tc_mirred.h.

Acts in the network namespace that the calling thread is in.
"""

import errno
import struct
from collections.abc import Container, Iterator, Mapping

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import link_name
from overlayd.linux.netlink import Netlink
from overlayd.model.link_filters import LinkFilter
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH
from overlayd.proto.netlink import attributes, number, string

_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_IFLA_XDP, _XDP_ATTACHED = 43, 2
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_STATS_BASIC, _STATS_QUEUE = 1, 3
_BASIC = struct.Struct("=QI")  # gnet_stats_basic: bytes, packets
_QUEUE = struct.Struct("=8xI")  # of gnet_stats_queue: drops
_TC = struct.Struct("=B3xiIII")  # tcmsg: family, link, handle, parent, info
_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFF0000
_SIDES = {"ingress": {"ingress": _INGRESS}, "clsact": {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}}
_ACTIONS = {"u32": 7, "bpf": 1, "matchall": 2, "flower": 3, "basic": 3, "fw": 4}  # their attribute, by kind of filter
_ACT_KIND, _ACT_OPTIONS, _ACT_PARAMETERS = 1, 2, 2
_SHOT, _REDIRECTS = 2, (1, 3)  # TC_ACT_SHOT; TCA_EGRESS_REDIR, TCA_INGRESS_REDIR
_GENERAL = struct.Struct("=IIiii")  # tc_gen: index, capability, action, two counts
_MIRRED = struct.Struct("=iI")  # and of tc_mirred behind it: what is done, the link

_FEW = 3  # our own constant: so many may be lost of those that come before all is up


def link_filters(uplink: str) -> list[LinkFilter]:
    """Those of our links and of the link of that name.  MechanismError when the kernel refuses."""
    with Netlink() as netlink:
        names = {}
        shapers = set()  # the indexes of links that give back what they are led, later (ifb), whatever their name
        found = []
        for body in netlink.dump("list links", rt.RTM_GETLINK, rt.link_filter()):
            about = dict(attributes(body[16:]))
            name, group = string(about[rt.IFLA_IFNAME]), number(about.get(rt.IFLA_GROUP))
            if group in (GROUP_DEVICE, GROUP_BRIDGE, GROUP_VETH) or name == uplink:
                names[rt.link_index(body)] = name
                if dict(attributes(about[_IFLA_XDP])).get(_XDP_ATTACHED, b"\0")[0] if _IFLA_XDP in about else 0:
                    found.append(LinkFilter(name, "xdp"))
            if _kind(about) == "ifb" and number(body[8:12]) & rt.IFF_UP:
                shapers.add(rt.link_index(body))
        try:
            disciplines = netlink.dump("list queueing disciplines", _RTM_GETQDISC, _TC.pack(0, 0, 0, 0, 0))
        except MechanismError as error:
            if error.errno != errno.EOPNOTSUPP:  # a kernel without any
                raise
            return found
        for body in disciplines:
            _family, index, _handle, parent, _info = _TC.unpack_from(body)
            about = dict(attributes(body[_TC.size :]))
            kind = string(about[_TCA_KIND])
            if index not in names:
                continue
            if kind == "blackhole" and parent == _ROOT:
                found.append(LinkFilter(names[index], "blackhole"))
            elif parent == _ROOT and _TCA_STATS2 in about and _loses(about[_TCA_STATS2]):
                found.append(LinkFilter(names[index], "lossy", target=kind))
            for side, at in _SIDES.get(kind, {}).items():
                asked = _TC.pack(0, index, 0, at, 0)
                for each in netlink.dump("list filters", _RTM_GETTFILTER, asked):
                    found += _filters(each, names[index], side, shapers)
    return found


def _loses(statistics: memoryview) -> bool:
    """Whether a queueing discipline has dropped more packets than it let pass, since it is there."""
    about = dict(attributes(statistics))
    if _STATS_BASIC not in about or _STATS_QUEUE not in about:
        return False
    _bytes, passed = _BASIC.unpack_from(about[_STATS_BASIC])
    (dropped,) = _QUEUE.unpack_from(about[_STATS_QUEUE])
    return bool(dropped > max(passed, _FEW))


def _kind(about: Mapping[int, memoryview]) -> str:
    """The kind of a link, empty of one that has none."""
    told = dict(attributes(about[rt.IFLA_LINKINFO])) if rt.IFLA_LINKINFO in about else {}
    return string(told[rt.IFLA_INFO_KIND]) if rt.IFLA_INFO_KIND in told else ""


def _filters(body: memoryview, link: str, side: str, shapers: Container[int]) -> Iterator[LinkFilter]:
    about = dict(attributes(body[_TC.size :]))
    kind = string(about[_TCA_KIND])
    options = dict(attributes(about[_TCA_OPTIONS])) if _TCA_OPTIONS in about else {}
    if kind == "bpf" and options:
        yield LinkFilter(link, "bpf", side)
    actions = options.get(_ACTIONS.get(kind, -1))
    for _index, action in attributes(actions) if actions is not None else ():
        parts = dict(attributes(action))
        parameters = dict(attributes(parts[_ACT_OPTIONS])).get(_ACT_PARAMETERS) if _ACT_OPTIONS in parts else None
        if parameters is None:
            continue
        if _GENERAL.unpack_from(parameters)[2] == _SHOT:
            yield LinkFilter(link, "drop", side)
        elif string(parts[_ACT_KIND]) == "mirred":
            does, target = _MIRRED.unpack_from(parameters, _GENERAL.size)
            if does in _REDIRECTS and target not in shapers:
                yield LinkFilter(link, "redirect", side, link_name(target))
