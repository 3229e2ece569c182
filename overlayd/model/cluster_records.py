"""What is in a cluster's store: its keys, and the records of nodes, names, blocks and the cluster itself.

Owns: the form of keys and records, their limits, and what of them is believed.  Must not know: what the records of
several nodes come to together (`registry`), or how a store is spoken to.

Keys are those behind `/PREFIX/CLUSTER/`; values are JSON objects, of which keys that are unknown here are kept when a
record is rewritten.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from overlayd import keys
from overlayd.model import blocks
from overlayd.model.objects import Address, Network, unmapped
from overlayd.model.rows import Member, MemberNames, numeric_endpoint

FORMAT = 1
WATCHED = "s/"
CONFIG, PULSE = "s/config", "s/pulse"
NODE, NAMES = "s/node/", "s/name/"
BLOCK, PRESENCE, JANITOR = "b/", "p/", "p/_janitor"

# From the specification (cluster.md): what exceeds these is skipped.
LARGEST_VALUE = 64 * 1024  # bytes
MOST_CANDIDATES, MOST_BLOCKS, MOST_NAMES = 16, 16, 2000
LONGEST_TTL, HIGHEST_RATE = 2**31, 1e6  # our own: seconds, events a second
LARGEST_NAMES = 32 * 1024  # bytes of names in one entry, that of others split behind it

# Our own: numbers of records go on from Unix seconds.  One at the end counts for nothing: no node comes so far, and
# its writer would have the last word forever.
LARGEST_SEQ = 2**40

_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}(?<!-)")
_DNS_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class BadRecord(Exception):
    """A record that is not believed; the message says why."""


class _Candidate(msgspec.Struct):
    candidate_type: str
    address: str
    priority: Annotated[int, Meta(ge=0, le=2**32 - 1)]


class _Node(msgspec.Struct, kw_only=True, omit_defaults=True):
    instance: str
    id: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    key: str
    next_key: str = ""
    endpoint: str = ""
    candidates: Annotated[list[_Candidate], Meta(max_length=MOST_CANDIDATES)] = []
    nat: bool = False
    block: str
    blocks: Annotated[list[str], Meta(max_length=MOST_BLOCKS - 1)] = []
    version: str = ""
    seq: Annotated[int, Meta(ge=0)] = 0


class Config(msgspec.Struct, kw_only=True, frozen=True):
    """How the cluster was made, `s/config`.  node_ttl_secs: 0 = nodes that are gone stay; rate: changes a second that
    the cluster should stay under.  history: a mark that is another one whenever the store was seen to have gone back.
    """

    format: int
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    cluster_cidr: str
    block_prefix: Annotated[int, Meta(ge=1, le=128)]
    service_share: Annotated[int, Meta(ge=0, le=1)] = 1
    zone: str = "overlay.local"
    node_ttl_secs: Annotated[int, Meta(ge=0, le=LONGEST_TTL)] = 0
    rate: Annotated[float, Meta(gt=0, le=HIGHEST_RATE)] = 10.0
    history: Annotated[str, Meta(max_length=64)] = ""

    @property
    def cidr(self) -> Network:
        return ip_network(self.cluster_cidr)


_CONFIG = msgspec.json.Decoder(Config)
_NODE_RECORD = msgspec.json.Decoder(_Node)
_NAMES_RECORD = msgspec.json.Decoder(dict[str, list[str]])


def read_config(value: bytes) -> Config:
    """BadRecord: it is none that we understand."""
    try:
        config = _CONFIG.decode(value)
        _network(config.cluster_cidr)
        if config.zone and not _DNS_NAME.fullmatch(config.zone):
            raise ValueError(f"zone {config.zone[:80]!r} is not a DNS name in lower case")
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRecord(f"{CONFIG}: {error}") from error
    if config.format != FORMAT:
        raise BadRecord(f"{CONFIG}: format {config.format}, and this overlayd knows {FORMAT}: install a newer one here")
    return config


def read_node(name: str, value: bytes, created: int) -> Member:
    """BadRecord says what of it is wrong."""
    if not is_node_name(name):
        raise BadRecord(f"{name[:80]!r} is no name of a node")
    if len(value) > LARGEST_VALUE:
        raise BadRecord(f"{len(value)} bytes, at most {LARGEST_VALUE}")
    try:
        record = _NODE_RECORD.decode(value)
        networks = tuple(dict.fromkeys(_network(each) for each in (record.block, *record.blocks)))
        public_key = _key(record.key, "key")
        next_key = _key(record.next_key, "next_key") if record.next_key else b""
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRecord(str(error)) from error
    if record.endpoint and not is_endpoint(record.endpoint):
        raise BadRecord(f"endpoint {record.endpoint[:80]!r} is not host:port")
    for candidate in record.candidates:
        if not is_endpoint(candidate.address) or numeric_endpoint(candidate.address) is None:
            raise BadRecord(f"candidate {candidate.address[:80]!r} is not ip:port")
    return Member(
        name=name,
        instance=record.instance,
        node_id=record.id,
        public_key=public_key,
        endpoint=record.endpoint,
        candidates=tuple((each.candidate_type, each.address, each.priority) for each in record.candidates),
        nat=record.nat,
        blocks=networks,
        version=record.version[:64],
        next_key=next_key,
        created=created,
        seq=min(record.seq, LARGEST_SEQ),
    )


def write_node(member: Member, before: bytes = b"") -> bytes:
    """The record of a node.  before: as it was, of which keys that we do not know are kept."""
    first, *more = member.blocks
    record = _Node(
        instance=member.instance,
        id=member.node_id,
        key=keys.text(member.public_key),
        next_key=keys.text(member.next_key) if member.next_key else "",
        endpoint=member.endpoint,
        candidates=[_Candidate(*each) for each in member.candidates],
        nat=member.nat,
        block=str(first),
        blocks=[str(each) for each in more],
        version=member.version,
        seq=member.seq,
    )
    return rewritten(before, msgspec.to_builtins(record), {field.name for field in msgspec.structs.fields(_Node)})


def rewritten(before: bytes, values: Mapping[str, Any], known: Iterable[str]) -> bytes:
    """An object with these values, and what `before` had of keys that are not known here."""
    try:
        old = msgspec.json.decode(before, type=dict[str, Any]) if before else {}
    except msgspec.MsgspecError:
        old = {}
    return msgspec.json.encode({**{key: value for key, value in old.items() if key not in set(known)}, **values})


def read_names(part: str, value: bytes) -> MemberNames:
    """BadRecord says what of it is wrong."""
    if not is_node_name(part.partition("/")[0]):
        raise BadRecord(f"{part[:80]!r} is no name of a node")
    if len(value) > LARGEST_VALUE:
        raise BadRecord(f"{len(value)} bytes, at most {LARGEST_VALUE}")
    try:
        found = _NAMES_RECORD.decode(value)
        names = {name: tuple(dict.fromkeys(map(_address, addresses))) for name, addresses in found.items()}
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRecord(str(error)) from error
    if len(names) > MOST_NAMES:
        raise BadRecord(f"{len(names)} names, at most {MOST_NAMES}")
    for name in names:
        if not _DNS_NAME.fullmatch(name):
            raise BadRecord(f"{name[:80]!r} is not a DNS name in lower case")
    return MemberNames(part=part, names=names)


def write_names(node: str, names: Mapping[str, tuple[Address, ...]]) -> dict[str, bytes]:
    """The entries that tell of the names of a node, by their keys: as many as it takes to keep each small, at least
    none.
    """
    written: dict[str, bytes] = {}
    batch: dict[str, list[str]] = {}
    size = 0
    for name, addresses in sorted(names.items()):
        texts = [str(each) for each in addresses]
        cost = len(name) + sum(len(text) + 3 for text in texts) + 8
        if batch and size + cost > LARGEST_NAMES:
            written[names_key(node, len(written))] = msgspec.json.encode(batch)
            batch, size = {}, 0
        batch[name] = texts
        size += cost
    if batch:
        written[names_key(node, len(written))] = msgspec.json.encode(batch)
    return written


def names_key(node: str, number: int) -> str:
    return f"{NAMES}{node}/{number}" if number else f"{NAMES}{node}"


def is_node_name(text: str) -> bool:
    return _NODE_NAME.fullmatch(text) is not None


def is_endpoint(text: str) -> bool:
    """Whether it is `host:port`, the host an address or a name."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return False
    return numeric_endpoint(text) is not None or _HOST_NAME.fullmatch(host) is not None


