"""A CNI network configuration: what may stand in it, and what a call asks for by it.

Owns: its keys, capabilities and conventions, and which of several sources of a request counts.  Must not know: whether
what is asked for can be had.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar

import msgspec

from overlayd.proto.cni import (
    INCOMPATIBLE_VERSION,
    INVALID_CONFIG,
    NAME,
    NOT_DECODED,
    UNSUPPORTED_FIELD,
    VERSIONS,
    CniError,
    Environment,
    arguments,
    quoted,
    require_call,
    require_id,
    require_ifname,
)

Address = IPv4Address | IPv6Address
T = TypeVar("T")

SLICE = "slice"  # the subnet that is this node's whole slice
ANNOTATION = "annotation"  # the isolation that a pod's annotation names
ISOLATION_ANNOTATION = "overlayd.io/isolation"
POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"  # the capability of containerd and CRI-O

# Keys of a configuration that say nothing to us: the runtime's, and what other plugins are told by them.
_NOT_OURS = ("type", "capabilities", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "ipMasq")
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", re.ASCII)


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """As a configuration says it and a result repeats it."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class _RuntimeDns(msgspec.Struct, frozen=True):
    servers: tuple[str, ...] | None = None
    searches: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


class _CniArgs(msgspec.Struct, frozen=True):
    ips: tuple[str, ...] | None = None


class _Args(msgspec.Struct, frozen=True):
    cni: _CniArgs | None = None


class _RuntimeConfig(msgspec.Struct, frozen=True):
    ips: tuple[str, ...] | None = None
    mac: str | None = None
    dns: _RuntimeDns | None = None
    aliases: dict[str, tuple[str, ...] | None] | None = None
    annotations: dict[str, str] | None = msgspec.field(name=POD_ANNOTATIONS, default=None)
    port_mappings: list[Any] | None = msgspec.field(name="portMappings", default=None)


class _ListedAttachment(msgspec.Struct, frozen=True, rename={"container_id": "containerID"}):
    container_id: str
    ifname: str


class PreviousIp(msgspec.Struct, frozen=True):
    """An address of an earlier result.  interface: which of its interfaces has it, None when that is not told."""

    address: str
    interface: int | None = None


class PreviousInterface(msgspec.Struct, frozen=True):
    """A link of an earlier result."""

    name: str = ""
    sandbox: str = ""


class PreviousRoute(msgspec.Struct, frozen=True):
    """A route of an earlier result.  dst: a CIDR."""

    dst: str = ""


class Previous(msgspec.Struct, frozen=True):
    """An earlier result of the chain, as far as it is ours."""

    interfaces: tuple[PreviousInterface, ...] | None = None
    ips: tuple[PreviousIp, ...] | None = None
    routes: tuple[PreviousRoute, ...] | None = None

    @property
    def leads_outside(self) -> bool:
        """Whether it has a default route, or does not say."""
        return self.routes is None or any(route.dst in ("0.0.0.0/0", "::/0") for route in self.routes)


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    cni_version: str = msgspec.field(name="cniVersion", default="0.1.0")
    name: str = ""
    service: str | None = None
    subnet: str | None = None
    isolation: str | None = None
    join_global: bool = False
    default_route: bool = True
    dns: Dns | None = None
    args: _Args | None = None
    runtime: _RuntimeConfig | None = msgspec.field(name="runtimeConfig", default=None)
    previous: Previous | None = msgspec.field(name="prevResult", default=None)
    valid: tuple[_ListedAttachment, ...] | msgspec.UnsetType | None = msgspec.field(
        name="cni.dev/valid-attachments", default=msgspec.UNSET
    )
    attachments: tuple[_ListedAttachment, ...] | msgspec.UnsetType | None = msgspec.field(
        name="cni.dev/attachments", default=msgspec.UNSET
    )


_KNOWN = {field.encode_name for field in msgspec.structs.fields(_Config)} | set(_NOT_OURS)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a call asks for, checked in itself.

    network: the configuration's name.  subnet: None for one that overlayd chooses, `SLICE` for the node's whole slice.
    isolation: the name of the isolation network, empty for none.  addresses: one of a family at most.  names: to be
    registered for the container.  dns: to be told in the result, None for this node's name server; searches, options:
    to be told beside that.  previous: of CHECK.  valid: of GC, the attachments that stay, None when it does not say.
    """

    environment: Environment
    version: str
    network: str
    service: str
    subnet: IPv4Network | IPv6Network | str | None
    isolation: str
    join_global: bool
    default_route: bool
    addresses: tuple[Address, ...]
    mac: str
    names: tuple[str, ...]
    dns: Dns | None
    searches: tuple[str, ...]
    options: tuple[str, ...]
    previous: Previous | None
    valid: frozenset[tuple[str, str]] | None


def version_of(config: str) -> str:
    """The version that an answer to this configuration has to be in; empty when nothing tells."""
    try:
        found = msgspec.json.decode(config, type=dict[str, Any]).get("cniVersion")
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return ""
    return found if isinstance(found, str) else ""


def parse(environment: Environment, config: str) -> Asked:
    """What an ADD, CHECK, STATUS or GC asks for.  CniError says what is wrong with it, by the specification's codes."""
    read = _read(config)
    if read.cni_version not in VERSIONS:
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"cniVersion {quoted(read.cni_version)} is none that overlayd-cni speaks",
            f"it speaks {', '.join(VERSIONS)}",
        )
    require_call(environment, read.cni_version)
    if not NAME.fullmatch(read.name):
        raise _invalid(f"name: {quoted(read.name)} is not the name of a network: letters, digits, _, . and -")
    command = environment.command
    if command == "ADD" and read.previous is not None:
        raise _invalid("prevResult: overlayd-cni makes the interface: put it first in the list of plugins")
    if command == "CHECK" and read.previous is None:
        raise _invalid("prevResult: CHECK needs the result of the ADD")
    runtime = read.runtime or _RuntimeConfig()
    if runtime.port_mappings:
        raise _invalid(
            "runtimeConfig.portMappings: overlayd-cni maps no ports",
            "put portmap behind it in the list of plugins, and the capability portMappings there",
        )
    pairs = arguments(environment.args)
    runtime_dns = runtime.dns or _RuntimeDns()
    servers = runtime_dns.servers or ()
    return Asked(
        environment=environment,
        version=read.cni_version,
        network=read.name,
        service=read.service or read.name,
        subnet=_subnet(read.subnet),
        isolation=_isolation(read.isolation or "none", runtime),
        join_global=read.join_global,
        default_route=read.default_route,
        addresses=_addresses(read, runtime, pairs),
        mac=_mac(runtime.mac, "runtimeConfig.mac") or _mac(pairs.get("MAC"), "CNI_ARGS: MAC"),
        names=_names(read.name, runtime, pairs),
        dns=read.dns if read.dns is not None or not servers else Dns(nameservers=servers),
        searches=runtime_dns.searches or (),
        options=runtime_dns.options or (),
        previous=read.previous,
        valid=_valid(read) if command == "GC" else None,
    )


