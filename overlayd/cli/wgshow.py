"""Devices and peers in the forms of wg(8), with the names of peers.

Owns: the two forms.  Must not know: where the rows come from; the clock (`now` is an argument, Unix seconds).
"""

from collections.abc import Iterator, Sequence

from overlayd import wire
from overlayd.cli.columns import printable
from overlayd.cli.tables import size

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def show(status: wire.Status, peers: Sequence[wire.ListedPeer], now: float) -> str:
    """As `wg show` prints it, each peer with its name, if it has one."""
    blocks = []
    for service, interface, public_key, port in _devices(status):
        lines = [f"interface: {interface}", f"  public key: {public_key}", "  private key: (hidden)"]
        lines += [f"  listening port: {port}"] if port is not None else []
        blocks.append("\n".join(lines))
        own = [each for each in peers if (each.service or "") == service]
        # wg shows the peer that shook hands last first.
        for peer in sorted(own, key=lambda each: -each.last_handshake_unix_secs):
            blocks.append("\n".join(_peer(peer, now)))
    return "\n\n".join(blocks) or "no devices"


def dump(status: wire.Status, peers: Sequence[wire.ListedPeer]) -> str:
    """As `wg show all dump` prints it, without private keys, each peer with its name in one field more at the end."""
    lines: list[tuple[str, ...]] = []
    for service, interface, public_key, port in _devices(status):
        lines.append((interface, "(hidden)", public_key, str(port or 0), "off"))
        for peer in peers:
            if (peer.service or "") == service:
                lines.append(
                    (
                        interface,
                        peer.public_key,
                        "(none)",
                        peer.endpoint or "(none)",
                        ",".join(peer.allowed_ips) or "(none)",
                        str(peer.last_handshake_unix_secs),
                        str(peer.rx_bytes),
                        str(peer.tx_bytes),
                        str(peer.persistent_keepalive_secs or "off"),
                        peer.name or "",
                    )
                )
    return "\n".join("\t".join(map(printable, line)) for line in lines)


def _devices(status: wire.Status) -> Iterator[tuple[str, str, str, int | None]]:
    """The scope, the name, the public key and the port of each."""
    if status.interface is not None:
        yield "", status.interface, status.public_key or "(none)", status.wg_port
    for service in status.dedicated_services:
        yield service.service, service.interface, service.public_key, service.listen_port


def _peer(peer: wire.ListedPeer, now: float) -> Iterator[str]:
    yield f"peer: {peer.public_key}"
    if peer.name:
        yield f"  name: {printable(peer.name)}"
    if peer.endpoint:
        yield f"  endpoint: {printable(peer.endpoint)}"
    yield f"  allowed ips: {', '.join(peer.allowed_ips) or '(none)'}"
    if peer.last_handshake_unix_secs:
        yield f"  latest handshake: {_ago(now - peer.last_handshake_unix_secs)}"
    if peer.rx_bytes or peer.tx_bytes:
        yield f"  transfer: {size(peer.rx_bytes)} received, {size(peer.tx_bytes)} sent"
    if peer.persistent_keepalive_secs:
        yield f"  persistent keepalive: every {_count(peer.persistent_keepalive_secs, 'second')}"


def _ago(seconds: float) -> str:
    left, parts = max(0, int(seconds)), []
    for unit, length in _UNITS:
        number, left = divmod(left, length)
        if number:
            parts.append(_count(number, unit))
    return f"{', '.join(parts)} ago" if parts else "Now"


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
