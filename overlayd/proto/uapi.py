"""WireGuard's configuration protocol in text, as wireguard-go speaks it on its Unix socket.

Owns: set and get operations to bytes, responses to values.  Must not know: sockets, processes, or what a device is
for.

Source: "Cross-platform Userspace Implementation", https://www.wireguard.com/xplatform/#configuration-protocol.  An
operation and a response are lines of `key=value` and end with an empty line; the last line of a response is
`errno=N`.  A peer's lines start with its `public_key`.
"""

from binascii import a2b_hex
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from overlayd._fast import addresses
from overlayd.errors import ProtocolError
from overlayd.keys import KEY_SIZE
from overlayd.proto.wireguard import Activity, DeviceState, Endpoint, Network, Own, PeerChange, PeerState

GET = b"get=1\n\n"

_SET = b"set=1\n"
_END = b"\n"
_KEY_DIGITS = 2 * KEY_SIZE
_NUMBER_DIGITS = 20  # of the largest 64-bit number

# Our own constants.
# Endpoints hardly change between two polls: parsing each text once makes a poll of 10,000 peers twice as fast.
_ENDPOINTS_REMEMBERED = 16384


def encode_device(private_key: bytes | None = None, listen_port: int | None = None) -> bytes:
    """The set operation that changes the device itself.  None leaves a field as it is; private_key: 32 bytes."""
    lines = [_SET]
    if private_key is not None:
        lines.append(b"private_key=%s\n" % private_key.hex().encode())
    if listen_port is not None:
        lines.append(b"listen_port=%d\n" % listen_port)
    lines.append(_END)
    return b"".join(lines)


def encode_peers(changes: Iterable[PeerChange], limit: int) -> Iterator[bytes]:
    """The set operations that make `changes`, in their order.

    limit: bytes after which an operation is closed and the next begins; one peer is never split, so an operation is
    longer than `limit` by less than one peer.  No changes, no operation.
    """
    parts = [_SET]
    size = 0
    for change in changes:
        part = _encode_peer(change)
        parts.append(part)
        size += len(part)
        if size >= limit:
            parts.append(_END)
            yield b"".join(parts)
            parts = [_SET]
            size = 0
    if size:
        parts.append(_END)
        yield b"".join(parts)


def _encode_peer(change: PeerChange) -> bytes:
    """Lines of one peer.  `update_only` stands first: it must forbid the creation before anything else is applied."""
    lines = [f"public_key={change.public_key.hex()}\n"]
    if change.update_only:
        lines.append("update_only=true\n")
    if change.remove:
        lines.append("remove=true\n")
        return "".join(lines).encode()
    if change.endpoint is not None:
        lines.append(f"endpoint={_endpoint_text(change.endpoint)}\n")
    if change.keepalive is not None:
        lines.append(f"persistent_keepalive_interval={change.keepalive}\n")
    if change.replace_allowed_ips:
        lines.append("replace_allowed_ips=true\n")
    lines.extend(f"allowed_ip=-{network}\n" for network in change.drop)
    lines.extend(f"allowed_ip={network}\n" for network in change.add)
    return "".join(lines).encode()


def _endpoint_text(endpoint: Endpoint) -> str:
    """ValueError: it has a zone that is no name of an interface, but would be more lines than one."""
    address, port = endpoint
    if address.version == 4:
        return f"{address}:{port}"
    if address.scope_id and not address.scope_id.isprintable():
        raise ValueError(f"no zone of an address: {address.scope_id!r}")
    return f"[{address}]:{port}"


class Response:
    """One response, fed as it arrives, in pieces of any size."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._complete = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True once the response is complete.

        Raises ProtocolError when bytes follow the end: every operation waits for its response, so nothing may follow.
        """
        scanned = len(self._data)
        self._data += data
        if not self._complete:
            end = self._data.find(b"\n\n", max(scanned - 1, 0))
            if end < 0:
                return False
            self._complete = True
            scanned = end + 2
        if len(self._data) > scanned:
            raise ProtocolError("UAPI: bytes after the end of a response")
        return True

    def result(self) -> tuple[int, bytes]:
        """The error number, positive, 0 for success, and the lines before it.

        Raises ProtocolError when the response is incomplete or does not end with `errno=N`.
        """
        if not self._complete:
            raise ProtocolError("UAPI: the response ends early")
        lines, separator, errno = self._data[:-2].rpartition(b"errno=")
        if not separator or (lines and not lines.endswith(b"\n")):
            raise ProtocolError("UAPI: a response without an errno")
        # wireguard-go writes the number negated, the specification allows both.
        return _number("errno", bytes(errno).removeprefix(b"-")), bytes(lines)


def parse_device(lines: bytes) -> DeviceState:
    """The whole state from the lines of a get response.  Keys that are not known are skipped, as the protocol asks.

    Raises ProtocolError on a line that is not `key=value`, and on a value that is not of its key's type.
    """
    _, *peers = _split_by_peer(lines)
    states = [_parse_peer(peer) for peer in peers]
    return DeviceState(*parse_own(lines), {state.public_key: state for state in states})


