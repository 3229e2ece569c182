"""What a cell shows, in a form that can be compared: kernel, disk and the daemon's own word.

Owns: reading them, and blanking what differs from one run of the same requests to another.  Must not know: what should
be there.

The kernel is read through `network`, `wg` and `nft`, the journal by the few lines below: not through overlayd's own
code, which is what is judged.  Blanked are keys that the daemon made, and what numbers the kernel gave to namespaces
and processes.  Left out is what the kernel adds by itself (IPv6 link-local addresses and their routes, the address that
the routers of a network share, which outlives the one that it came with), and our nftables tables while they hold no
element, in which case they do nothing: the first request that needs them leaves them behind when it is taken back.
"""

import base64
import json
import re
import struct
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from crash.cell import Cell
from crash.network import Network

View = dict[str, dict[str, Any]]

# What of an interface matters.
LINK = ("mtu", "group", "ifalias", "master", "address", "altnames")

_KEY = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=")  # base64 of 32 bytes
_HOST_END = re.compile(r"zl-([cg])[0-9a-f]{10}")  # of a container that is attached by its namespace
_TIME = re.compile(r'("(?:minted|expires|minted_at_unix|expires_at_unix|down_ms)":) [0-9]+')
_RECORD = struct.Struct("<4sIIQQ")  # of the journal: marker, checksum, length, sequence, floor
_HEADER_BYTES = 32


def take(cell: Cell, known_keys: frozenset[str] = frozenset()) -> View:
    """Everything that `cell` shows, its daemon running and idle.

    known_keys: those of the requests, which stay as they are; every other one was made by the daemon.
    """
    cell.reap()
    devices = _start("wg", "show", "all", "dump")
    firewall = _start("nft", "-j", "list", "ruleset")
    view: View = {
        "host": _host(),
        "wireguard": _wireguard(_finish(devices)),
        "elements": _elements(_finish(firewall)),
        "rows": rows(cell),
        "status": _status(cell),
        "left": {"files": _files(cell), "processes": _programs("wireguard-go"), "ports": _udp_ports(cell.daemon)},
    }
    # A device is reached by the name of its link; that it may still be reached by an older one does no harm.
    view["wireguard"] = {
        name: shown for name, shown in view["wireguard"].items() if f"link {name.partition(' ')[2]}" in view["host"]
    }
    links = [name.removeprefix("link ") for name in view["host"] if name.startswith(("link zl-", "link veth-"))]
    forwarding = (link for link in links if link.startswith("zl-") and not _HOST_END.fullmatch(link))
    view["forwarding"] = _forwarding(forwarding) | _routers(links)
    for pid in sorted(cell.containers):
        view[f"container {pid}"] = {name: it for name, it in _container(pid).items() if " lo" not in name}
    own = view["status"]["public_key"]
    view["status"]["changed identity"] = bool(cell.identity) and cell.identity != own
    cell.identity = own
    blanked: View = blank(view, known_keys, {own: "(own)"} | _made_keys(view) | _host_ends(view))
    for part in ("wireguard", "status", "elements"):  # the order was that of keys, and of names
        blanked[part] = {
            name: sorted(it, key=json.dumps) if isinstance(it, list) else it for name, it in blanked[part].items()
        }
    return blanked


def _made_keys(view: View) -> dict[str, str]:
    """For whom the daemon made public keys, as far as they are known here."""
    found = {service["public_key"]: service["service"] for service in view["status"].get("dedicated_services", ())}
    names = {key: f"(of service:{name})" for key, name in found.items()}
    for id, row in view["rows"].items():
        if "handle" in row and "public_key" in row:
            names[row["public_key"]] = f"(of {row['handle']})"
        elif id.startswith("edge "):
            names[row["public_key"]] = f"(of edge:{row['name']})"
    return names


def _host_ends(view: View) -> dict[str, str]:
    """What the links are called that have a hash for a name, by what they say of themselves."""
    found = {}
    for name, link in view["host"].items():
        end = _HOST_END.fullmatch(name.removeprefix("link "))
        if end is not None and "[" in link.get("ifalias", ""):
            _network, handle, _interface = json.loads(link["ifalias"][link["ifalias"].index("[") :])
            found[end[0]] = f"veth-{handle.removeprefix('netns:')}-{end[1].replace('c', 's')}"
    return found


def remains(cell: Cell) -> list[str]:
    """What of ours is there, as far as `overlayd --teardown` removes it."""
    cell.reap()
    found = [name for name, thing in _host().items() if _carries_our_mark(name, thing)]
    tables = _finish(_start("nft", "list", "tables"))
    found += [table for table in tables.splitlines() if "overlayd" in table]
    for pid in sorted(cell.containers):
        found += [f"{name} in container {pid}" for name in _container(pid) if _ours(name)]
    found += [f"/run/wireguard/{file.name}" for file in Path("/run/wireguard").glob("*")]
    return found + ["wireguard-go"] * _programs("wireguard-go")