def _read(config: str) -> _Config:
    try:
        found = msgspec.json.decode(config)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise CniError(NOT_DECODED, f"the network's configuration is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CniError(NOT_DECODED, f"the network's configuration is not an object: {quoted(found)}")
    if "ipam" in found and found["ipam"] != {}:
        raise CniError(
            UNSUPPORTED_FIELD,
            f"ipam: {quoted(found['ipam'])}: overlayd allocates by itself",
            "leave ipam out; subnet says which addresses containers get",
        )
    for key, value in found.items():
        if key not in _KNOWN and key != "ipam" and not key.startswith("cni.dev/"):
            raise CniError(
                UNSUPPORTED_FIELD,
                f"{quoted(key)}: {quoted(value)}: overlayd-cni does not know this key",
                "its keys are service, subnet, isolation, join_global, default_route and dns",
            )
    try:
        return msgspec.convert(found, _Config)
    except (msgspec.ValidationError, RecursionError) as error:
        wrong, _, where = str(error).partition(" - at `$")
        raise _invalid(f"{where.strip('.`') or 'the configuration'}: {wrong}") from error


def _invalid(message: str, details: str = "") -> CniError:
    return CniError(INVALID_CONFIG, message, details)


def _subnet(text: str | None) -> IPv4Network | IPv6Network | str | None:
    if text is None or text == SLICE:
        return text
    try:
        return ip_network(text)
    except ValueError as error:
        raise _invalid(f"subnet: {quoted(text)}: {error}", "it is a CIDR like 10.200.3.0/24, or slice") from None


def _isolation(asked: str, runtime: _RuntimeConfig) -> str:
    if asked == ANNOTATION:
        return (runtime.annotations or {}).get(ISOLATION_ANNOTATION, "")
    return "" if asked == "none" else asked


def _addresses(read: _Config, runtime: _RuntimeConfig, pairs: dict[str, str]) -> tuple[Address, ...]:
    """The addresses that the first source asks for that has any."""
    in_args = read.args.cni.ips if read.args is not None and read.args.cni is not None else None
    sources: tuple[tuple[str, Sequence[str] | None], ...] = (
        ("runtimeConfig.ips", runtime.ips),
        ("args.cni.ips", in_args),
        ("CNI_ARGS: IP", [each for each in pairs.get("IP", "").split(",") if each]),
    )
    for where, texts in sources:
        if texts:
            found = tuple(_address(text, where) for text in texts)
            if len({each.version for each in found}) < len(found):
                raise _invalid(f"{where}: {', '.join(map(str, found))}: one address of a family at most")
            return found
    return ()


def _address(text: str, where: str) -> Address:
    """With or without a prefix length, which its subnet has."""
    bare, slash, prefix = text.partition("/")
    try:
        found = ip_address(bare)
        if (slash and not (prefix.isascii() and prefix.isdigit())) or "%" in bare:
            raise ValueError
    except ValueError:
        raise _invalid(f"{where}: {quoted(text)} is not an IP address") from None
    return found


def _mac(text: str | None, where: str) -> str:
    """In lower case with colons, empty for none."""
    if not text:
        return ""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(text) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise _invalid(f"{where}: {quoted(text)} is not the MAC address of one interface, like 02:00:0a:c8:00:05")
    return mac


def _names(network: str, runtime: _RuntimeConfig, pairs: dict[str, str]) -> tuple[str, ...]:
    """Aliases for this network, and `<pod>.<namespace>`; each once."""
    names = list((runtime.aliases or {}).get(network) or ())
    pod, namespace = pairs.get("K8S_POD_NAME"), pairs.get("K8S_POD_NAMESPACE")
    if pod and namespace:
        names.append(f"{pod}.{namespace}")
    return tuple(dict.fromkeys(names))


def _valid(read: _Config) -> frozenset[tuple[str, str]] | None:
    listed = read.valid if read.valid is not msgspec.UNSET else read.attachments
    if isinstance(listed, msgspec.UnsetType):
        return None
    for each in listed or ():
        require_id(each.container_id, "cni.dev/valid-attachments: containerID")
        require_ifname(each.ifname, "cni.dev/valid-attachments: ifname")
    return frozenset((each.container_id, each.ifname) for each in listed or ())
