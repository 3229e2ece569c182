"""What `overlayctl` prints: answers as tables, as JSON, as a wg-quick file.

Owns: layout for people.  Must not know: where answers come from; the clock (`now` is an argument, Unix seconds).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from overlayd import wire
from overlayd.client import Whoami
from overlayd.errors import ProtocolError

SHORT_KEY = 8  # characters; as many as WireGuard's own logs need to tell peers apart
LAST_SECOND = 253402300799  # of the year 9999, where datetime ends
HEALTHY_SECS = 180  # a session is renewed every 120 s and dies after 180 s (WireGuard: REJECT_AFTER_TIME)


def pretty_json(value: object) -> str:
    """A message, or a sequence of parts of one, as indented JSON in the contract's shape."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def line_json(value: object) -> str:
    """The same on one line."""
    return msgspec.json.encode(value).decode()


def status(status: wire.Status, *, wide: bool) -> str:
    """The node's overlay, a table of its services, and one of the devices of dedicated ones, each if there are any."""
    facts = [
        ("interface", status.interface or "none: the global overlay is not set up"),
        ("node address", status.node_ip or "none"),
        ("public key", status.public_key or "none"),
        ("cluster CIDR", status.overlay_cidr or "none"),
        ("node slice", status.slice_cidr or "none"),
        ("peers", str(status.peer_count)),
        ("services", f"{status.service_count}, {len(status.dedicated_services)} of them dedicated"),
    ]
    lines = [f"{name:<14}{printable(value)}" for name, value in facts]
    if status.services:
        services = [(each.service, each.mode, each.subnet, each.gateway, each.bridge) for each in status.services]
        lines += ["", table(("SERVICE", "MODE", "SUBNET", "GATEWAY", "BRIDGE"), services)]
    if status.dedicated_services:
        rows = [
            (
                service.service,
                service.interface,
                service.overlay_ip,
                service.subnet,
                str(service.listen_port),
                str(service.peer_count),
                key(service.public_key, wide=wide),
            )
            for service in status.dedicated_services
        ]
        header = ("SERVICE", "DEVICE", "ADDRESS", "SUBNET", "PORT", "PEERS", "PUBLIC KEY")
        lines += ["", table(header, rows)]
    return "\n".join(lines)


def findings(findings: Sequence[wire.Finding]) -> str:
    """What the doctor found: a line each."""
    return "\n".join(map(_finding, findings)) or "all is as it should be"


def _finding(finding: wire.Finding) -> str:
    """A finding as "error device-silent: device zl-a-g does not answer; tunnels stand still; wait"."""
    parts = (f"{finding.object} {finding.problem}", finding.symptom, finding.remedy)
    head = " ".join(filter(None, (finding.severity or "error", finding.code)))
    return printable(f"{head}: {'; '.join(filter(None, parts))}")


def peers(peers: Sequence[wire.StatusPeer], *, wide: bool, now: float) -> str:
    """One line a peer, those that are idle or do not answer marked."""
    rows = [
        (
            key(peer.public_key, wide=wide),
            peer.endpoint or "unknown",
            peer.allowed_ips.replace(",", ", ") or "none",
            age(peer.last_handshake_unix_secs, now) + _remark(peer, now),
        )
        for peer in peers
    ]
    return table(("PUBLIC KEY", "ENDPOINT", "ALLOWED IPS", "LAST HANDSHAKE"), rows) if rows else "no peers"


def nat(status: wire.NatStatus, *, wide: bool, now: float) -> str:
    """This node's candidates and, below, one line a peer."""
    candidates = [(each.candidate_type, each.address, str(each.priority)) for each in status.candidates]
    peers = [
        (key(peer.node_id, wide=wide), _connection(peer), peer.remote_endpoint or "unknown") for peer in status.peers
    ]
    parts = [
        table(("CANDIDATE", "ADDRESS", "PRIORITY"), candidates) if candidates else "no candidates",
        table(("PEER", "CONNECTION", "ENDPOINT"), peers) if peers else "no peers",
        f"candidates refreshed {age(status.last_refresh, now)}",
    ]
    if status.relay_failure:
        parts.append(f"no relay: {printable(status.relay_failure)}")
    return "\n\n".join(parts)


def dns(known: wire.Dns) -> str:
    """Registered names, and where the others come from."""
    names = [[printable(each.name), " ".join(each.ips)] for each in known.names]
    upstreams = [[printable(each.address), printable(each.state)] for each in known.upstreams]
    asked = known.hits + known.misses
    share = f", {known.hits * 100 // asked} % of {asked} questions answered from there" if asked else ""
    return "\n".join(
        (
            f"zone    {printable(known.zone)}",
            f"cache   {known.cached} answers, {known.cached_bytes} bytes{share}",
            "",
            table(["UPSTREAM", "STATE"], upstreams),
            "",
            table(["NAME", "ADDRESSES"], names),
        )
    )


