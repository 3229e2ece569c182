"""What the operator wants: command line over environment over file over defaults.

Owns: the options of `overlayd` and their help.  Must not know: what acts on them.
"""

import argparse
import os
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, NoReturn, get_args, get_origin

import msgspec

from overlayd import __version__
from overlayd.daemon import parse
from overlayd.daemon.dns import upstreams
from overlayd.daemon.dns.upstreams import Upstream
from overlayd.errors import RequestError
from overlayd.linux import sysctl
from overlayd.model import zone
from overlayd.printing import PrintingParser
from overlayd.proto import inquiry
from overlayd.proto.cni import socket_beside
from overlayd.proto.envelope import is_consumer_protocol
from overlayd.spelling import perhaps_meant

DATA_DIR = "/var/lib/overlayd"
SOCKET = "/run/overlayd/overlayd.sock"
CONFIG_FILE = "/etc/overlayd/overlayd.toml"
NAMESPACE_ID = "overlayd"
ETCD_PREFIX = "overlayd"
PAYLOAD_PROTOCOL = 0xF0DE  # of those that the envelope's family leaves to private use

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
WireGuard = Literal["auto", "kernel", "userspace"]
Quota = Annotated[int, msgspec.Meta(ge=1, le=2**20)]

LONGEST_FILE = 1 << 20  # our own constant, bytes of a configuration file
_ON_THE_LINE = ("teardown", "adopt", "salvage-journal")  # options that are no settings


class ConfigError(Exception):
    """The configuration cannot be used; the message names the setting."""


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The settings of a daemon; the keys of overlayd.toml are these names with hyphens."""

    data_dir: str = DATA_DIR
    socket: str = SOCKET
    socket_group: str | None = None
    cni_socket: str = ""
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    wireguard: WireGuard = "auto"
    wireguard_go: str = ""
    identity_file: str = ""
    namespace_id: str = NAMESPACE_ID
    payload_protocol: int = PAYLOAD_PROTOCOL
    no_probe: bool = False
    no_inquiries: bool = False
    max_connections: Quota = 4096
    max_connections_per_user: Quota = 3072
    max_connections_per_process: Quota = 2048
    proc_sys: str = sysctl.DEFAULT_ROOT
    dns_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = upstreams.PORT
    dns_node_address: bool = False
    dns_zone: str | None = None
    dns_upstream: tuple[str, ...] = ()
    metrics: str = ""
    metrics_peers: bool = False
    etcd: tuple[str, ...] = ()
    cluster: str = ""
    node: str = ""
    cluster_cidr: str = ""
    block_prefix: Annotated[int, msgspec.Meta(ge=0, le=128)] = 0
    advertise: str = ""
    etcd_prefix: str = ETCD_PREFIX
    etcd_ca: str = ""
    etcd_cert: str = ""
    etcd_key: str = ""
    etcd_user: str = ""
    etcd_password_file: str = ""
    etcd_insecure: bool = False

    @property
    def cni_path(self) -> str:
        """The socket of the CNI shim, empty for none."""
        if self.cni_socket == "none":
            return ""
        return self.cni_socket or socket_beside(self.socket)

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """The servers of dns_upstream.  ValueError when one is not written as such."""
        return tuple(upstreams.parse(server) for server in self.dns_upstream)


_EPILOG = """\
Every option can also stand in the configuration file (data-dir = "/srv/overlayd") or in the environment
(OVERLAYD_DATA_DIR=/srv/overlayd); the command line wins over the environment, and that over the file.

SIGTERM and SIGINT stop the daemon and leave the data plane running: tunnels, bridges, addresses and rules stay,
and the next start adopts them.  To remove them, stop the daemon and run `overlayd --teardown`.

exit codes: 0 clean, 1 runtime failure, 2 usage, 69 socket or data directory in use, 77 a missing capability,
78 bad configuration or damaged state

example: overlayd --data-dir /var/lib/overlayd --socket /run/overlayd/overlayd.sock
"""


class _Parser(PrintingParser):
    """Says which option was perhaps meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            meant = perhaps_meant(unknown.partition(" ")[0].partition("=")[0], self._option_string_actions)
            message += f"; {meant}" if meant else ""
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """The command line of `overlayd`."""
    parser = _Parser(
        prog="overlayd",
        description="Own this node's overlay network: WireGuard tunnels, bridges, addresses and packet rules,\n"
        "driven by an orchestrator over a Unix socket.  Runs in the foreground and logs to stderr.",
        epilog=_EPILOG,
        # A width of its own: to ask the terminal for one, argparse imports what `linux.programs` does without.
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),
    )
    _place_options(parser)
    _wireguard_options(parser)
    _wire_options(parser)
    _host_options(parser)
    _dns_options(parser)
    _cluster_options(parser)
    _metrics_options(parser)
    _start_options(parser)
    return parser


