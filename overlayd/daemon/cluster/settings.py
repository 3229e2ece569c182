"""What `--etcd` and its companions ask for, checked, and what names this host.

Owns: the form of these settings.  Must not know: where they come from (`daemon.config`), or what acts on them.
"""

import hashlib
import logging
import socket
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from overlayd.daemon.cluster.connection import Server, read_url
from overlayd.daemon.cluster.etcd import User
from overlayd.daemon.cluster.refusal import Files
from overlayd.daemon.config import Config, ConfigError
from overlayd.errors import RequestError
from overlayd.model import blocks
from overlayd.model.cluster_records import is_endpoint, is_node_name
from overlayd.model.endpoints import nobodys
from overlayd.model.objects import Network
from overlayd.model.rows import Membership, numeric_endpoint

log = logging.getLogger(__name__)

PORT = 2379  # of etcd's clients (IANA)
MACHINE_ID = Path("/etc/machine-id")


class Settings(NamedTuple):
    """node: our name in the cluster.  cidr, block_prefix: of a cluster that is to be made if there is none; None, 0
    when it is only to be joined.  advertise: `host:port` where others reach us, empty to find out.  chosen: whether the
    name is a person's, or the host's.
    """

    servers: tuple[Server, ...]
    cluster: str
    node: str
    prefix: str
    files: Files
    user: User | None
    cidr: Network | None
    block_prefix: int
    advertise: str
    chosen: bool = True


def read(config: Config) -> Settings:
    """ConfigError names the setting and what is wrong with it."""
    if not config.cluster:
        raise ConfigError("cluster: --etcd needs the name of the cluster as well (--cluster NAME)")
    if not is_node_name(config.cluster):
        raise ConfigError(f"cluster: {config.cluster!r} is not a name of lower-case letters, digits, dots and hyphens")
    node = config.node or socket.gethostname().lower()
    if not is_node_name(node):
        where = "node" if config.node else "node: the host name"
        raise ConfigError(
            f"{where} {node!r} is not a name of lower-case letters, digits, dots and hyphens; choose --node"
        )
    try:
        servers = tuple(read_url(url, PORT) for url in config.etcd)
    except ValueError as error:
        raise ConfigError(f"etcd: {error}") from error
    for server in servers:
        if not (server.tls or server.path or config.etcd_insecure or _is_loopback(server.host)):
            raise ConfigError(
                f"etcd: {server.url} would send keys, names and passwords in the clear: use https, or --etcd-insecure"
            )
    if config.etcd_key and not config.etcd_cert:
        raise ConfigError("etcd-key: of no use without etcd-cert")
    if bool(config.etcd_user) != bool(config.etcd_password_file):
        raise ConfigError("etcd-user: needs etcd-password-file, and that needs etcd-user")
    if config.advertise and not is_endpoint(config.advertise):
        raise ConfigError(f"advertise: {config.advertise!r} is not HOST:PORT")
    at = numeric_endpoint(config.advertise)
    if at is not None and (nobody := nobodys(at[0])):
        raise ConfigError(f"advertise: {at[0]} {nobody}: name an address of this node, or leave it out")
    cidr, prefix = _range(config)
    return Settings(
        servers=servers,
        cluster=config.cluster,
        node=node,
        prefix=f"/{config.etcd_prefix.strip('/')}/{config.cluster}/",
        files=Files(config.etcd_ca, config.etcd_cert, config.etcd_key),
        user=User(config.etcd_user, config.etcd_password_file) if config.etcd_user else None,
        cidr=cidr,
        block_prefix=prefix,
        advertise=config.advertise,
        chosen=bool(config.node),
    )


def as_known(settings: Settings, known: Membership | None) -> Settings:
    """With the name that this node has in the cluster, when only the host is called otherwise by now: names in clouds
    come and go, and a node that did not start for that would have no network after a reboot.
    """
    if settings.chosen or known is None or not known.blocks or known.cluster != settings.cluster:
        return settings
    if known.node != settings.node:
        log.warning(
            "cluster %s: this host is called %s now, and stays node %s; to have that name, overlayctl cluster leave "
            "and start again; --node %s keeps this one",
            known.cluster,
            settings.node,
            known.node,
            known.node,
        )
    return settings._replace(node=known.node)


def _range(config: Config) -> tuple[Network | None, int]:
    if not config.cluster_cidr:
        if config.block_prefix:
            raise ConfigError("block-prefix: of no use without cluster-cidr")
        return None, 0
    try:
        cidr = ip_network(config.cluster_cidr)
    except ValueError as error:
        raise ConfigError(f"cluster-cidr: {error}") from error
    prefix = config.block_prefix or blocks.DEFAULT_PREFIX[cidr.version]
    try:
        blocks.require_sensible(cidr, prefix, 1)
    except RequestError as error:
        raise ConfigError(f"block-prefix: {error}") from error
    return cidr, prefix


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def machine_id() -> str:
    """A name for this host that tells nothing of it (machine-id(5) asks not to be told to others)."""
    try:
        own = MACHINE_ID.read_text().strip()
    except OSError:
        own = ""
    return hashlib.blake2b(b"overlayd" + own.encode(), digest_size=16).hexdigest() if own else ""
