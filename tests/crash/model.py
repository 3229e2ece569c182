"""The reference: what the requests so far must have led to, reckoned in dictionaries.

Owns: the meaning of every request.  Must not know: overlayd; nothing of it is imported here, and the naming rule is not
needed because the names in use are short.  What a machine in such a state shows is in `shown`.
"""

import copy
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

Step = dict[str, Any]
Network = IPv4Network | IPv6Network

SLOT = {4: 28, 6: 120}  # prefix length of a service's subnet
NODE_POOL = ""


class Refused(Exception):
    """The request must get `err`, and change nothing."""


class Beyond(Exception):
    """The model does not know the request."""


class Model:
    """The state of a node.  containers: the processes that live, attached or not."""

    def __init__(self) -> None:
        self.node_id = 0
        self.announced = ""
        self.overlay: dict[str, Any] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.peers: dict[str, dict[str, Any]] = {}
        self.leases: dict[str, dict[str, Any]] = {}
        self.attachments: dict[int, dict[str, Any]] = {}
        self.isolation: dict[str, int] = {}
        self.records: dict[str, str] = {}
        self.releases = 0
        self.containers: set[int] = set()
        self.boots = 1

    def after(self, step: Step) -> tuple["Model", dict[str, Any]]:
        """The state after a step, and its answer.  Refused or Beyond, with this one as it was."""
        model = copy.deepcopy(self)
        keys = {key: value for key, value in step.items() if key != "op"}
        meaning = getattr(model, "_" + step["op"].removeprefix("!"), None)
        if meaning is None or keys.get("mode") == "dedicated" or "scope" in keys:
            raise Beyond(step["op"])
        if keys.get("handle", {}).get("platform", "linux_pid") != "linux_pid":
            raise Beyond(keys["handle"]["platform"])
        return model, meaning(**keys) or {"result": "ok"}

    # What happens.

    def _container(self, pid: int) -> None:
        self.containers.add(pid)

    def _die(self, pid: int) -> None:
        self.containers.discard(pid)
        if pid in self.attachments:
            self._detach(pid)

    _orphan = _die

    def _replace(self, pid: int) -> None:
        self._die(pid)
        self.containers.add(pid)

    def _restart(self) -> None:
        pass

    def _reboot(self) -> None:
        self.boots += 1
        self.containers.clear()
        for pid in list(self.attachments):
            self._detach(pid)
        self._made_anew(self.overlay, *self.services.values())

    def _teardown(self) -> None:
        self._made_anew(self.overlay, *self.services.values())

    def _damage(self, what: str) -> None:
        if what == "device":
            self._made_anew(self.overlay)
        elif what == "bridges":
            self._made_anew(*self.services.values())

    def _made_anew(self, *things: dict[str, Any]) -> None:
        """Links that come back know nothing of names that they had."""
        for thing in filter(None, things):
            thing.pop("alternative", None)
            thing["first name"] = thing["name"]

    # What is asked for: the node.

    def _set_local_node_id(self, node_id: int) -> None:
        self.node_id = node_id

    def _set_local_wg_pubkey(self, pubkey: str) -> None:
        self.announced = pubkey

    def _setup_global_overlay(
        self, deployment: str, instance_id: str, cluster_cidr: str, wg_port: int, slice_cidr: str | None = None
    ) -> dict[str, Any]:
        cluster = ip_network(cluster_cidr)
        own = ip_network(slice_cidr) if slice_cidr else cluster
        old = self.overlay
        if old and (old["cluster"], old["slice"]) != (cluster_cidr, slice_cidr):
            self._readdress(cluster, own)
        name = f"zl-{deployment}-{instance_id}-g"
        renamed = old and old["up"]
        self.overlay = {
            "deployment": deployment,
            "instance_id": instance_id,
            "cluster": cluster_cidr,
            "slice": slice_cidr,
            "wg_port": wg_port,
            "up": True,
            **_named(name, old if renamed else {}),
        }
        for service_name, service in self.services.items():
            service.update(_named(f"zl-{deployment}-{instance_id}-{service_name}-b", service))
        return {"result": "bridge_name", "name": name}

    def _readdress(self, cluster: Network, own: Network) -> None:
        for service in self.services.values():
            subnet = ip_network(service["subnet"])
            if not _inside(subnet, cluster) or own[1] in subnet:
                raise Refused
        for address, lease in list(self.leases.items()):
            outside = lease["pool"] == NODE_POOL and ip_address(address) not in own
            if lease["holder"] and (outside or address == str(own[1])):
                raise Refused
            if outside:
                del self.leases[address]

    def _teardown_global_overlay(self) -> None:
        if self.overlay:
            self.overlay["up"] = False

    _shutdown = _teardown_global_overlay

    def _require(self) -> None:
        if not self.overlay or not self.overlay["up"]:
            raise Refused

    # Services and addresses.

    def _setup_service_overlay(self, service: str, mode: str, subnet: str | None = None) -> dict[str, Any]:
        self._require()
        name = f"zl-{self.overlay['deployment']}-{self.overlay['instance_id']}-{service}-b"
        present = self.services.get(service)
        if present:
            if subnet not in (None, present["subnet"]):
                raise Refused
            present["left"] = False
        else:
            if subnet and self._taken(ip_network(subnet)):
                raise Refused
            chosen = subnet or self._choose_subnet(service)
            self.services[service] = {"subnet": chosen, "lasting": False, "left": False, **_named(name, {})}
            for address, lease in list(self.leases.items()):
                if lease["pool"] == NODE_POOL and ip_address(address) in ip_network(chosen):
                    del self.leases[address]
        return {"result": "bridge_name", "name": name}

    def _choose_subnet(self, service: str) -> str:
        cluster = ip_network(self.overlay["cluster"])
        slots = list(cluster.subnets(new_prefix=SLOT[cluster.version])) if cluster.version == 4 else None
        count = len(slots) if slots else 1 << (SLOT[6] - cluster.prefixlen)
        first = _fnv(service.encode() + b"\x1f" + str(self.node_id).encode()) % count
        for offset in range(count):
            at = (first + offset) % count
            slot = slots[at] if slots else IPv6Network((int(cluster.network_address) + (at << 8), 120))
            if not self._taken(slot):
                return str(slot)
        raise Refused

    def _taken(self, slot: Network) -> bool:
        cluster = ip_network(self.overlay["cluster"])
        others = [ip_network(service["subnet"]) for service in self.services.values()]
        if self.overlay["slice"]:
            others.append(ip_network(self.overlay["slice"]))
        else:
            held = [address for address, lease in self.leases.items() if lease["pool"] == NODE_POOL and lease["holder"]]
            others += [ip_network(address) for address in (str(cluster[1]), *held)]
        for peer in self.peers.values():
            for text in peer["listed"] + peer["added"]:
                network = ip_network(text)
                if network.prefixlen > cluster.prefixlen:
                    others.append(network)
        return any(other.version == slot.version and other.overlaps(slot) for other in others)

    def _teardown_service_overlay(self, service: str) -> None:
        for pid, attachment in list(self.attachments.items()):
            if attachment["service"] == service:
                self._detach(pid)
        self._drop_service(service)

    def _drop_service(self, service: str) -> None:
        if self.services.pop(service, None):
            for address, lease in list(self.leases.items()):
                if lease["pool"] == service:
                    del self.leases[address]

    def _allocate_ip(self, service: str, join_global: bool) -> dict[str, Any]:
        return {"result": "ip", "ip": self._lease(service if service in self.services else NODE_POOL, "request")}

    def _release_ip(self, ip: str) -> None:
        if self.leases.get(ip, {}).get("holder") == "request":
            self._release(ip)
            pool = self.leases[ip]["pool"]
            if pool and self.services[pool]["left"]:
                self._leave(pool)

    def _lease(self, pool: str, holder: str) -> str:
        if not self.overlay:
            raise Refused
        within, excluded = self._pool(pool)
        released = []
        last = within.num_addresses - (1 if within.version == 4 else 0)
        for at in range(2, min(last, 1 << 16)):  # 0 is the network's, 1 the gateway's or the node's
            address = str(within[at])
            if any(ip_address(address) in other for other in excluded):
                continue
            lease = self.leases.get(address)
            if lease is None:
                break
            if not lease["holder"]:
                released.append((lease["released"], address))
        else:
            if not released:
                raise Refused
            address = min(released)[1]
        self.leases.pop(address, None)
        self.leases[address] = {"pool": pool, "holder": holder}
        return address

    def _pool(self, pool: str) -> tuple[Network, list[Network]]:
        if pool:
            return ip_network(self.services[pool]["subnet"]), []
        subnets = [ip_network(service["subnet"]) for service in self.services.values()]
        return ip_network(self.overlay["slice"] or self.overlay["cluster"]), subnets

    def _release(self, address: str) -> None:
        self.releases += 1
        self.leases[address] = {"pool": self.leases[address]["pool"], "holder": "", "released": self.releases}

    # Containers.

    def _attach_container(
        self,
        handle: dict[str, Any],
        service: str,
        join_global: bool,
        ephemeral: bool = False,
        isolation_network: str = "",
    ) -> dict[str, Any]:
        pid = handle["pid"]
        if pid not in self.containers or service not in self.services:
            raise Refused
        self._require()
        present = self.attachments.get(pid)
        if present:
            as_asked = (present["service"], bool(present["global"]), present["isolation"])
            if as_asked != (service, join_global, isolation_network):
                raise Refused
            return {"result": "attached", "ip": present["address"]}
        address = self._lease(service, f"pid:{pid}")
        self.attachments[pid] = {
            "service": service,
            "address": address,
            "global": self._lease(NODE_POOL, f"pid:{pid}") if join_global else "",
            "isolation": isolation_network,
            "ephemeral": ephemeral,
        }
        if not ephemeral:
            self.services[service]["lasting"] = True
        if isolation_network and isolation_network not in self.isolation:
            used = self.isolation.values()
            self.isolation[isolation_network] = min(set(range(1, len(used) + 2)) - set(used))
        return {"result": "attached", "ip": address}

    def _detach_container(self, handle: dict[str, Any]) -> None:
        if handle["pid"] in self.attachments:
            self._detach(handle["pid"])

    def _detach(self, pid: int) -> None:
        attachment = self.attachments.pop(pid)
        for address in filter(None, (attachment["address"], attachment["global"])):
            self._release(address)
        others = self.attachments.values()
        if attachment["isolation"] and all(other["isolation"] != attachment["isolation"] for other in others):
            del self.isolation[attachment["isolation"]]
        if attachment["ephemeral"]:
            self._leave(attachment["service"])

    def _leave(self, name: str) -> None:
        """A service that only ephemeral containers were in goes with the last of them, or with the last address."""
        if self.services[name]["lasting"] or any(other["service"] == name for other in self.attachments.values()):
            return
        if any(lease["pool"] == name and lease["holder"] for lease in self.leases.values()):
            self.services[name]["left"] = True
        else:
            self._drop_service(name)

    # Names.

    def _register_dns(self, name: str, ip: str) -> None:
        self.records[name] = ip

    def _unregister_dns(self, name: str) -> None:
        self.records.pop(name, None)

    # Peers.

    def _add_peer(self, public_key: str, endpoint: str, allowed_ips: str, persistent_keepalive_secs: int) -> None:
        self._require()
        listed = list(dict.fromkeys(allowed_ips.split(",")))
        added = self.peers.get(public_key, {}).get("added", [])
        for text in listed:
            self._disown(text, public_key)
        self.peers[public_key] = {
            "endpoint": endpoint,
            "keepalive": persistent_keepalive_secs,
            "listed": listed,
            "added": added,
        }

    def _remove_peer(self, pubkey: str) -> None:
        self._require()
        self.peers.pop(pubkey, None)

    def _add_allowed_ip(self, pubkey: str, cidr: str) -> None:
        self._require()
        if pubkey not in self.peers:
            raise Refused
        peer = self.peers[pubkey]
        if cidr not in peer["added"]:
            self._disown(cidr, pubkey)
            peer["added"].append(cidr)

    def _remove_allowed_ip(self, pubkey: str, cidr: str) -> None:
        self._require()
        if pubkey in self.peers:
            self._take(cidr, self.peers[pubkey])

    def _disown(self, cidr: str, but: str) -> None:
        for key, peer in self.peers.items():
            if key != but:
                self._take(cidr, peer)

    def _take(self, cidr: str, peer: dict[str, Any]) -> None:
        for texts in (peer["listed"], peer["added"]):
            if cidr in texts:
                texts.remove(cidr)


def _named(name: str, old: dict[str, Any]) -> dict[str, Any]:
    """A link's names: the one it answers to, the one it had before, the one it was made with."""
    if not old:
        return {"name": name, "first name": name}
    if old["name"] == name:
        return {key: old[key] for key in ("name", "first name", "alternative") if key in old}
    return {"name": name, "first name": old["first name"], "alternative": old["name"]}


def _inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.network_address in outer and inner.broadcast_address in outer


def _fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
