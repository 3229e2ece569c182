"""What a machine shows when it is in a state of the model.

Owns: links, routes, addresses, set members, rows and status that follow from the model, in the form of `view`.  Must
not know: how the state came to be; overlayd.
"""

import json
from collections.abc import Iterable
from ipaddress import collapse_addresses, ip_address, ip_network
from pathlib import Path
from typing import Any

from crash.model import MTU, Model, mac
from crash.model_peers import inside
from crash.model_state import GLOBAL, WIREGUARD_GO, Network, container_of, host_network, made_for

View = dict[str, dict[str, Any]]

FENCE_METRIC = 4294967294
SET_ASIDE = 0x6F760010  # the table that a container's own routes are kept in
MARK = "overlayd veth: the container's own routes are set aside"
FORWARDS = (("ipv4", "forwarding", "1"), ("ipv4", "rp_filter", "2"))
IGNORES_ROUTERS = (("ipv6", "accept_ra", "0"), ("ipv6", "accept_redirects", "0"))
FOREIGN_LINKS = ("link lo", "link uplink", "link cable", "link own0", "link own1")


# The versions of IP whose packets inside a bridge this machine's kernel shows to packet filters, as it does from birth.
_CALLS = ((4, "bridge-nf-call-iptables"), (6, "bridge-nf-call-ip6tables"))
BRIDGED = [version for version, name in _CALLS if Path("/proc/sys/net/bridge", name).exists()]


def view(model: Model) -> View:
    """What the machine must show, as far as `seen` keeps it."""
    view: View = {
        "host": _host(model),
        "wireguard": _wireguard(model),
        "elements": _elements(model),
        "rows": _rows(model),
        "status": _status(model),
        "left": _left(model),
        "forwarding": {
            f"{version}/conf/{name.removeprefix('link ')}/{what}": value
            for name in _host(model)
            if name.startswith("link ")
            for version, what, value in (FORWARDS if name.startswith("link zl-") else ()) + IGNORES_ROUTERS
        },
    }
    for pid in model.containers:
        view[f"container {pid}"] = _inside(model, pid)
    texts: View = json.loads(json.dumps(view))
    return texts


def _up(model: Model) -> bool:
    return bool(model.overlay) and model.overlay["up"]


def _devices(model: Model) -> dict[str, dict[str, Any]]:
    """The WireGuard devices by scope: names, port and address."""
    found: dict[str, dict[str, Any]] = {}
    if _up(model):
        prefix = ip_network(model.overlay["cluster"]).prefixlen
        own = f"{model.node_address}/{prefix}" if not _slice_service(model) else host_network(model.node_address)
        found[GLOBAL] = {**model.overlay, "own address": own, "key": "(own)"}
    for name, service in model.services.items():
        if service["device"]:
            address = host_network(str(ip_network(service["subnet"])[1]))
            found[name] = {**service["device"], "own address": address, "key": made_for(f"service:{name}")}
    return found


def _slice_service(model: Model) -> str:
    return str(model.overlay.get("slice_service", ""))


def _beside_the_slice(model: Model, address: str) -> dict[str, Any]:
    """What is there for an address of the slice that is not on the slice's bridge."""
    name = _slice_service(model)
    return {f"proxy {address} {model.services[name]['name']}": {}} if name else {}