def parse_own(lines: bytes) -> Own:
    """Key and port from the lines of a get response, as `parse_device` reads them; no peer is looked at."""
    head = dict(_pairs((b"\n" + lines).partition(b"\npublic_key=")[0]))
    private_key, listen_port = head.get(b"private_key"), head.get(b"listen_port", b"0")
    return Own(_key(private_key) if private_key is not None else bytes(KEY_SIZE), _number("listen_port", listen_port))


def _parse_peer(lines: bytes) -> PeerState:
    said: dict[bytes, bytes] = {}
    allowed_ips = []
    for line in lines[_KEY_DIGITS + 1 :].split(b"\n"):
        key, separator, value = line.partition(b"=")
        if key == b"allowed_ip" and separator:
            allowed_ips.append(_network(value))
        elif separator:
            said[key] = value
        elif line:
            raise _no_pair(line)
    endpoint = said.get(b"endpoint")
    return PeerState(
        _peer_key(lines),
        _endpoint(endpoint) if endpoint is not None else None,
        _number("persistent_keepalive_interval", said.get(b"persistent_keepalive_interval", b"0")),
        frozenset(allowed_ips),
        _number("last_handshake_time_sec", said.get(b"last_handshake_time_sec", b"0")),
        _number("rx_bytes", said.get(b"rx_bytes", b"0")),
        _number("tx_bytes", said.get(b"tx_bytes", b"0")),
    )


class ActivityReader:
    """Reads get responses of one device, one after the other: of two polls most peers show the same, and what was
    parsed once is remembered.
    """

    def __init__(self) -> None:
        # By public key: the same key, the hash of its lines, which are several times as long as what they say, and
        # that.
        self._known: dict[bytes, tuple[bytes, int, Activity]] = {}

    def read(self, lines: bytes) -> dict[bytes, Activity]:
        """Per public key the activity, from the lines of a get response, without looking at any other line.

        Raises ProtocolError like `parse_device`, but only for what it looks at.
        """
        _, *peers = _split_by_peer(lines)
        before, now = self._known, {}
        for peer in peers:
            key, said = _peer_key(peer), hash(peer)
            known = before.get(key)
            if known is None or known[1] != said:
                known = (known[0] if known is not None else key, said, _activity(peer))
            now[known[0]] = known
        self._known = now
        return {key: activity for key, _, activity in now.values()}


def _activity(peer: bytes) -> Activity:
    return Activity(
        _endpoint(endpoint) if (endpoint := _value_of(b"\nendpoint=", peer)) else None,
        _number("last_handshake_time_sec", _value_of(b"\nlast_handshake_time_sec=", peer) or b"0"),
        _number("rx_bytes", _value_of(b"\nrx_bytes=", peer) or b"0"),
        _number("tx_bytes", _value_of(b"\ntx_bytes=", peer) or b"0"),
    )


def _split_by_peer(lines: bytes) -> list[bytes]:
    """The device's lines, then each peer's, which begin with the value of its `public_key`."""
    return (b"\n" + lines).split(b"\npublic_key=")


def _pairs(lines: bytes) -> list[tuple[bytes, bytes]]:
    split = [line.partition(b"=") for line in lines.split(b"\n") if line]
    for line, separator, _ in split:
        if not separator:
            raise _no_pair(line)
    return [(key, value) for key, _, value in split]


def _no_pair(line: bytes) -> ProtocolError:
    return ProtocolError(f"UAPI: not a key=value line: {line!r}")


def _value_of(key: bytes, peer: bytes) -> bytes:
    start = peer.find(key)
    if start < 0:
        return b""
    start += len(key)
    end = peer.find(b"\n", start)
    return peer[start:] if end < 0 else peer[start:end]


def _peer_key(peer: bytes) -> bytes:
    key = peer[:_KEY_DIGITS]
    if peer[_KEY_DIGITS : _KEY_DIGITS + 1] not in (b"\n", b""):
        raise ProtocolError(f"UAPI: not a key: {peer[: _KEY_DIGITS + 8]!r}")
    return _key(key)


def _key(value: bytes) -> bytes:
    try:
        key = a2b_hex(value)
    except ValueError as error:
        raise ProtocolError(f"UAPI: not a key: {value!r}") from error
    if len(key) != KEY_SIZE:
        raise ProtocolError(f"UAPI: not a key: {value!r}")
    return key


def _number(key: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > _NUMBER_DIGITS:
        raise ProtocolError(f"UAPI: {key} is not a number: {value!r}")
    return int(value)


def _network(value: bytes) -> Network:
    if (plain := addresses.network(value)) is not None:
        return plain
    text = value.decode(errors="replace")
    try:
        return IPv6Network(text) if ":" in text else IPv4Network(text)
    except ValueError as error:
        raise ProtocolError(f"UAPI: not an allowed IP: {value!r}") from error


@lru_cache(_ENDPOINTS_REMEMBERED)
def _endpoint(value: bytes) -> Endpoint:
    name, _, port = value.rpartition(b":")
    host = name.decode(errors="replace")
    if (plain := addresses.address(host)) is not None and plain.version == 4:
        return plain, _number("port", port)
    try:
        if host.startswith("[") and host.endswith("]"):
            return IPv6Address(host[1:-1]), _number("port", port)
        return IPv4Address(host), _number("port", port)
    except ValueError as error:
        raise ProtocolError(f"UAPI: not an endpoint: {value!r}") from error