def read_register(entries: Iterable[tuple[str, bytes, int]]) -> dict[Network, blocks.Holding]:
    """The register of blocks.  entries: key behind `BLOCK`, value, the revision at which it was last put.  What cannot
    be read counts as held by nobody that we know, so that it is not claimed.
    """
    register: dict[Network, blocks.Holding] = {}
    for key, value, modified in entries:
        network = blocks.block_of(key)
        if network is not None:
            register[network] = read_holding(value, modified)
    return register


class _Holding(msgspec.Struct):
    node: str = ""
    instance: str = ""
    freed: int = 0


_HOLDING = msgspec.json.Decoder(_Holding)


def read_holding(value: bytes, modified: int) -> blocks.Holding:
    """An entry of the register; what cannot be read is held by somebody unknown."""
    try:
        held = _HOLDING.decode(value)
    except msgspec.MsgspecError:
        return blocks.Holding("?", blocks.UNREADABLE, 0, modified)
    return blocks.Holding(held.node, held.instance, held.freed, modified)


def write_holding(node: str, instance: str) -> bytes:
    return msgspec.json.encode({"node": node, "instance": instance})


def write_freed(revision: int) -> bytes:
    """A block that its holder gave up, at about this revision."""
    return msgspec.json.encode({"freed": revision})


def _address(text: str) -> Address:
    """ValueError: it is none, or has a zone, which may be any text."""
    if "%" in text:
        raise ValueError(f"{text[:80]!r} has a zone (%), which means nothing on another node")
    return unmapped(ip_address(text))


def _network(text: str) -> Network:
    """ValueError, as for an address."""
    _address(text.partition("/")[0])
    return ip_network(text)


def _key(text: str, field: str) -> bytes:
    try:
        key = keys.parse(text)
    except ValueError as error:
        raise BadRecord(f"{field}: {error}") from error
    if keys.is_nobodys(key):
        raise BadRecord(f"{field}: {text} is no node's key: no handshake succeeds with it")
    return key