def _host(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if _slice_service(model) and _up(model):
        found |= _routes(model.overlay["name"], [model.overlay["cluster"]], prefsrc=model.node_address)
        for edge in model.edges.values():
            found |= _routes(model.overlay["name"], [edge["address"]]) | _beside_the_slice(model, edge["address"])
    if _is_fenced(model):
        found |= _fences([model.overlay["cluster"]])
    for scope, device in _devices(model).items():
        aliases = [it["address"] for handle, it in model.attachments.items() if handle.startswith("host:")]
        addresses = [host_network(address) for address in aliases if scope == GLOBAL]
        alias = f"overlayd device {scope}" if scope else f"overlayd node {_label(model)}"
        found |= _link(device, "tun", 1, alias, device["own address"], *addresses)
    for name, service in model.services.items():
        subnet = ip_network(service["subnet"])
        found |= _link(service, "bridge", 2, f"overlayd bridge {name}", f"{subnet[1]}/{subnet.prefixlen}")
    for (scope, key), peer in model.peers.items():
        routed = [cidr for cidr in model.installed(key, peer) if model.has_route(scope, cidr)]
        if scope != GLOBAL or _up(model):
            device = model.overlay["name"] if scope == GLOBAL else model.services[scope]["device"]["name"]
            found |= _routes(device, routed)
        if scope != GLOBAL or _is_fenced(model):
            found |= _fences(each for each in routed if not _is_inside(each, model.overlay["cluster"]))
    for handle, attachment in model.attachments.items():
        kind, _, id = handle.partition(":")
        service = model.services.get(attachment["service"], {})
        if container_of(handle):
            mark = MARK if kind == "pid" else f"overlayd aside {_container_label(handle)}"
            if not _is_set_aside(model, container_of(handle), handle):
                mark = "" if kind == "pid" else f"overlayd netns {_container_label(handle)}"
            found |= _link({"name": f"veth-{id}-s"}, "veth", 3, mark, master=service["name"], locked=True)
            found[f"MAC {mac(attachment['address'])} veth-{id}-s"] = {}
            if attachment["global"]:
                # So that a strictly filtering host takes what comes from there; IPv6 knows no such filter.
                asked = [host_network(model.node_address)] if ip_network(attachment["global"]).version == 4 else []
                second = "" if kind == "pid" else f"overlayd netns {_container_label(handle)}"
                found |= _link({"name": f"veth-{id}-g"}, "veth", 3, second, *asked)
                found |= _routes(f"veth-{id}-g", [attachment["global"]])
                found |= _beside_the_slice(model, attachment["global"])
        elif _up(model) and model.leases[attachment["address"]]["pool"] == "":
            found |= _beside_the_slice(model, attachment["address"])
            if kind == "guest" and _slice_service(model):
                found |= _routes(model.overlay["name"], [attachment["address"]])
        elif kind == "guest" and _up(model) and model.leases[attachment["address"]]["pool"]:
            found |= _routes(model.overlay["name"], [attachment["address"]])
            found[f"proxy {attachment['address']} {service['name']}"] = {}
    return found


def _label(model: Model) -> str:
    """What the global device says of the overlay, for whoever finds it without its state."""
    told = [model.overlay[key] or "" for key in ("deployment", "instance_id", "slice")]
    return json.dumps([*told, model.node_id], separators=(",", ":"))


def _container_label(handle: str) -> str:
    """What a link says of a container that is attached by its namespace."""
    return json.dumps(["", handle, handle.partition("/")[2]], separators=(",", ":"))


def _is_set_aside(model: Model, pid: int, handle: str = "") -> bool:
    """Whether a container's own way out is set aside for ours.  handle: of which of its attachments, empty for any."""
    return pid % 2 == 1 and any(
        each["default"] and ip_address(each["address"]).version == 4
        for name, each in model.attachments.items()
        if container_of(name) == pid and handle in ("", name)
    )


def _inside(model: Model, pid: int) -> dict[str, Any]:
    table = SET_ASIDE if _is_set_aside(model, pid) else "main"
    found: dict[str, Any] = {f"route default own0 {table}": {}} if pid % 2 else {}
    for handle, attachment in model.attachments.items():
        if container_of(handle) == pid:
            own = handle.partition("/")[2]
            found |= _interfaces(model, attachment, *((own, f"{own}-g") if own else ("eth0", "eth1")))
    return found


def _interfaces(model: Model, attachment: dict[str, Any], first: str, second: str) -> dict[str, Any]:
    subnet = ip_network(model.services[attachment["service"]]["subnet"])
    found = _link({"name": first}, "veth", 0, "", f"{attachment['address']}/{subnet.prefixlen}")
    routes = ["default"] if attachment["default"] else []
    routes += [model.overlay["cluster"]] if attachment["joined"] else []
    found |= _routes(first, routes, gateway=str(subnet[1]))
    if attachment["global"]:
        found |= _link({"name": second}, "veth", 0, "", host_network(attachment["global"]))
        found |= _routes(second, [model.node_address])
        found |= _routes(second, [model.overlay["cluster"]], gateway=model.node_address)
    return found


def _wireguard(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for scope, device in _devices(model).items():
        name = device["name"]
        found[f"device {name}"] = {"key": device["key"], "port": str(device["wg_port"]), "mark": "off"}
        peers = [
            [
                key,
                peer["endpoint"] if peer["endpoint"][:1].isdigit() else "(none)",
                str(peer["keepalive"] or "off"),
                sorted(model.installed(key, peer)) or ["(none)"],
            ]
            for (where, key), peer in model.peers.items()
            if where == scope
        ]
        if scope == GLOBAL:
            peers += [
                [made_for(f"edge:{name}"), "(none)", "off", [host_network(edge["address"])]]
                for name, edge in model.edges.items()
            ]
        if peers:
            found[f"peers {name}"] = sorted(peers, key=json.dumps)
    return found


def _elements(model: Model) -> dict[str, Any]:
    if not model.overlay:
        return {}
    cluster = ip_network(model.overlay["cluster"])
    prefix = {"prefix": {"addr": str(cluster.network_address), "len": cluster.prefixlen}}
    gateways = [str(ip_network(service["subnet"])[1]) for service in model.services.values()]
    version = cluster.version
    addresses, ports, sources, legs = [], [], [], []
    for handle, attachment in model.attachments.items():
        if container_of(handle):
            veth, own = f"veth-{handle.partition(':')[2]}", attachment["address"]
            both = [ip for ip in (own, attachment["global"]) if ip]
            # nftables lists an IPv6 address here as the number that it is
            sources += [[f"{veth}-s", mac(own), ip if version == 4 else f"{int(ip_address(ip)):#x}"] for ip in both]
            legs += [[f"{veth}-g", ip] for ip in both if attachment["global"]]
        if attachment["isolation"]:
            number = f"0:{model.isolation[attachment['isolation']]:x}"
            if container_of(handle):
                ports.append((number, f"veth-{handle.partition(':')[2]}-s"))
            addresses += [(number, ip) for ip in (attachment["address"], attachment["global"]) if ip]
    grants = [
        {"concat": [edge["address"], {"prefix": {"addr": str(each.network_address), "len": each.prefixlen}}]}
        for name, edge in model.edges.items()
        for each in _without_overlaps(edge["allowed"], model.granted_subnets(name))
    ]
    found = {
        "inet overlayd closed": ["ipv4", "ipv6"],  # a cell forwards nothing before it has an overlay
        "inet overlayd bridged": [f"ipv{each}" for each in BRIDGED],
        f"inet overlayd cluster{version}": [prefix],
        "inet overlayd tunnels": [device["wg_port"] for device in _devices(model).values()],
        f"inet overlayd node{version}": sorted({model.node_address, *gateways}),
        f"inet overlayd network{version}": [[address, number] for number, address in addresses],
        f"inet overlayd member{version}": [{"concat": list(pair)} for pair in addresses],
        f"inet overlayd edge{version}": [edge["address"] for edge in model.edges.values()],
        f"inet overlayd grant{version}": grants,
        f"inet overlayd leg{version}": [{"concat": leg} for leg in legs],
        f"bridge overlayd port{version}": [{"concat": source} for source in sources],
        "bridge overlayd network": [[port, number] for number, port in ports],
        "bridge overlayd member": [{"concat": list(pair)} for pair in ports],
    }
    return {name: sorted(elements, key=json.dumps) for name, elements in found.items() if elements}


def _without_overlaps(allowed: list[str], subnets: list[str]) -> list[Network]:
    """The CIDRs and subnets that are in no other; CIDRs that meet are one, subnets are not."""
    found: list[Network] = list(collapse_addresses(map(ip_network, allowed)))
    for subnet in map(ip_network, subnets):
        if not any(inside(subnet, cidr) for cidr in found):
            found = [cidr for cidr in found if not inside(cidr, subnet)] + [subnet]
    return found


def _rows(model: Model) -> dict[str, Any]:
    rows = {"node ": _row(private_key="(made)", node_id=model.node_id, announced_key=model.announced)}
    if model.overlay:
        row = _row(**{key: model.overlay[key] for key in ("deployment", "instance_id", "cluster", "slice", "wg_port")})
        down = {} if model.overlay["up"] else {"up": False}
        shared = _row(slice_service=_slice_service(model))
        rows["overlay "] = row | {"interface": model.overlay["name"]} | down | shared
        rows["host "] = _row(boot_id="(boot)", closed=[4, 6], bridged=BRIDGED)
    for name, service in model.services.items():
        device, bridge = service["device"], service["name"]
        flags = {flag: service[flag] for flag in ("isolated", "lasting", "left")}
        row = _row(name=name, subnet=service["subnet"], bridge=bridge, **flags)
        own = {"device": device["name"], "private_key": "(made)", "wg_port": device["wg_port"]} if device else {}
        rows[f"service {name}"] = row | own
    for (scope, key), peer in model.peers.items():
        rows[f"peer {key}/{scope}"] = _row(scope=scope, public_key=key, **peer)
    for address, lease in model.leases.items():
        row = _row(address=address, holder=lease["holder"])
        rows[f"lease {address}"] = row | {"pool": lease["pool"]} | _rank(model, lease)
    for handle, attachment in model.attachments.items():
        kind, _, id = handle.partition(":")
        rows[f"attachment {handle}"] = _row(
            handle=handle,
            service=attachment["service"],
            address=attachment["address"],
            ephemeral=attachment["ephemeral"],
            global_address=attachment["global"],
            isolation_network=attachment["isolation"],
            netns=int(id) if kind == "pid" else 0,
            file=f"/proc/{container_of(handle)}/ns/net" if kind == "netns" else "",
            interface=id.partition("/")[2] if kind == "netns" else "",
            joined=attachment["joined"],
            boot_id=f"00000000-0000-4000-8000-{model.boots:012}" if container_of(handle) else "",
            private_key="(made)" if kind == "guest" else "",
            public_key=made_for(handle) if kind == "guest" else "",
        )
        if not attachment["default"]:
            rows[f"attachment {handle}"]["default_route"] = False
    for name, edge in model.edges.items():
        grants = {"allowed": edge["allowed"]} | ({"services": edge["services"]} if edge["services"] else {})
        row = _row(name=name, address=edge["address"], public_key=made_for(f"edge:{name}"))
        rows[f"edge {name}"] = row | grants | {"minted": 0, "expires": 0}  # blanked
    for name, (address, *others) in model.records.items():
        rows[f"record {name}"] = _row(name=name, address=address, others=others)
    for name, number in model.isolation.items():
        rows[f"isolation {name}"] = _row(name=name, number=number)
    return rows


def _rank(model: Model, lease: dict[str, Any]) -> dict[str, int]:
    """A released address's place in the order in which those of its pool were released."""
    if "released" not in lease:
        return {}
    order = [each["released"] for each in model.leases.values() if each["pool"] == lease["pool"] and "released" in each]
    return {"released": sorted(order).index(lease["released"])}


def _status(model: Model) -> dict[str, Any]:
    status = {
        "result": "status",
        "public_key": "(own)",
        "peer_count": sum(scope == GLOBAL for scope, _ in model.peers) if _up(model) else 0,
        "service_count": len(model.services),
        "changed identity": False,
    }
    dedicated = [
        {
            "service": name,
            "interface": service["device"]["name"],
            "public_key": made_for(f"service:{name}"),
            "listen_port": service["device"]["wg_port"],
            "overlay_ip": str(ip_network(service["subnet"])[1]),
            "subnet": service["subnet"],
            "peer_count": sum(scope == name for scope, _ in model.peers),
        }
        for name, service in model.services.items()
        if service["device"]
    ]
    services = [
        {
            "service": name,
            "mode": "dedicated" if service["device"] else "isolated" if service["isolated"] else "shared",
            "bridge": service["name"],
            "subnet": service["subnet"],
            "gateway": str(ip_network(service["subnet"])[1]),
        }
        for name, service in model.services.items()
    ]
    devices = [
        {"interface": device["name"], "backend": "userspace", "version": WIREGUARD_GO}
        for device in _devices(model).values()
    ]
    status |= _row(devices=sorted(devices, key=json.dumps))
    status |= _row(dedicated_services=sorted(dedicated, key=json.dumps), services=sorted(services, key=json.dumps))
    if _up(model):
        peers = [
            {
                "public_key": key,
                "endpoint": peer["endpoint"],
                "allowed_ips": ",".join(dict.fromkeys(peer["listed"] + peer["added"])),
            }
            for (scope, key), peer in model.peers.items()
            if scope == GLOBAL
        ]
        status |= _row(
            interface=model.overlay["name"],
            node_ip=model.node_address,
            overlay_cidr=model.overlay["cluster"],
            slice_cidr=model.overlay["slice"],
            peers=sorted(peers, key=json.dumps),
        )
    return status


def _left(model: Model) -> dict[str, Any]:
    devices = _devices(model).values()
    sockets = [f"{device['first name']}.sock" for device in devices]
    ports = sorted(device["wg_port"] for device in devices)
    return {"files": sorted(["journal", "lock", *sockets]), "processes": len(devices), "ports": ports}


def seen(view: View) -> View:
    """What of a `view.View` the model speaks about: no MACs, no routes that the kernel makes, no fixed rules."""
    kept: View = {part: dict(content) for part, content in view.items()}
    kept["elements"].pop("rules", None)
    kept["forwarding"] = {
        name: value for name, value in kept["forwarding"].items() if "/conf/zl-" in name or "/conf/veth-" in name
    }
    for part, content in view.items():
        if part == "host" or part.startswith("container "):
            kept[part] = {
                name: {key: value for key, value in thing.items() if key != "address"}
                for name, thing in content.items()
                if thing.get("protocol") == "111"
                or name.startswith(("proxy ", "MAC "))
                or (name.startswith("link ") and name not in FOREIGN_LINKS)
            }
            kept[part] |= {name: {} for name in content if name.startswith("route default own0 ")}
    return kept


def _is_fenced(model: Model) -> bool:
    """Whether anybody may send to the overlay."""
    return bool(model.overlay and (_up(model) or model.services or model.attachments))


def _fences(destinations: Iterable[str]) -> dict[str, Any]:
    """Where packets go while no link of ours takes them."""
    where = {"type": "unreachable", "protocol": "111", "metric": FENCE_METRIC}
    return {f"route {each} {'lo' if ip_network(each).version == 6 else None} main": where for each in destinations}


def _is_inside(network: str, cluster: str) -> bool:
    inner, outer = ip_network(network), ip_network(cluster)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _routes(device: str, destinations: Iterable[str], **gateway: str) -> dict[str, Any]:
    return {f"route {each} {device} main": {**gateway, "protocol": "111"} for each in destinations}


def _link(names: dict[str, Any], kind: str, group: int, alias: str, *addresses: str, **more: str) -> dict[str, Any]:
    shown = {
        "mtu": MTU,
        "group": str(0x6F760000 + group) if group else "default",
        "kind": kind,
        "up": True,
        "addresses": sorted(addresses),
        **more,
    }
    if alias:
        shown["ifalias"] = alias
    if "alternative" in names:
        shown["altnames"] = [names["alternative"]]
    return {f"link {names['name']}": shown}


def _row(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value}
