"""What the host leads into the overlay: which allowed IPs get a route, and where an address goes by that."""

from ipaddress import ip_address, ip_network

import pytest
from decisions import CLUSTER, KEYS, OWN, change, new_state, ready, serve

from overlayd.model import peers
from overlayd.model.objects import GLOBAL
from overlayd.model.routing import has_route, routed_into_overlay


@pytest.mark.parametrize(
    ("network", "on_global", "on_dedicated"),
    [
        ("10.200.9.0/24", False, True),
        ("10.200.9.9/32", False, True),
        ("10.200.0.0/16", False, False),
        ("10.0.0.0/8", False, False),
        ("0.0.0.0/0", False, False),
        ("::/0", False, False),
        ("192.168.0.0/16", True, True),
        ("fd00::/48", True, True),
    ],
)
def test_which_allowed_ips_get_a_route(network: str, on_global: bool, on_dedicated: bool) -> None:
    assert has_route(GLOBAL, ip_network(network), CLUSTER) == on_global
    assert has_route("own", ip_network(network), CLUSTER) == on_dedicated


@pytest.mark.parametrize("scope", [GLOBAL, "own"])
def test_where_an_address_goes(scope: str) -> None:
    state = ready()
    serve(state, "own", dedicated_key=b"d" * 32)
    announced = tuple(map(ip_network, ("192.168.77.0/24", "0.0.0.0/0", "fd77::/64")))
    given = {"endpoint": "", "keepalive": 0, "candidates": (), "own_key": OWN, "allowed_ips": announced}
    change(state, lambda draft: peers.add_peer(draft, scope, KEYS[0], **given))
    assert routed_into_overlay(state, ip_address("10.200.3.3")) == "the cluster CIDR 10.200.0.0/16"
    for address, network in (("192.168.77.7", "192.168.77.0/24"), ("fd77::7", "fd77::/64")):
        assert routed_into_overlay(state, ip_address(address)).startswith(f"the allowed IP {network} of peer ")
    for outside in ("192.168.78.1", "198.51.100.1", "fd78::1"):
        assert routed_into_overlay(state, ip_address(outside)) == ""
    assert routed_into_overlay(new_state(), ip_address("10.200.3.3")) == ""
