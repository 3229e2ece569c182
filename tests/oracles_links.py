"""The slow and obvious reading of a link's message, for the fast one to agree with."""

from socket import AF_INET, AF_INET6
from typing import Any

from overlayd.proto.netlink import attributes, number, string

HEAD = 16


def link_attributes(body: bytes) -> dict[str, Any]:
    view = memoryview(body)
    found = dict(attributes(view[HEAD:]))
    info = dict(attributes(found[18])) if 18 in found else {}
    families = dict(attributes(found[26])) if 26 in found else {}
    kind = string(info[1]) if 1 in info else ""
    port = found.get(12)
    if port is None and 4 in info and string(info[4]) == "bridge":
        port = info.get(5)
    return {
        "index": int.from_bytes(body[4:8], "little", signed=True),
        "flags": number(view[8:12]),
        "name": string(found[3]) if 3 in found else "",
        "mtu": number(found.get(4)),
        "group": number(found.get(27)),
        "master": number(found.get(10)),
        "peer": number(found.get(5)),
        "peer_namespace": int.from_bytes(found[37][:4], "little", signed=True) if 37 in found else None,
        "queue": number(found[13]) if 13 in found else None,
        "kind": kind,
        "alias": string(found[20]) if 20 in found else "",
        "mac": bytes(found.get(1, b"")),
        "alternative_names": tuple(string(value) for at, value in attributes(found.get(52, view[:0])) if at == 53),
        "ipv4": _parameters(families.get(AF_INET)),
        "ipv6": _parameters(families.get(AF_INET6)),
        "bridge_options": _options(info.get(2)) if kind == "bridge" else None,
        "port_options": _options(port),
    }


def _parameters(family: memoryview | None) -> bytes:
    return bytes(dict(attributes(family)).get(1, b"")) if family is not None else b""


def _options(data: memoryview | None) -> dict[int, bytes] | None:
    return None if data is None else {at: bytes(value) for at, value in attributes(data)}