def _carries_our_mark(name: str, thing: dict[str, Any]) -> bool:
    return name.startswith(("link zl-", "link veth-")) or thing.get("protocol") == "111"


def blank(shown: Any, known_keys: frozenset[str], names: dict[str, str] | None = None) -> Any:
    """`shown` without the times at which the daemon did something, and with `names` for the keys that it made."""
    words = (names or {}) | {key: key for key in known_keys}
    text = _KEY.sub(lambda match: words.get(match[0], "(made)"), json.dumps(shown))
    text = _HOST_END.sub(lambda match: words.get(match[0], "(link)"), text)
    return json.loads(_TIME.sub(r"\1 0", text))


def difference(expected: Any, found: Any, where: str = "") -> list[str]:
    """How two views differ, a line each; empty when they do not."""
    if expected == found:
        return []
    if not (isinstance(expected, dict) and isinstance(found, dict)):
        return [f"{where}: expected {_short(expected)}, found {_short(found)}"]
    return [
        line
        for key in sorted(expected.keys() | found.keys())
        for line in difference(expected.get(key), found.get(key), f"{where} {key}".strip())
    ]


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) < 300 else f"{text[:300]}..."


def rows(cell: Cell) -> dict[str, Any]:
    """What is in the journal, by table and key."""
    journal = cell.data / "journal"
    return _rows(journal.read_bytes()) if journal.exists() else {}


