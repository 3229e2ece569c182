"""The reference for peers: those of the global device, of dedicated services, and edge peers.

Owns: the meaning of the requests about peers.  Must not know: overlayd; who else makes peers (`model`: guests).
"""

from ipaddress import ip_network
from typing import Any

from crash.model_state import GLOBAL, NODE_POOL, Network, Refused, State, host_network

UPLINK = "172.31.0.1"  # the address of a cell
KEEPALIVE = 25  # seconds
DNS_DOMAIN = "overlay.local"


class Peers(State):
    """Of a scope on the wire, {"scope": "global"} or {"scope": "service", "service": name}, only the name matters."""

    def _add_peer(
        self,
        public_key: str,
        endpoint: str,
        allowed_ips: str,
        persistent_keepalive_secs: int,
        scope: dict[str, str] | None = None,
    ) -> None:
        where = self._scope(scope)
        listed = list(dict.fromkeys(allowed_ips.split(",")))
        added = self.peers.get((where, public_key), {}).get("added", [])
        for text in listed:
            self._require_no_other_route(where, text)
        self._require_installable(listed)
        for text in listed:
            self._disown(where, text, public_key)
        self.peers[where, public_key] = {
            "endpoint": endpoint,
            "keepalive": persistent_keepalive_secs,
            "listed": listed,
            "added": added,
        }

    def _remove_peer(self, pubkey: str, scope: dict[str, str] | None = None) -> None:
        self.peers.pop((self._scope(scope), pubkey), None)

    def _add_allowed_ip(self, pubkey: str, cidr: str, scope: dict[str, str] | None = None) -> None:
        where = self._scope(scope)
        if (where, pubkey) not in self.peers:
            raise Refused
        peer = self.peers[where, pubkey]
        if cidr not in peer["added"]:
            self._require_no_other_route(where, cidr)
            self._require_installable([cidr])
            self._disown(where, cidr, pubkey)
            peer["added"].append(cidr)

    def _remove_allowed_ip(self, pubkey: str, cidr: str, scope: dict[str, str] | None = None) -> None:
        where = self._scope(scope)
        if (where, pubkey) in self.peers:
            _take(cidr, self.peers[where, pubkey])

    def _scope(self, scope: dict[str, str] | None) -> str:
        name = (scope or {}).get("service", GLOBAL)
        if name == GLOBAL:
            self._require()
        elif not self.services.get(name, {}).get("device"):
            raise Refused
        return name

    def _disown(self, scope: str, cidr: str, but: str) -> None:
        for (where, key), peer in self.peers.items():
            if where == scope and key != but:
                _take(cidr, peer)

    def _require_no_other_route(self, scope: str, cidr: str) -> None:
        if not self.has_route(scope, cidr):
            return
        for (where, _), peer in self.peers.items():
            if where != scope and self.has_route(where, cidr) and cidr in peer["listed"] + peer["added"]:
                raise Refused

    def _require_installable(self, cidrs: list[str]) -> None:
        """A request of nothing but what is this node's own is refused."""
        if all(map(self._is_own, cidrs)):
            raise Refused

    def installed(self, key: str, peer: dict[str, Any]) -> list[str]:
        """The allowed IPs of a peer that are not this node's own; a guest has its own address."""
        allowed = list(dict.fromkeys(peer["listed"] + peer["added"]))
        return allowed if key.startswith("(of guest:") else [cidr for cidr in allowed if not self._is_own(cidr)]

    def _is_own(self, cidr: str) -> bool:
        network = ip_network(cidr)
        own = [ip_network(service["subnet"]) for service in self.services.values()]
        own.append(ip_network(self.overlay["slice"] or host_network(self.node_address)))
        held = self.leases.get(str(network.network_address), {}).get("holder") if network.num_addresses == 1 else ""
        return bool(held) or any(inside(network, each) for each in own)

    def has_route(self, scope: str, cidr: str) -> bool:
        """Whether an allowed IP gets a route: not one that holds the whole cluster, nor one of the cluster globally."""
        network, cluster = ip_network(cidr), ip_network(self.overlay["cluster"])
        needed = scope != GLOBAL or not inside(network, cluster)
        return network.prefixlen > 0 and needed and not inside(cluster, network)

    def _drop_peers(self, scope: str) -> None:
        self.peers = {place: peer for place, peer in self.peers.items() if place[0] != scope}

    # Edge peers.

    def _mint_edge_peer(self, name: str, ttl_secs: int, allow: list[str]) -> dict[str, Any]:
        self._require()
        services = list(dict.fromkeys(each for each in allow if "/" not in each))
        if name in self.edges or any(service not in self.services for service in services):
            raise Refused
        address = self._lease(NODE_POOL, f"edge:{name}")
        allowed = [each for each in allow if "/" in each] if allow else [self.overlay["cluster"]]
        self.edges[name] = {"address": address, "allowed": allowed, "services": services}
        reach = list(dict.fromkeys((*allowed, *self.granted_subnets(name))))
        return {
            "result": "edge_config",
            "version": 1,
            "name": name,
            "overlay_ip": address,
            "prefix_len": ip_network(address).prefixlen,
            **self._entrance(",".join(reach)),
            **self.name_server_for(services, reach),
            "expires_at_unix": 0,  # blanked
        }

    def granted_subnets(self, name: str) -> list[str]:
        """Of the services that an edge peer was granted by name."""
        services = self.edges[name]["services"]
        return [self.services[service]["subnet"] for service in services if service in self.services]

    def name_server_for(self, services: list[str], reach: list[str]) -> dict[str, str]:
        """The name server that somebody outside is told: the gateway of one of these services, else of another."""
        others = sorted(self.services, key=lambda name: (not self.services[name]["lasting"], name))
        for name in (*services, *others):
            gateway = ip_network(self.services[name]["subnet"])[1] if name in self.services else None
            if gateway is not None and any(gateway in ip_network(each) for each in reach):
                return {"dns_server": str(gateway), "dns_domain": DNS_DOMAIN}
        return {}

    def _revoke_edge_peer(self, name: str) -> None:
        if name in self.edges:
            self._release(self.edges.pop(name)["address"])

    def _entrance(self, allowed_ips: str) -> dict[str, Any]:
        """What a WireGuard elsewhere needs: its keys, and this node as its peer.  Keys are blanked."""
        peer = {
            "public_key": "(made)",
            "endpoint": f"{UPLINK}:{self.overlay['wg_port']}",
            "allowed_ips": allowed_ips,
            "persistent_keepalive_secs": KEEPALIVE,
        }
        return {"private_key": "(made)", "public_key": "(made)", "peers": [peer]}


def _take(cidr: str, peer: dict[str, Any]) -> None:
    for texts in (peer["listed"], peer["added"]):
        if cidr in texts:
            texts.remove(cidr)


def inside(inner: Network, outer: Network) -> bool:
    """Whether one network is part of another."""
    return inner.version == outer.version and inner.network_address in outer and inner.broadcast_address in outer
