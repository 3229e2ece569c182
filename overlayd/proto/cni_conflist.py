"""The list of plugins by which a container runtime finds our network.

Owns: its form, written and read.  Must not know: where it lies.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from overlayd.proto import cni_network
from overlayd.proto.cni import INVALID_CONFIG, NAME, NOT_DECODED, VERSIONS, CniError, Environment, quoted
from overlayd.proto.cni_network import POD_ANNOTATIONS, Asked

PLUGIN = "overlayd-cni"
CHAINED: dict[str, dict[str, Any]] = {
    "portmap": {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
}
# What runtimes of 2022 still in use (libcni before 1.2) read alone; newer ones choose from `cniVersions`.
USUAL = "1.0.0"


def conflist(name: str, subnet: str, chained: Collection[str], versions: Collection[str] = VERSIONS) -> bytes:
    """The list of our plugin, and behind it those of `CHAINED` that are named.  versions: that all of them speak.
    CniError 7: no network has that name, or the plugins have no version in common.
    """
    common = [each for each in VERSIONS if each in versions]
    if not NAME.fullmatch(name):
        raise CniError(INVALID_CONFIG, f"{quoted(name)} is not the name of a network: letters, digits, _, . and -")
    if not common:
        raise CniError(INVALID_CONFIG, f"the plugins speak {', '.join(versions)}, and overlayd-cni none of these")
    own = {"type": PLUGIN, "subnet": subnet, "capabilities": {"ips": True, "mac": True, "dns": True, "aliases": True}}
    own["capabilities"][POD_ANNOTATIONS] = True  # type: ignore[index]
    found = {
        "cniVersion": USUAL if USUAL in common else common[-1],
        "cniVersions": common,
        "name": name,
        "plugins": [own, *(CHAINED[each] for each in chained)],
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def read(text: str) -> Asked:
    """What STATUS asks for in a list of plugins that has ours first.  CniError says what is wrong with it."""
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise CniError(NOT_DECODED, f"not a list of plugins: {error}") from error
    plugins = found.get("plugins")
    if not isinstance(plugins, list) or not plugins or not isinstance(plugins[0], dict):
        raise CniError(INVALID_CONFIG, "plugins: there is none")
    if plugins[0].get("type") != PLUGIN:
        raise CniError(INVALID_CONFIG, f"plugins: {PLUGIN} makes the interface, and comes first")
    config = {**plugins[0], "name": found.get("name"), "cniVersion": "1.1.0"}
    return cni_network.parse(Environment(command="STATUS"), msgspec.json.encode(config).decode())