def _place_options(parser: argparse.ArgumentParser) -> None:
    """Where things are, and how the log is written."""
    option = parser.add_argument
    option("--data-dir", metavar="DIR", help=f"where identity, addresses and peers are kept (default {DATA_DIR})")
    option("--socket", metavar="PATH", help=f"the Unix socket to serve (default {SOCKET})")
    option(
        "--socket-group",
        metavar="GROUP",
        help="group that may use the socket, beside root and the daemon's own user (default: overlayd, if it exists)",
    )
    option(
        "--cni-socket",
        metavar="PATH",
        help="where the CNI shim of container runtimes connects, root alone; none: nowhere "
        "(default: beside --socket: cni.sock, of another NAME.sock than overlayd.sock NAME.cni)",
    )
    option("--config", metavar="FILE", help=f"configuration file (default {CONFIG_FILE}, if it exists)")
    option("--log-format", choices=get_args(LogFormat), help="how a line of the log is written (default text)")
    option("--log-level", choices=get_args(LogLevel), help="the least severe level that is logged (default info)")


def _wireguard_options(parser: argparse.ArgumentParser) -> None:
    """Which WireGuard serves the devices."""
    option = parser.add_argument
    option(
        "--wireguard",
        choices=get_args(WireGuard),
        help="the WireGuard to use: kernel if there is one, else wireguard-go in user space (default auto)",
    )
    option(
        "--wireguard-go",
        metavar="PATH",
        help="the wireguard-go to use (default: the newest in PATH, by the version that each prints)",
    )


def _wire_options(parser: argparse.ArgumentParser) -> None:
    """What is spoken at the socket and to other nodes, beside requests."""
    option = parser.add_argument
    option(
        "--identity-file",
        metavar="FILE",
        help="publish there who serves the socket, for clients that verify it; removed on a clean stop (default: none)",
    )
    option(
        "--namespace-id",
        metavar="NAME",
        help=f"the name that the identity gives the socket (default {NAMESPACE_ID})",
    )
    option(
        "--payload-protocol",
        metavar="N",
        help=f"the envelope protocol that requests come in, 0x7000-0x7eff or 0xf000-0xffff "
        f"(default {PAYLOAD_PROTOCOL:#x})",
    )
    option(
        "--no-probe",
        action="store_true",
        default=None,
        help="serve JSON frames only: no identity probes, no envelopes",
    )
    option(
        "--no-inquiries",
        action="store_true",
        default=None,
        help="do not tell other nodes this one's side of a packet's way (`overlayctl why` there), at UDP port "
        f"{inquiry.PORT} of the node address",
    )


def _host_options(parser: argparse.ArgumentParser) -> None:
    """What the host gives us."""
    option = parser.add_argument
    option(
        "--proc-sys",
        metavar="PATH",
        help=f"where the host's kernel parameters can be written, if not at {sysctl.DEFAULT_ROOT}",
    )
    option(
        "--max-connections",
        metavar="N",
        help="connections to the socket at once (default 4096, never more than a quarter of the limit of descriptors)",
    )
    option("--max-connections-per-user", metavar="N", help="the same, of one user (default 3072)")
    option("--max-connections-per-process", metavar="N", help="the same, of one process (default 2048)")


def _dns_options(parser: argparse.ArgumentParser) -> None:
    """The name server."""
    option = parser.add_argument
    option(
        "--dns-port",
        metavar="PORT",
        help="the port of the name server, at the gateway of each service; 0: none (default 53)",
    )
    option(
        "--dns-node-address",
        action="store_true",
        default=None,
        help="serve names at the node address too, where an orchestrator may have a resolver of its own (default: no)",
    )
    option(
        "--dns-zone",
        metavar="ZONE",
        help=f"the zone of names that were registered as one label (default: the cluster's, or {zone.DEFAULT})",
    )
    option(
        "--dns-upstream",
        metavar="ADDR[:PORT]",
        action="append",
        help="a server to ask for other names, repeatable or separated by commas "
        "(default: those of the host's /etc/resolv.conf)",
    )


def _metrics_options(parser: argparse.ArgumentParser) -> None:
    """What a monitoring system gets."""
    option = parser.add_argument
    option(
        "--metrics",
        metavar="[ADDR:]PORT|PATH",
        help="serve /metrics, /healthz and /readyz there by HTTP, at 127.0.0.1 if it is a port alone, or at the path "
        "of a Unix socket (default: none)",
    )
    option(
        "--metrics-peers",
        action="store_true",
        default=None,
        help="with series of their own for every peer",
    )


