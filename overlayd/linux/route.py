"""Where the kernel would send a packet.

Owns: the look-up of one destination.  Must not know: why it is asked.  Source: rtnetlink(7), RTM_GETROUTE.
"""

from overlayd.errors import MechanismError
from overlayd.linux import rtnetlink as rt
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.objects import Address


def leaves_host(netlink: Netlink, address: Address) -> bool:
    """Whether packets to `address` go to another host: it is none of our own, no broadcast or multicast address, and
    there is a route.  Takes some 20 us and waits for nobody.
    """
    body = rt.lookup_body(address)
    try:
        replies = netlink.transact([Request("look up route", str(address), rt.RTM_GETROUTE, 0, body)])
    except MechanismError:
        return False  # unreachable, prohibited: the errno says how, which nobody asks
    routes = map(rt.parse_route, replies)
    return any(route is not None and route.type == rt.RTN_UNICAST for route in routes)
