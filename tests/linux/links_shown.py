"""What the tests of links want, and what `ip` shows of it."""

import json
from ipaddress import ip_interface

import pytest

from overlayd.model.objects import Bridge, Device

WEB = Bridge("web", "zl-web-b", ip_interface("10.9.0.1/24"), 1340)
WEB6 = Bridge("web", "zl-web-b", ip_interface("fd09::1/112"), 1340)
BOTH = pytest.mark.parametrize("wanted", [WEB, WEB6], ids=["ipv4", "ipv6"])


def wg(*addresses, name="zl-x-g", scope="", mtu=1340):
    return Device(scope, name, bytes(32), 51820, mtu, frozenset(map(ip_interface, addresses)))


def shown(shell, name):
    (found,) = json.loads(shell(f"ip -j -d address show dev {name}"))
    return found


def carried(shell, name):
    return {
        f"{each['local']}/{each['prefixlen']}" for each in shown(shell, name)["addr_info"] if each["scope"] != "link"
    }
