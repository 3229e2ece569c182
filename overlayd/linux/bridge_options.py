"""Options of bridges and of their ports that would cut containers off, and the values that they must have.

Owns: which options, their names for people, and how they are read and set.  Must not know: when they are looked at, or
whose bridges they are.

Other options (multicast router, ageing) are left as they are.  Sources: linux/if_link.h, ip-link(8),
bridge(8).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from overlayd.linux import rtnetlink as rt
from overlayd.proto.netlink import attribute, nested, text


class Option(NamedTuple):
    """name: as in ip-link(8) or bridge(8).  size: of its value, bytes.  value: what it must be.  bit: it is one bit of
    many, which travel with a mask of as many bytes behind them (struct br_boolopt_multi); 0 for a value of its own.
    """

    name: str
    size: int
    value: int
    bit: int = 0

    @property
    def packed(self) -> bytes:
        value = self.value.to_bytes(self.size, "little")
        return value + self.bit.to_bytes(self.size, "little") if self.bit else value

    def shown(self, data: bytes) -> int:
        """Its value in what the kernel shows."""
        number = int.from_bytes(data[: self.size], "little")
        return number & self.bit if self.bit else number


# Each in a request of its own: the spanning tree has to be off before the others are set; not every kernel has VLANs.
SPANNING_TREE: Mapping[int, Option] = MappingProxyType({rt.IFLA_BR_STP_STATE: Option("stp_state", 4, 0)})
VLANS: Mapping[int, Option] = MappingProxyType({rt.IFLA_BR_VLAN_FILTERING: Option("vlan_filtering", 1, 0)})
OF_BRIDGE: Mapping[int, Option] = MappingProxyType(
    {
        rt.IFLA_BR_FORWARD_DELAY: Option("forward_delay", 4, 0),
        rt.IFLA_BR_MCAST_SNOOPING: Option("mcast_snooping", 1, 0),
        # Frames to 01:80:c2:00:00:0x (LLDP and the like) are learned from before a packet filter sees them, of locked
        # ports too: with its neighbour's MAC a container would have what is sent there.
        rt.IFLA_BR_MULTI_BOOLOPT: Option("no_linklocal_learn", 4, 1, bit=1),
    }
)
OF_PORT: Mapping[int, Option] = MappingProxyType(
    {
        # What NAT leads back to its sender, as a port of the host that is the container's own, leaves by the port by
        # which it came; where bridged packets pass iptables (br_netfilter), nobody routes it.
        4: Option("hairpin", 1, 1),
        5: Option("guard", 1, 0),
        8: Option("learning", 1, 1),
        9: Option("flood", 1, 1),
        10: Option("proxy_arp", 1, 0),
        12: Option("proxy_arp_wifi", 1, 0),
        27: Option("mcast_flood", 1, 1),
        28: Option("mcast_to_unicast", 1, 0),
        30: Option("bcast_flood", 1, 1),
        32: Option("neigh_suppress", 1, 0),
        33: Option("isolated", 1, 0),
        39: Option("locked", 1, 1),  # to the MAC that the bridge is told of (`veth`)
    }
)
_FORWARDING = Option("state", 1, 3)  # BR_STATE_FORWARDING of linux/if_bridge.h; the option has number 1
_OF_WORKING_PORT: Mapping[int, Option] = MappingProxyType({rt.IFLA_BRPORT_STATE: _FORWARDING, **OF_PORT})
_AS_WANTED = {kind: option.packed for kind, option in _OF_WORKING_PORT.items()}


def bridge_faults(link: rt.Link) -> list[str]:
    """What of a bridge has to be put back, for a person."""
    return _faults(link.bridge, {**SPANNING_TREE, **VLANS, **OF_BRIDGE}) + _flags(link)


def port_faults(link: rt.Link) -> list[str]:
    """The same of the port that a link is; its state counts only while it has a carrier, for without one it is
    disabled.
    """
    if _AS_WANTED.items() <= link.port.items():  # so it is after nearly every attach
        return []
    return _faults(link.port, _OF_WORKING_PORT if link.flags & rt.IFF_LOWER_UP else OF_PORT)


def settings(options: Mapping[int, Option]) -> bytes:
    """The options of a bridge, each with the value that it must have, as an attribute of a link."""
    values = (attribute(kind, option.packed) for kind, option in options.items())
    return nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "bridge"), nested(rt.IFLA_INFO_DATA, *values))


def port_settings(options: Mapping[int, Option] = OF_PORT) -> bytes:
    """The same of a port."""
    values = (attribute(kind, option.packed) for kind, option in options.items())
    return nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_SLAVE_KIND, "bridge"), nested(rt.IFLA_INFO_SLAVE_DATA, *values))


def port_state() -> bytes:
    """The state of a port that forwards; refused (ENETDOWN) while it has no carrier."""
    return port_settings({rt.IFLA_BRPORT_STATE: _FORWARDING})


def _faults(shown: Mapping[int, bytes], options: Mapping[int, Option]) -> list[str]:
    """What is wrong of the options that the kernel shows; an older one knows fewer."""
    return [
        f"its option {option.name} is {option.shown(shown[kind])}, not {option.value}"
        for kind, option in options.items()
        if kind in shown and option.shown(shown[kind]) != option.value
    ]


def _flags(link: rt.Link) -> list[str]:
    found = ["its ARP is off"] if link.flags & rt.IFF_NOARP else []
    return found if link.flags & rt.IFF_MULTICAST else [*found, "its multicast is off"]