def edge_peers(peers: Sequence[wire.EdgePeer], *, wide: bool, now: float) -> str:
    """One line an edge peer; the services that it was granted by name stand behind what it reaches."""
    rows = [
        (
            peer.name,
            peer.overlay_ip,
            (", ".join(peer.allowed) or "none") + (f" (of {', '.join(peer.services)})" if peer.services else ""),
            "expired" if peer.expires_at_unix <= now else f"in {span(peer.expires_at_unix - now)}",
            "unknown" if peer.last_handshake_unix_secs is None else age(peer.last_handshake_unix_secs, now),
            key(peer.public_key, wide=wide),
        )
        for peer in peers
    ]
    header = ("NAME", "ADDRESS", "ALLOWED", "EXPIRES", "LAST HANDSHAKE", "PUBLIC KEY")
    return table(header, rows) if rows else "no edge peers"


def whoami(who: Whoami, *, now: float) -> str:
    """What the daemon says of itself."""
    started = datetime.fromtimestamp(min(who.started_at_unix_ms / 1000, LAST_SECOND), UTC)
    facts = [
        ("process", f"{who.pid}, of user {who.uid}"),
        ("executable", who.exe_path),
        ("its BLAKE3", who.exe_hash),
        ("socket", who.socket),
        ("namespace", who.namespace_id),
        ("started", f"{started:%Y-%m-%d %H:%M:%S} UTC, {age(int(started.timestamp()), now)}"),
        ("boot", who.boot_id),
        ("verified", f"against {who.identity_file}" if who.identity_file else "no: name its --identity-file"),
    ]
    return "\n".join(f"{name:<12}{printable(value)}" for name, value in facts)


def event(event: wire.Event, *, now: float) -> str:
    """One line; keys are whole, to be searched for."""
    time = datetime.fromtimestamp(now).astimezone().isoformat(timespec="seconds")
    match event:
        case wire.PeerHealthChanged(pubkey=pubkey, healthy=healthy):
            return f"{time} {pubkey} {'healthy' if healthy else 'unhealthy'}"
        case wire.NatEndpointChanged(pubkey=pubkey, endpoint=endpoint):
            return f"{time} {pubkey} endpoint {endpoint}"


def wg_quick(config: wire.EdgeConfig) -> str:
    """The configuration as a file for wg-quick(8).

    Raises ProtocolError for a value of more than one line: it could smuggle in a PostUp command.
    """
    expires = datetime.fromtimestamp(min(config.expires_at_unix, LAST_SECOND), UTC)
    interface = [
        ("PrivateKey", config.private_key),
        ("Address", f"{config.overlay_ip}/{config.prefix_len}"),
    ]
    if config.dns_server:
        interface.append(
            ("DNS", f"{config.dns_server}, {config.dns_domain}" if config.dns_domain else config.dns_server)
        )
    sections = [("[Interface]", interface)]
    for peer in config.peers:
        settings = [("PublicKey", peer.public_key), ("AllowedIPs", peer.allowed_ips.replace(",", ", "))]
        if peer.endpoint:
            settings.append(("Endpoint", peer.endpoint))
        if peer.persistent_keepalive_secs:
            settings.append(("PersistentKeepalive", str(peer.persistent_keepalive_secs)))
        sections.append(("[Peer]", settings))
    lines = [f"# {config.name}: an edge peer, until {expires:%Y-%m-%d %H:%M:%S} UTC"]
    for title, settings in sections:
        lines += ["", title, *(f"{name} = {value}" for name, value in settings)]
    for line in lines:
        if not line.isprintable():
            raise ProtocolError(f"the daemon sent a value that no configuration may hold: {line!a:.80}")
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """The text, with what a terminal would act on in escapes: names are anybody's who may use or serves the socket."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def key(text: str, *, wide: bool) -> str:
    """A public key, its beginning only unless wide."""
    return text if wide or len(text) <= SHORT_KEY else f"{text[:SHORT_KEY]}..."


def age(then: int, now: float) -> str:
    """How long ago; then: Unix seconds, 0 = never."""
    return f"{span(now - then)} ago" if then else "never"


def span(seconds: float) -> str:
    """A length of time in its largest fitting unit; a negative one, of clocks that disagree, is none."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds / size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _connection(peer: wire.NatPeer) -> str:
    return f"{peer.connection_type} (idle)" if peer.health == "idle" else peer.connection_type


def _remark(peer: wire.StatusPeer, now: float) -> str:
    """An older daemon does not tell whether a peer is idle or does not answer."""
    old = 0 < peer.last_handshake_unix_secs <= now - HEALTHY_SECS
    remark = peer.health or ("stale" if old else "")
    return f" ({remark})" if remark else ""
