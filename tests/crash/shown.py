"""What a machine shows when it is in a state of the model.

Owns: links, routes, addresses, set members, rows and status that follow from the model, in the form of `view`.  Must
not know: how the state came to be; overlayd.
"""

import json
from ipaddress import ip_address, ip_network
from typing import Any

from crash.model import Model

View = dict[str, dict[str, Any]]

MTU = 1440  # of an uplink of 1500 without IPv6, less WireGuard's headers over IPv4


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
            f"ipv4/conf/{name.removeprefix('link ')}/{what}": value
            for name in _host(model)
            if name.startswith("link zl-")
            for what, value in (("forwarding", "1"), ("rp_filter", "2"))
        },
    }
    for pid in model.containers:
        view[f"container {pid}"] = _inside(model, pid)
    texts: View = json.loads(json.dumps(view))
    return texts


def _node_address(model: Model) -> str:
    return str(ip_network(model.overlay["slice"] or model.overlay["cluster"])[1])


def _up(model: Model) -> bool:
    return bool(model.overlay) and model.overlay["up"]


def _host(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if _up(model):
        prefix = ip_network(model.overlay["cluster"]).prefixlen
        found |= _link(model.overlay, "tun", 1, "overlayd device ", f"{_node_address(model)}/{prefix}")
    for name, service in model.services.items():
        subnet = ip_network(service["subnet"])
        found |= _link(service, "bridge", 2, f"overlayd bridge {name}", f"{subnet[1]}/{subnet.prefixlen}")
    for pid, attachment in model.attachments.items():
        bridge = model.services[attachment["service"]]["name"]
        found |= _link({"name": f"veth-{pid}-s"}, "veth", 3, "", "", master=bridge)
        if attachment["global"]:
            found |= _link({"name": f"veth-{pid}-g"}, "veth", 3, "", "")
            found[f"route {attachment['global']} veth-{pid}-g main"] = {"protocol": "111"}
    return found


def _inside(model: Model, pid: int) -> dict[str, Any]:
    attachment = model.attachments.get(pid)
    if not attachment:
        return {}
    subnet = ip_network(model.services[attachment["service"]]["subnet"])
    found = _link({"name": "eth0"}, "veth", 0, "", f"{attachment['address']}/{subnet.prefixlen}")
    found["route default eth0 main"] = {"gateway": str(subnet[1]), "protocol": "111"}
    if attachment["global"]:
        bits = ip_address(attachment["global"]).max_prefixlen
        found |= _link({"name": "eth1"}, "veth", 0, "", f"{attachment['global']}/{bits}")
        found[f"route {_node_address(model)} eth1 main"] = {"protocol": "111"}
        found[f"route {model.overlay['cluster']} eth1 main"] = {"gateway": _node_address(model), "protocol": "111"}
    return found


def _wireguard(model: Model) -> dict[str, Any]:
    if not _up(model):
        return {}
    peers = [
        [
            key,
            peer["endpoint"] if peer["endpoint"][0].isdigit() else "(none)",
            str(peer["keepalive"] or "off"),
            sorted({*peer["listed"], *peer["added"]}) or ["(none)"],
        ]
        for key, peer in model.peers.items()
    ]
    found: dict[str, Any] = {}
    name = model.overlay["name"]
    found[f"device {name}"] = {"key": "(own)", "port": str(model.overlay["wg_port"]), "mark": "off"}
    return found | ({f"peers {name}": sorted(peers)} if peers else {})


def _elements(model: Model) -> dict[str, Any]:
    if not model.overlay:
        return {}
    cluster = ip_network(model.overlay["cluster"])
    prefix = {"prefix": {"addr": str(cluster.network_address), "len": cluster.prefixlen}}
    gateways = [str(ip_network(service["subnet"])[1]) for service in model.services.values()]
    addresses, ports = [], []
    for pid, attachment in model.attachments.items():
        if attachment["isolation"]:
            number = f"0:{model.isolation[attachment['isolation']]:x}"
            ports.append((number, f"veth-{pid}-s"))
            addresses += [(number, ip) for ip in (attachment["address"], attachment["global"]) if ip]
    version = cluster.version
    found = {
        f"inet overlayd cluster{version}": [prefix],
        f"inet overlayd node{version}": [_node_address(model), *gateways],
        f"inet overlayd network{version}": [[address, number] for number, address in addresses],
        f"inet overlayd member{version}": [{"concat": list(pair)} for pair in addresses],
        "bridge overlayd network": [[port, number] for number, port in ports],
        "bridge overlayd member": [{"concat": list(pair)} for pair in ports],
    }
    return {name: sorted(elements, key=json.dumps) for name, elements in found.items() if elements}


def _rows(model: Model) -> dict[str, Any]:
    rows = {"node ": _row(private_key="(made)", node_id=model.node_id, announced_key=model.announced)}
    if model.overlay:
        row = _row(**{key: model.overlay[key] for key in ("deployment", "instance_id", "cluster", "slice", "wg_port")})
        down = {} if model.overlay["up"] else {"up": False}
        rows["overlay "] = row | {"interface": model.overlay["name"]} | down
    for name, service in model.services.items():
        bridge = service["name"]
        flags = {flag: service[flag] for flag in ("lasting", "left")}
        rows[f"service {name}"] = _row(name=name, subnet=service["subnet"], bridge=bridge, **flags)
    for key, peer in model.peers.items():
        rows[f"peer {key}/"] = _row(public_key=key, **peer)
    order = sorted(lease["released"] for lease in model.leases.values() if "released" in lease)
    for address, lease in model.leases.items():
        rank = {"released": order.index(lease["released"])} if "released" in lease else {}
        row = _row(address=address, holder=lease["holder"])
        rows[f"lease {address}"] = row | {"pool": lease["pool"]} | rank
    for pid, attachment in model.attachments.items():
        rows[f"attachment pid:{pid}"] = _row(
            handle=f"pid:{pid}",
            service=attachment["service"],
            address=attachment["address"],
            ephemeral=attachment["ephemeral"],
            netns=pid,
            boot_id=f"00000000-0000-4000-8000-{model.boots:012}",
            global_address=attachment["global"],
            isolation_network=attachment["isolation"],
        )
    for name, address in model.records.items():
        rows[f"record {name}"] = _row(name=name, address=address)
    for name, number in model.isolation.items():
        rows[f"isolation {name}"] = _row(name=name, number=number)
    return rows


def _status(model: Model) -> dict[str, Any]:
    status = {
        "result": "status",
        "public_key": "(own)",
        "peer_count": len(model.peers) if _up(model) else 0,
        "service_count": len(model.services),
        "changed identity": False,
    }
    if _up(model):
        peers = [
            {
                "public_key": key,
                "endpoint": peer["endpoint"],
                "allowed_ips": ",".join(dict.fromkeys(peer["listed"] + peer["added"])),
            }
            for key, peer in model.peers.items()
        ]
        status |= _row(
            interface=model.overlay["name"],
            node_ip=_node_address(model),
            overlay_cidr=model.overlay["cluster"],
            slice_cidr=model.overlay["slice"],
            peers=sorted(peers, key=json.dumps),
        )
    return status


def _left(model: Model) -> dict[str, Any]:
    sockets = [f"{model.overlay['first name']}.sock"] if _up(model) else []
    ports = [model.overlay["wg_port"]] if _up(model) else []
    return {"files": sorted(["journal", "lock", *sockets]), "processes": int(_up(model)), "ports": ports}


def seen(view: View) -> View:
    """What of a `view.View` the model speaks about: no MACs, no routes that the kernel makes, no fixed rules."""
    kept: View = {part: dict(content) for part, content in view.items()}
    kept["elements"].pop("rules", None)
    kept["forwarding"] = {name: value for name, value in kept["forwarding"].items() if "/conf/zl-" in name}
    for part, content in view.items():
        if part == "host" or part.startswith("container "):
            kept[part] = {
                name: {key: value for key, value in thing.items() if key != "address"}
                for name, thing in content.items()
                if thing.get("protocol") == "111"
                or (name.startswith("link ") and name not in ("link lo", "link uplink", "link cable"))
            }
    return kept


def _link(names: dict[str, Any], kind: str, group: int, alias: str, address: str, **more: str) -> dict[str, Any]:
    shown = {
        "mtu": MTU,
        "group": str(0x6F760000 + group) if group else "default",
        "kind": kind,
        "up": True,
        "addresses": [address] if address else [],
        **more,
    }
    if alias:
        shown["ifalias"] = alias
    if "alternative" in names:
        shown["altnames"] = [names["alternative"]]
    return {f"link {names['name']}": shown}


def _row(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value}
