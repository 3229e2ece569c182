"""CNI, from the daemon's side: what a runtime calls, and what it is answered (containernetworking/cni, SPEC.md 1.1.0).

Owns: where the two meet, the frames between them, the environment's forms, errors, and results in the form of each
version.  Must not know: what a network configuration may hold (`cni_network`), or what a command does.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple

import msgspec

from overlayd import errors
from overlayd.errors import LONGEST_QUOTED, OverlaydError, ProtocolError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]

# The first version that has a command; all have the others.
SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")

# Error codes: the specification's, and from 100 on our own.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
NOT_DECODED = 6
INVALID_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50
LIMITED = 51  # available, but a container that is attached may not reach everything
KERNEL = 100
NO_ADDRESS = 101
NAME_TAKEN = 102

LONGEST_ID = 200  # characters, ours, as of every attachment: a container's id has 64
LONGEST_IFNAME = 15  # bytes: IFNAMSIZ of linux/if.h, less its NUL

# SPEC.md, chapter "Parameters"; libcni has the same for names of networks.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)
_NOT_IN_IFNAME = re.compile(r"[/:%\s\x00]")  # %: the kernel makes a number of it


def socket_beside(socket: str) -> str:
    """Where shims connect to the daemon that serves clients at a path, unless it was told otherwise.  Daemons whose
    sockets are in one directory have one each.
    """
    directory, slash, name = socket.rpartition("/")
    stem = name.removesuffix(".sock")
    return f"{directory}{slash}cni.sock" if stem in ("overlayd", name) else f"{directory}{slash}{stem}.cni"


def queue_of(socket: str) -> str:
    """The directory where shims leave a DEL for the daemon behind a socket of theirs, as `overlayd-cni.c` has it."""
    return f"{socket.removesuffix('.sock')}-del"


class CniError(OverlaydError):
    """What a runtime is told.  code: of the specification, or ours from 100 on; details: what to do about it."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Environment(msgspec.Struct, frozen=True):
    """The variables of a call, empty where they are not set.  netns: the path; args: `K=V;...`."""

    command: str = ""
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    path: str = ""


class Call(msgspec.Struct, frozen=True):
    """What the shim sends.  config: its standard input, as it is."""

    cni: Environment
    config: str


class Answer(NamedTuple):
    """What the shim does: its exit code, and what it prints."""

    exit: int
    stdout: str = ""


_CALL = msgspec.json.Decoder(Call)
_ENCODER = msgspec.json.Encoder()


def decode(body: bytes) -> Call:
    """The call in a frame's body.  ProtocolError: no shim of ours sent it."""
    try:
        return _CALL.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a call of the CNI shim: {error}") from error


def encode(answer: Answer) -> bytes:
    """A frame's body.  The keys stand in this order, for the shim does not read JSON."""
    return _ENCODER.encode({"exit": answer.exit, "stdout": answer.stdout})


def failure(error: CniError, version: str) -> Answer:
    """An error as the runtime is told it, in a configuration's version, whatever that is."""
    told: dict[str, object] = {
        "cniVersion": version if version in VERSIONS else NEWEST,
        "code": error.code,
        "msg": error.message,
    }
    if error.details:
        told["details"] = error.details
    return Answer(1, _ENCODER.encode(told).decode())


# --- The environment ---


def require_call(environment: Environment, version: str) -> None:
    """CniError 4: a command that is none, a container's id or an interface name that cannot be one, or a missing
    namespace; 1: the configuration's version does not have the command.
    """
    command = environment.command
    if command not in COMMANDS:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND: {quoted(command)} is none of {', '.join(COMMANDS)}")
    if command in SINCE and version in VERSIONS and VERSIONS.index(version) < VERSIONS.index(SINCE[command]):
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"cniVersion {version} does not have {command}: it is there since {SINCE[command]}",
            "raise cniVersion in the network's configuration",
        )
    if command not in ("ADD", "DEL", "CHECK"):
        return
    require_id(environment.container_id, "CNI_CONTAINERID")
    require_ifname(environment.ifname, "CNI_IFNAME")
    if environment.ifname == "lo" and command != "DEL":
        raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME: lo is the loopback interface of every namespace")
    if command != "DEL" and not environment.netns:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS: {command} needs the path of a network namespace")


def require_id(id: str, where: str) -> None:
    """CniError 4: no container has that id."""
    if not NAME.fullmatch(id) or len(id) > LONGEST_ID:
        raise CniError(
            INVALID_ENVIRONMENT,
            f"{where}: {quoted(id)} is not the id of a container: letters, digits, _, . and -, beginning with a "
            "letter or digit",
        )


def require_ifname(ifname: str, where: str) -> None:
    """CniError 4: no interface can have that name."""
    size = len(ifname.encode(errors="replace"))
    if (
        not 0 < size <= LONGEST_IFNAME
        or ifname in (".", "..")
        or _NOT_IN_IFNAME.search(ifname)
        or not ifname.isprintable()
    ):
        raise CniError(
            INVALID_ENVIRONMENT,
            f"{where}: {quoted(ifname)} is not the name of an interface: 1 to {LONGEST_IFNAME} bytes without "
            "slashes, colons, percent signs and spaces",
        )


def arguments(text: str) -> dict[str, str]:
    """CNI_ARGS, `K=V;K=V`, of which the last of a key counts.  CniError 4: something in it is no pair."""
    found = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {quoted(pair)} is not KEY=VALUE")
        found[key] = value
    return found


def quoted(value: object) -> str:
    """A value of a configuration for an error message: enough of it to recognise it by."""
    if isinstance(value, str):
        return errors.quoted(value)
    text = _ENCODER.encode(value).decode()
    return text if len(text) <= LONGEST_QUOTED else f"{text[:LONGEST_QUOTED]}..."


# --- Results ---


class Interface(NamedTuple):
    """A link that was made.  sandbox: the path of its namespace, empty for the host's end."""

    name: str
    mac: str
    mtu: int
    sandbox: str = ""


class Made(NamedTuple):
    """What an ADD made.  address: with the prefix length of its subnet; routes: their destinations, all through the
    gateway; dns: as the configuration has it, or ours.
    """

    host: Interface
    container: Interface
    address: str
    gateway: str
    routes: tuple[IPv4Network | IPv6Network, ...]
    dns: Mapping[str, Any]


def result(made: Made, version: str) -> Answer:
    """The answer to an ADD in a version of `VERSIONS`.  Keys keep their order."""
    ip: dict[str, object] = {"interface": 1, "address": made.address, "gateway": made.gateway}
    if version < "1.0.0":
        ip = {"version": "6" if ":" in made.address else "4", **ip}
    told = {
        "cniVersion": version,
        "interfaces": [_interface(each, version) for each in (made.host, made.container)],
        "ips": [ip],
        "routes": [{"dst": str(each), "gw": made.gateway} for each in made.routes],
        "dns": dict(made.dns),
    }
    return Answer(0, _ENCODER.encode(told).decode())


def _interface(link: Interface, version: str) -> dict[str, object]:
    told: dict[str, object] = {"name": link.name, "mac": link.mac}
    if version >= "1.1.0":
        told["mtu"] = link.mtu
    if link.sandbox:
        told["sandbox"] = link.sandbox
    return told