def _start_options(parser: argparse.ArgumentParser) -> None:
    """What is done in place of a plain start, or before one."""
    option = parser.add_argument
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--teardown",
        action="store_true",
        help="remove everything of ours from this host, then exit; no daemon may be running",
    )
    ways.add_argument(
        "--adopt",
        action="store_true",
        help="start without a state on a host that carries an overlay: make the state of what is there",
    )
    option(
        "--salvage-journal",
        action="store_true",
        help="start from a damaged journal with what stands before the damage; a copy of the whole is kept",
    )
    option("--service", action="store_true", help="does nothing; init scripts of other daemons pass it")
    option("--version", action="version", version=f"overlayd {__version__}")


def _cluster_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument_group("a cluster without an orchestrator").add_argument
    option(
        "--etcd",
        metavar="URL",
        action="append",
        help="join a cluster that is kept in this etcd: http://, https:// or unix:/PATH; repeatable or separated by "
        "commas",
    )
    option("--cluster", metavar="NAME", help="the name of the cluster")
    option("--node", metavar="NAME", help="this node's name in it (default: the host name)")
    option("--cluster-cidr", metavar="CIDR", help="make the cluster with these addresses if it is not there yet")
    option("--block-prefix", metavar="N", help="and with blocks of this prefix length (default 24, of IPv6 64)")
    option(
        "--advertise",
        metavar="HOST:PORT",
        help="where other nodes reach this one (default: the address of the way out, or what STUN servers see)",
    )
    option("--etcd-prefix", metavar="PREFIX", help=f"the first part of all keys (default {ETCD_PREFIX})")
    option("--etcd-ca", metavar="FILE", help="who may have signed etcd's certificate (default: whom the host trusts)")
    option("--etcd-cert", metavar="FILE", help="our certificate for etcd, read again for each connection")
    option("--etcd-key", metavar="FILE", help="its key, if that is not in the same file")
    option("--etcd-user", metavar="NAME", help="our name as a user of etcd, for its roles")
    option("--etcd-password-file", metavar="FILE", help="where that user's password is")
    option(
        "--etcd-insecure",
        action="store_true",
        default=None,
        help="speak http without TLS to an etcd on another host as well",
    )


