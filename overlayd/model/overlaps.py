"""Networks that the host reaches without the overlay, and where they overlap with what the overlay takes.

Owns: which overlap would cut the host off and is refused, which one is only told, and the words.  Must not know: how
the host's networks are read (`linux.surroundings`), or when.

The longest prefix wins.  So a network of the overlay that lies within one of the host's takes it away from the host,
and one of the host's within the overlay takes a part of the overlay away.  The latter is refused too where the host
lives by it: there is the overlay's fence, which lets nothing out that is for the cluster.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from overlayd import keys
from overlayd._fast.addresses import is_inside, place
from overlayd.model.findings import Finding, Severity
from overlayd.model.objects import Address, Network
from overlayd.model.routing import has_route
from overlayd.model.rows import Overlay, Service
from overlayd.model.state import State


class HostNetwork(msgspec.Struct, frozen=True):
    """Where the host gets by itself.

    kind: "connected", on-link through `link`; "route", by one of the host's routes, which leads nowhere (blackhole,
    unreachable, prohibit) if it has no link; "gateway", the default gateway's address alone.  virtual: the link is one
    of the host's own making (Docker's bridge), which no cable is behind.
    """

    network: Network
    link: str
    kind: Literal["connected", "route", "gateway"]
    via: Address | None = None
    virtual: bool = False

    def __str__(self) -> str:
        if self.kind == "gateway":
            return f"the default gateway {self.network.network_address} on {self.link}"
        if not self.link:
            return f"route {self.network} to nowhere (ip route show {self.network})"
        via = f" via {self.via}" if self.via is not None else ""
        return f"{'network' if self.kind == 'connected' else 'route'} {self.network}{via} on {self.link}"


def cuts_off(network: Network, host: Iterable[HostNetwork]) -> HostNetwork | None:
    """What of the host would be cut off if `network` were led into the overlay; None when nothing would."""
    for other in _overlapping(network, host):
        covered = is_inside(other.network, network)
        if other.network == network or not covered:
            if other.kind != "route" or other.network == network:
                return other
        elif other.kind == "gateway" or (other.kind == "connected" and not other.virtual):
            return other
    return None


def occupant(subnet: Network, cluster: Network, host: Iterable[HostNetwork]) -> HostNetwork | None:
    """A network of the host, within the cluster, that a service's subnet would take addresses from."""
    return next((other for other in _overlapping(subnet, host) if _within_cluster(other, cluster)), None)


def findings(state: State, host: Sequence[HostNetwork]) -> list[Finding]:
    """What overlaps with the overlay as it is set up, a finding for each network of the host."""
    overlay = state.overlay
    if overlay is None:
        return []
    found = []
    for other in host:
        if other.network.version == overlay.cluster.version and other.network.overlaps(overlay.cluster):
            found.append(_with_cluster(state, overlay, other))
        else:
            found += _with_allowed_ips(state, overlay, other)
    return found


def _with_cluster(state: State, overlay: Overlay, other: HostNetwork) -> Finding:
    severity: Severity = "error"
    remedy = "give one of them other addresses"
    if not is_inside(other.network, overlay.cluster):
        if other.kind == "route":
            severity = "hint"
        symptom = "what is for the cluster CIDR goes through the overlay, and no longer where it went before"
    else:
        lost = [*_peers_at(state, other.network, overlay.cluster), *_services_at(state, other.network)]
        if not lost and other.kind == "route":
            severity = "warning"
        symptom = "this host reaches it by that link and not through the overlay, and forwards nothing there"
        if not other.link:
            symptom = "this host sends and forwards nothing there"
        if lost:
            symptom += f": this takes {', '.join(lost[:3])} away"
    return Finding("network-overlap", severity, str(other), f"overlaps {_name(overlay)}", symptom, remedy)


def _with_allowed_ips(state: State, overlay: Overlay, other: HostNetwork) -> Iterator[Finding]:
    symptom = "one of them is not reached from here: the longer prefix wins, or the route that was there first"
    for words in _peers_at(state, other.network, None, overlay.cluster):
        yield Finding("network-overlap", "error", str(other), f"overlaps {words}", symptom, "withdraw the allowed IP")


def _peers_at(
    state: State, network: Network, narrower_than: Network | None, routed_beside: Network | None = None
) -> list[str]:
    """The allowed IPs that overlap with a network, in words.  narrower_than: only those of a longer prefix;
    routed_beside: only those that have a route of their own beside that cluster.
    """
    packed, length = place(network)
    words = []
    for scope in state.scopes():
        allowed = state.allowed_ips(scope)
        both = (*allowed.covering(packed, length), *allowed.within(packed, length))
        for at, size, key in dict.fromkeys(both):
            announced = type(network)((at, size))
            if narrower_than is not None and size <= narrower_than.prefixlen:
                continue
            if routed_beside is not None and not has_route(scope, announced, routed_beside):
                continue
            words.append(f"allowed IP {announced} of peer {keys.text(key)[:8]}...")
    return words


def _services_at(state: State, network: Network) -> list[str]:
    services = state.table(Service).values()
    return [f"service {each.name} ({each.subnet})" for each in services if each.subnet.overlaps(network)]


def _name(overlay: Overlay) -> str:
    return f"the cluster CIDR {overlay.cluster}"


def _overlapping(network: Network, host: Iterable[HostNetwork]) -> Iterator[HostNetwork]:
    first, length, version = int(network.network_address), network.prefixlen, network.version
    bits = network.max_prefixlen
    for each in host:
        other = each.network
        if other.version == version:
            apart = first ^ int(other.network_address)
            if apart >> (bits - min(length, other.prefixlen)) == 0:
                yield each


def _within_cluster(other: HostNetwork, cluster: Network) -> bool:
    return other.network != cluster and is_inside(other.network, cluster)
