"""The reference: what the requests so far must have led to, reckoned in dictionaries.

Owns: the meaning of every request but those about peers (`model_peers`).  Must not know: overlayd; nothing of it is
imported here, and the naming rule is not needed because the names in use are short.  What a machine in such a state
shows is in `shown`.
"""

import pickle
from ipaddress import ip_address, ip_network
from itertools import permutations
from typing import Any

from crash.model_peers import Peers, inside
from crash.model_state import (
    GLOBAL,
    NODE_POOL,
    WIREGUARD_GO,
    Network,
    Refused,
    container_of,
    host_network,
    made_for,
)

Step = dict[str, Any]

SLOT = {4: 26, 6: 120}  # prefix length of a service's subnet, in clusters of at least sixteen
MTU = 1440  # of an uplink of 1500 without IPv6, less WireGuard's headers over IPv4
DEDICATED_PORTS = 256  # above the global one


class Model(Peers):
    """The state of a node, and what a step makes of it."""

    def after(self, step: Step) -> tuple["Model", dict[str, Any]]:
        """The state after a step, and its answer; if that is `err`, the state is as it was."""
        model = self._copy()
        keys = {key: value for key, value in step.items() if key != "op"}
        meaning = getattr(model, "_" + step["op"].removeprefix("!"))
        try:
            return model, meaning(**keys) or {"result": "ok"}
        except Refused:
            return self, {"result": "err"}

    def _copy(self) -> "Model":
        model: Model = pickle.loads(pickle.dumps(self))  # in a third of the time of copy.deepcopy
        return model

    def after_death(self, pid: int) -> list["Model"]:
        """The states that may follow a container's end: its interfaces go in the order in which the kernel tells."""
        possible = []
        for order in permutations([each for each in self.attachments if container_of(each) == pid]):
            model = self._copy()
            model.containers.discard(pid)
            for handle in order:
                model._detach(handle)
            possible.append(model)
        return possible

    # What happens.

    def _container(self, pid: int) -> None:
        self.containers.add(pid)

    def _die(self, pid: int) -> None:
        self.containers.discard(pid)
        for handle in [each for each in self.attachments if container_of(each) == pid]:
            self._detach(handle)

    _orphan = _die

    def _replace(self, pid: int) -> None:
        self._die(pid)
        self.containers.add(pid)

    def _restart(self) -> None:
        pass

    def _reboot(self) -> None:
        self.boots += 1
        self.containers.clear()
        for handle in list(self.attachments):
            if container_of(handle):
                self._detach(handle)
        self._made_anew(*self._devices(), *self.services.values())

    def _displace(self, how: str) -> None:
        pass

    _stranger = _restart

    def _teardown(self) -> None:
        self._made_anew(*self._devices(), *self.services.values())

    def _damage(self, what: str) -> None:
        if what == "device":
            self._made_anew(*self._devices())
        elif what == "bridges":
            self._made_anew(*self.services.values())

    def _devices(self) -> list[dict[str, Any]]:
        return [self.overlay, *(service["device"] for service in self.services.values())]

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

    def _renew_devices(self, force: bool) -> dict[str, Any]:
        devices = list(filter(None, self._devices()))
        self._made_anew(*devices)
        same = {"before": WIREGUARD_GO, "after": WIREGUARD_GO, "down_ms": 0}
        none = {"sessions": 0, "answered": 0, "restored_ms": 0}
        return {"result": "renewed", "devices": [{"interface": each["name"], **same, **none} for each in devices]}

    def _setup_global_overlay(
        self, deployment: str, instance_id: str, cluster_cidr: str, wg_port: int, slice_cidr: str | None = None
    ) -> dict[str, Any]:
        cluster = ip_network(cluster_cidr)
        own = ip_network(slice_cidr) if slice_cidr else cluster
        if any(service["device"].get("wg_port") == wg_port for service in self.services.values()):
            raise Refused
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
            "slice_service": old.get("slice_service", ""),
            **_named(name, old if renamed else {}),
        }
        for service_name, service in self.services.items():
            service.update(_named(f"zl-{deployment}-{instance_id}-{service_name}-b", service))
            if service["device"]:
                service["device"].update(_named(f"zl-{deployment}-{instance_id}-{service_name}-d", service["device"]))
        return {"result": "bridge_name", "name": name}

    def _readdress(self, cluster: Network, own: Network) -> None:
        for name, service in self.services.items():
            subnet = ip_network(service["subnet"])
            shared = name == self.overlay["slice_service"]
            if not inside(subnet, cluster) or (subnet != own if shared else own[1] in subnet):
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

    # Services and addresses.

    def _setup_service_overlay(self, service: str, mode: str, subnet: str | None = None) -> dict[str, Any]:
        self._require()
        stem = f"zl-{self.overlay['deployment']}-{self.overlay['instance_id']}-{service}"
        present = self.services.get(service)
        if present:
            if subnet not in (None, present["subnet"]) or bool(present["device"]) != (mode == "dedicated"):
                raise Refused
            present |= {"left": False, "isolated": mode == "isolated"}
        else:
            shared = bool(subnet) and subnet == self.overlay["slice"]
            if shared and (mode == "dedicated" or self.overlay["slice_service"]):
                raise Refused
            if subnet and not shared and self._taken(ip_network(subnet)):
                raise Refused
            chosen = subnet or self._choose_subnet(service)
            device = {**_named(f"{stem}-d", {}), "wg_port": self._choose_port()} if mode == "dedicated" else {}
            flags = {"lasting": shared, "left": False, "isolated": mode == "isolated"}
            self.services[service] = {"subnet": chosen, "device": device, **flags, **_named(f"{stem}-b", {})}
            for address, lease in list(self.leases.items()):
                if not shared and lease["pool"] == NODE_POOL and ip_address(address) in ip_network(chosen):
                    del self.leases[address]
            if shared:
                self.overlay["slice_service"] = service
        return self._service_answer(f"{stem}-b", self.services[service])

    def _service_answer(self, name: str, service: dict[str, Any]) -> dict[str, Any]:
        if not service["device"]:
            return {"result": "bridge_name", "name": name, **_subnet(service)}
        return {
            "result": "service_overlay",
            "name": name,
            "mode": "dedicated",
            "wg_public_key": "(made)",
            "wg_port": service["device"]["wg_port"],
            "overlay_ip": str(ip_network(service["subnet"])[1]),
            "subnet": service["subnet"],
        }

    def _choose_port(self) -> int:
        first = int(self.overlay["wg_port"]) + 1
        used = {service["device"].get("wg_port") for service in self.services.values()}
        free = [port for port in range(first, first + DEDICATED_PORTS) if port not in used]
        if not free:
            raise Refused
        return free[0]

    def _choose_subnet(self, service: str) -> str:
        cluster = ip_network(self.overlay["cluster"])
        length = SLOT[cluster.version]
        count = 1 << (length - cluster.prefixlen)
        first = _fnv(service.encode() + b"\x1f" + str(self.node_id).encode()) % count
        for offset in range(count):
            at = (first + offset) % count << (cluster.max_prefixlen - length)
            slot = ip_network((int(cluster.network_address) + at, length))
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
        if service not in self.services:
            return
        for handle, attachment in list(self.attachments.items()):
            if attachment["service"] == service:
                self._detach(handle)
        self._drop_service(service)

    def _drop_service(self, service: str) -> None:
        if self.services.pop(service, None):
            self._drop_peers(service)
            if self.overlay["slice_service"] == service:
                self.overlay["slice_service"] = ""
            for address, lease in list(self.leases.items()):
                if lease["pool"] == service:
                    self._withdraw(address)
                    del self.leases[address]

    def _prune_orphan_bridges(self, live_bridge_names: list[str]) -> dict[str, Any]:
        gone = []
        for name, service in list(self.services.items()):
            inhabited = any(attachment["service"] == name for attachment in self.attachments.values())
            if not inhabited and {service["name"], service.get("alternative")}.isdisjoint(live_bridge_names):
                gone.append(service["name"])
                self._teardown_service_overlay(name)
        return {"result": "pruned_bridges", "reclaimed": sorted(gone)}

    def _allocate_ip(self, service: str, join_global: bool) -> dict[str, Any]:
        if service and service not in self.services:
            raise Refused
        return {"result": "ip", "ip": self._lease(self.pool_of(service or NODE_POOL), "request")}

    def _release_ip(self, ip: str) -> None:
        if self.leases.get(ip, {}).get("holder") == "request":
            self._release(ip)
            pool = self.leases[ip]["pool"]
            if pool and self.services[pool]["left"]:
                self._leave(pool)

    # Containers and guests.

    def _attach_container(
        self,
        handle: dict[str, Any],
        service: str,
        join_global: bool,
        *,
        ephemeral: bool = False,
        isolation_network: str = "",
        ip: str = "",
        default_route: bool = True,
    ) -> dict[str, Any]:
        name = _handle(handle)
        contained = bool(container_of(name))
        if contained and (container_of(name) not in self.containers or service not in self.services):
            raise Refused
        self._require()
        present = self.attachments.get(name)
        if present:
            if (present["service"], present["isolation"]) != (service, isolation_network):
                raise Refused
            if contained and bool(present["global"] or present["joined"]) != join_global:
                raise Refused
            if contained and present["default"] != default_route:
                raise Refused
            return self._attached(name, present)
        hosted = handle["platform"] == "host_shared"
        fellows = [
            it for other, it in self.attachments.items() if contained and container_of(other) == container_of(name)
        ]
        if join_global and any(fellow["joined"] or fellow["global"] for fellow in fellows):
            raise Refused
        pool = self.pool_of(NODE_POOL if hosted or service not in self.services else service)
        address = self._claim(pool, ip, name) if ip else self._lease(pool, name)
        attachment = self.attachments[name] = {
            "service": service,
            "address": address,
            "global": self._lease(NODE_POOL, name) if contained and join_global and pool else "",
            "joined": contained and join_global and not pool,
            "default": default_route,
            "isolation": isolation_network,
            "ephemeral": ephemeral,
        }
        if not ephemeral and service in self.services:
            self.services[service]["lasting"] = True
        if isolation_network and isolation_network not in self.isolation:
            used = self.isolation.values()
            self.isolation[isolation_network] = min(set(range(1, len(used) + 2)) - set(used))
        return self._attached(name, attachment)

    def _attached(self, handle: str, attachment: dict[str, Any]) -> dict[str, Any]:
        if not handle.startswith("guest:"):
            known = _subnet(self.services[attachment["service"]]) if container_of(handle) else {}
            if handle.startswith("netns:"):
                name = handle.partition("/")[2]
                shown = {"name": name, "mac": mac(attachment["address"]), "mtu": MTU, "host_name": "(link)"}
                known["interface"] = shown
            return {"result": "attached", "ip": attachment["address"], **known}
        own = {"endpoint": "", "keepalive": 0, "listed": [host_network(attachment["address"])], "added": []}
        self.peers.setdefault((GLOBAL, made_for(handle)), own)
        return {
            "result": "guest_config",
            "overlay_ip": attachment["address"],
            "prefix_len": ip_network(self.overlay["cluster"]).prefixlen,
            **self._entrance(self.overlay["cluster"]),
            "listen_port": self.overlay["wg_port"],
            **self.name_server_for([attachment["service"]], [self.overlay["cluster"]]),
        }

    def is_attached(self, handle: dict[str, Any]) -> bool:
        return _handle(handle) in self.attachments

    def _detach_container(self, handle: dict[str, Any]) -> None:
        if _handle(handle) in self.attachments:
            self._detach(_handle(handle))

    def _detach(self, handle: str) -> None:
        attachment = self.attachments.pop(handle)
        for address in filter(None, (attachment["address"], attachment["global"])):
            self._release(address)
        self.peers.pop((GLOBAL, made_for(handle)), None)
        others = self.attachments.values()
        if attachment["isolation"] and all(other["isolation"] != attachment["isolation"] for other in others):
            del self.isolation[attachment["isolation"]]
        if attachment["ephemeral"] and attachment["service"] in self.services:
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
        addresses = self.records.setdefault(name, [])
        if ip not in addresses:
            addresses.append(ip)

    def _unregister_dns(self, name: str, ip: str | None = None) -> None:
        addresses = self.records.get(name, [])
        if ip in addresses:
            addresses.remove(ip)
        if ip is None or not addresses:
            self.records.pop(name, None)


def mac(address: str) -> str:
    """That of the container's end, which follows from its address."""
    return (b"\2\x6f" + ip_address(address).packed[-4:]).hex(":")


def _subnet(service: dict[str, Any]) -> dict[str, Any]:
    """What an answer tells of a service's subnet."""
    subnet = ip_network(service["subnet"])
    return {"subnet": str(subnet), "gateway": str(subnet[1]), "prefix_len": subnet.prefixlen}


def _named(name: str, old: dict[str, Any]) -> dict[str, Any]:
    """A link's names: the one it answers to, the one it had before, the one it was made with."""
    if not old:
        return {"name": name, "first name": name}
    if old["name"] == name:
        return {key: old[key] for key in ("name", "first name", "alternative") if key in old}
    return {"name": name, "first name": old["first name"], "alternative": old["name"]}


def _handle(handle: dict[str, Any]) -> str:
    """How holders of addresses and rows are named after it."""
    if handle["platform"] == "linux_netns":
        return f"netns:{handle['id']}/{handle['ifname']}"
    prefix = {"linux_pid": "pid", "guest_managed": "guest", "host_shared": "host"}[handle["platform"]]
    return f"{prefix}:{handle.get('pid', handle.get('id'))}"


def _fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value