def _start(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(program: subprocess.Popen[str]) -> str:
    text, errors = program.communicate()
    if program.returncode:
        raise RuntimeError(f"{program.args}: exit code {program.returncode}\n{errors}")
    return text


def _host() -> dict[str, Any]:
    """The cell's own namespace.  With its links and routes: for whom which bridge answers ARP and neighbour discovery,
    and which MAC a port is held to, the entries of a bridge's forwarding database that it did not learn.
    """
    with Network() as network:
        proxies = {f"proxy {address} {link}": {} for address, link in network.proxies()}
        entries = {f"MAC {mac} {link}": {} for mac, link in network.static_entries()}
        return links_and_routes(network.links(), network.routes()) | proxies | entries


def _container(pid: int) -> dict[str, Any]:
    with Network(Path(f"/proc/{pid}/ns/net")) as network:
        return links_and_routes(network.links(), network.routes())


def links_and_routes(links: Iterable[dict[str, Any]], routes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What of a namespace's links, with their addresses, and of its routes matters."""
    found: dict[str, Any] = {}
    for link in links:
        shown = {key: link[key] for key in LINK if key in link}
        kind = link.get("linkinfo", {}).get("info_kind", "")
        if kind == "tun" or link["ifname"] in ("uplink", "cable"):
            shown.pop("address", None)  # random
        shown["kind"] = kind
        if "locked" in (port := link.get("linkinfo", {}).get("info_slave_data", {})):
            shown["locked"] = port["locked"]
        shown["up"] = "UP" in link["flags"]
        shown["addresses"] = sorted(
            f"{address['local']}/{address['prefixlen']}"
            for address in link["addr_info"]
            if not address["local"].startswith("fe80:")
        )
        found[f"link {link['ifname']}"] = shown
    for route in routes:
        destination = route["dst"]
        if not destination.startswith(("fe80:", "ff00:")) and route.get("type") != "anycast":
            unreachable = route.get("type") == "unreachable"
            keys = ("gateway", "protocol", "prefsrc", "type", *(["metric"] if unreachable else []))
            where = {key: route[key] for key in keys if key in route}
            found[f"route {destination} {route.get('dev')} {route.get('table', 'main')}"] = where
    return found


def _ours(name: str) -> bool:
    """Whether something in a container is ours to take back: its loopback stays up, what it has of its own stays."""
    own = name.startswith("link own") or name.endswith((" own0 main", " own0 local", " own1 main", " own1 local"))
    return name != "link lo" and " lo " not in name and not own


def _forwarding(links: Iterable[str]) -> dict[str, str]:
    """What the kernel is told about forwarding, in general and by link."""
    parameters = [f"ipv4/conf/{link}/{what}" for link in links for what in ("forwarding", "rp_filter")]
    parameters += ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
    return {name: (Path("/proc/sys/net") / name).read_text().strip() for name in parameters}


def _routers(links: Iterable[str]) -> dict[str, str]:
    """Whether links take router advertisements and redirects."""
    names = [f"ipv6/conf/{link}/{what}" for link in links for what in ("accept_ra", "accept_redirects")]
    return {name: (Path("/proc/sys/net") / name).read_text().strip() for name in names}


def _wireguard(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in text.splitlines():
        device, *fields = line.split("\t")
        if len(fields) == 4:
            _private, public, port, mark = fields
            found[f"device {device}"] = {"key": public, "port": port, "mark": mark}
        else:
            key, _psk, endpoint, allowed, _handshake, _rx, _tx, keepalive = fields
            found.setdefault(f"peers {device}", {})[key] = [endpoint, keepalive, sorted(allowed.split(","))]
    for peers in [name for name in found if name.startswith("peers ")]:
        found[peers] = [[key, *rest] for key, rest in found[peers].items()]  # keys as values: some are blanked
    return found


def _elements(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rules = []
    for item in json.loads(text)["nftables"]:
        holder = item.get("set") or item.get("map")
        if holder is not None and holder.get("elem") and "timeout" not in holder.get("flags", ()):  # of packets
            elements = holder["elem"]
            found[f"{holder['family']} {holder['table']} {holder['name']}"] = sorted(elements, key=json.dumps)
        elif "rule" in item:
            rules.append({**item["rule"], "handle": None})
    if found:
        found["rules"] = len(rules), json.dumps(rules)
    return found


def _rows(data: bytes) -> dict[str, Any]:
    """The rows of a journal, by its format alone: each record sets and removes rows."""
    rows: dict[str, Any] = {}
    at = _HEADER_BYTES
    while at + _RECORD.size <= len(data):
        _marker, _crc, length, _sequence, _floor = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        put, removed = json.loads(data[at : at + length])
        at += length
        for table, changed in put.items():
            rows |= {f"{table} {key}": row for key, row in changed.items()}
        for table, keys in removed.items():
            for key in keys:
                rows.pop(f"{table} {key}", None)
    if "host " in rows:
        rows["host "]["boot_id"] = "(boot)"
    for row in rows.values():
        row.pop("since", None)
        if row.get("netns"):
            row["netns"] = row["netns"]["pid"]
        if row.get("file"):
            row["file"] = row["file"]["path"]
    released = sorted((row["pool"], row["released"]) for row in rows.values() if "released" in row)
    for row in rows.values():
        if "released" in row:  # only the order within the pool matters
            row["released"] = [number for pool, number in released if pool == row["pool"]].index(row["released"])
    return {_with_base64(id): row for id, row in rows.items()}


def _with_base64(id: str) -> str:
    """A peer's row is named after its key in hex; everything else shows keys in base64."""
    table, _, key = id.partition(" ")
    if table != "peer":
        return id
    return f"peer {base64.b64encode(bytes.fromhex(key[:64])).decode()}{key[64:]}"


def _status(cell: Cell) -> dict[str, Any]:
    answer = cell.request("status")
    if answer is None:
        cell.await_end()  # it says why at the very end
        raise RuntimeError(f"the daemon died of a status request\n{cell.last_words()}")
    for peer in answer.get("peers", ()):
        peer.pop("last_handshake_unix_secs")
    for static in ("version", "backend", "mtu", "wg_port", "node_id", "started_at_unix", "findings"):
        answer.pop(static, None)  # of this run, or in a row as well
    return answer


def _files(cell: Cell) -> list[str]:
    places = (cell.data, Path("/run/wireguard"))
    found = (path for place in places if place.exists() for path in place.iterdir())
    names = (path.name for path in found if not path.is_symlink())  # which are other names of a device
    # The kernel ends a write of who is killed at a page, and what was written of it is kept by the next start.
    return sorted(name for name in names if not name.startswith("journal.torn-"))


def _programs(name: str) -> int:
    count = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        count += Path(arguments[0].decode()).name == name
    return count


def _udp_ports(daemon: int) -> list[int]:
    """The UDP ports in use, but for those by which the daemon asks a name server.  What it opens for a moment between
    a look at the sockets and one at whose they are is gone at the second reading.
    """
    return sorted(port for _, port in _foreign_sockets(daemon) & _foreign_sockets(daemon))


def _foreign_sockets(daemon: int) -> set[tuple[str, int]]:
    """The UDP sockets that are not the daemon's: inode and port."""
    own = set()
    for file in Path(f"/proc/{daemon}/fd").iterdir():
        with suppress(FileNotFoundError):
            own.add(str(file.readlink()))
    sockets = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {
        (fields[9], int(fields[1].rpartition(":")[2], 16)) for fields in sockets if f"socket:[{fields[9]}]" not in own
    }