def load(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Config:
    """The settings from all their sources.  ConfigError: an unknown key, a bad value, an unreadable file."""
    fields = msgspec.structs.fields(Config)
    values: dict[str, object] = _read_file(arguments.config or environment.get("OVERLAYD_CONFIG"))
    for field in fields:
        from_environment = environment.get("OVERLAYD_" + field.name.upper())
        if from_environment is not None:
            values[field.encode_name] = from_environment
        given = getattr(arguments, field.name)
        if given is not None:
            values[field.encode_name] = given
    try:
        protocol = values.get("payload-protocol")
        if isinstance(protocol, str):
            values["payload-protocol"] = int(protocol, 0)
        for several in ("dns-upstream", "etcd"):
            given = values.get(several, [])
            written = given if isinstance(given, list) else [given]
            values[several] = [part.strip() for each in written for part in str(each).split(",") if part.strip()]
        config = msgspec.convert(values, Config, strict=False)  # the environment has nothing but text
    except msgspec.ValidationError as error:
        wrong, _, at = str(error).partition(" - at `$.")
        setting = at.rstrip("`")
        raise ConfigError(f"{setting}: {_in_words(setting, values.get(setting)) or wrong}") from error
    except ValueError:
        raise ConfigError(f"payload-protocol: not a number: {protocol}") from None
    if not is_consumer_protocol(config.payload_protocol):
        number = f"{config.payload_protocol:#06x}"
        raise ConfigError(f"payload-protocol: {number} is not in 0x7000-0x7eff or 0xf000-0xffff")
    try:
        if config.dns_zone is not None:
            config = msgspec.structs.replace(config, dns_zone=parse.dns_name(config.dns_zone, "dns-zone"))
    except RequestError as error:
        raise ConfigError(f"dns-zone: {config.dns_zone!r} is not a DNS name") from error
    try:
        for server in config.dns_upstream:
            upstreams.parse(server)
    except ValueError as error:
        raise ConfigError(f"dns-upstream: {error}; write ADDR, ADDR:PORT or [ADDR]:PORT") from error
    if config.metrics and not _is_place(config.metrics):
        raise ConfigError(f"metrics: {config.metrics!r} is not a port, ADDR:PORT, [ADDR]:PORT or path of a socket")
    if config.wireguard_go and not Path(config.wireguard_go).is_absolute():
        raise ConfigError(f"wireguard-go: not an absolute path: {config.wireguard_go}")
    if config.no_probe and config.identity_file:
        raise ConfigError("identity-file: of no use with no-probe, since nobody could check it")
    for setting, path in (("data-dir", config.data_dir), ("socket", config.socket)):
        if not path:
            raise ConfigError(f"{setting}: the path is empty")
    for setting, path in (("socket", config.socket), ("cni-socket", config.cni_path)):
        if len(os.fsencode(path)) > 107:  # sun_path of struct sockaddr_un, less its NUL
            raise ConfigError(f"{setting}: the path is longer than the 107 bytes a Unix socket may have: {path}")
    try:
        _require_apart(config)
    except FileNotFoundError:
        raise ConfigError("a path is relative, and the current directory is gone: give paths from / on") from None
    return config


def perhaps_settings(environment: Mapping[str, str]) -> list[str]:
    """Variables of the environment that are no settings and look as if they were to be, in words."""
    prefix = "OVERLAYD_"
    known = [field.name.upper() for field in msgspec.structs.fields(Config)]
    told = []
    for name in sorted(each.removeprefix(prefix) for each in environment if each.startswith(prefix)):
        option = name.lower().replace("_", "-")
        if option in _ON_THE_LINE:
            told.append(f"{prefix}{name} is no setting: --{option} is of the command line alone")
        elif name not in (*known, "CONFIG") and (meant := perhaps_meant(name, known)):
            told.append(f"{prefix}{name} is no setting: {meant}")
    return told


def without_etcd(config: Config) -> list[str]:
    """The settings of a cluster that were given, and that nothing comes of while no etcd is."""
    usual = Config()
    given = [each for each in msgspec.structs.fields(Config) if getattr(config, each.name) != getattr(usual, each.name)]
    of_cluster = ("cluster", "node", "cluster_cidr", "block_prefix", "advertise")
    mine = [each.encode_name for each in given if each.name in of_cluster or each.name.startswith("etcd_")]
    return [] if config.etcd else mine


def _require_apart(config: Config) -> None:
    """ConfigError when one file would be two things: each of them would replace the other.  In the data directory the
    names of the journal and the lock are taken.
    """
    inside = os.path.realpath(config.data_dir)
    metrics = config.metrics if config.metrics.startswith("/") else ""
    seen: dict[str, str] = {}
    for setting, path in (
        ("data-dir", config.data_dir),
        ("socket", config.socket),
        ("cni-socket", config.cni_path),
        ("metrics", metrics),
        ("identity-file", config.identity_file),
    ):
        if path and (other := seen.setdefault(os.path.realpath(path), setting)) != setting:
            raise ConfigError(f"{setting}: {path} is what {other} names too: give them paths of their own")
        folder, name = os.path.split(os.path.realpath(path)) if path else ("", "")
        if folder == inside and (name == "lock" or name.partition(".")[0] == "journal"):
            raise ConfigError(
                f"{setting}: {path} is the name of a file that overlayd keeps in data-dir: give it another"
            )


def _is_place(text: str) -> bool:
    """Whether a text names a port alone, with a numeric address, or the path of a Unix socket."""
    if text.startswith("/"):
        return len(os.fsencode(text)) <= 107
    host, _, port = text.rpartition(":")
    try:
        return (not host or bool(ip_address(host.removeprefix("[").removesuffix("]")))) and 0 < int(port) < 65536
    except ValueError:
        return False


def _read_file(path: str | None) -> dict[str, object]:
    try:
        with Path(path or CONFIG_FILE).open("rb") as file:
            text = file.read(LONGEST_FILE + 1)
        if len(text) > LONGEST_FILE:
            raise ConfigError(f"{path or CONFIG_FILE}: more than {LONGEST_FILE} bytes, so no configuration file")
        found: dict[str, object] = msgspec.toml.decode(text.decode())
    except FileNotFoundError as error:
        if path is None:
            return {}
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path or CONFIG_FILE}: {why}") from error
    known = [field.encode_name for field in msgspec.structs.fields(Config)]
    for key in found:
        if key not in known:
            meant = perhaps_meant(key, known)
            there = f"there is {', '.join(known)}"
            raise ConfigError("; ".join(filter(None, (f"{path or CONFIG_FILE}: unknown setting {key}", there, meant))))
    return found


def _in_words(setting: str, given: object) -> str:
    """What is wrong with a value that is none of its type; empty when nobody knows."""
    kind = next((each.type for each in msgspec.structs.fields(Config) if each.encode_name == setting), None)
    if kind is bool:
        return f"{given!r} is neither true nor false"
    if kind is str:
        return f"{given!r} is not text: write it in quotes"
    if get_origin(kind) is Literal:
        return f"{given!r} is none of {', '.join(get_args(kind))}"
    for limits in getattr(kind, "__metadata__", ()):
        return f"{given!r} is not a number from {limits.ge} to {limits.le}"
    return ""
