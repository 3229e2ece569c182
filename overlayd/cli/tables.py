"""What `overlayctl` prints: answers as tables, as JSON, as a wg-quick file.

Owns: layout for people.  Must not know: where answers come from; the clock (`now` is an argument, Unix seconds).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from overlayd import wire
from overlayd.cli.columns import PLAIN, Column, Paper, Tone, printable, table, toned
from overlayd.client import Whoami
from overlayd.errors import ProtocolError

SHORT_KEY = 8  # characters; as many as WireGuard's own logs need to tell peers apart
LAST_SECOND = 253402300799  # of the year 9999, where datetime ends


def pretty_json(value: object) -> str:
    """A message, or a sequence of parts of one, as indented JSON in the contract's shape."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def line_json(value: object) -> str:
    """The same on one line."""
    return msgspec.json.encode(value).decode()


def status(status: wire.Status, *, wide: bool, now: float, paper: Paper = PLAIN) -> str:
    """Whether all is well, the node's overlay, a table of its services, and one of the devices of dedicated ones, each
    if there are any.
    """
    facts = [
        ("interface", status.interface or "none: the global overlay is not set up"),
        ("node address", status.node_ip or "none"),
        ("public key", status.public_key or "none"),
        ("cluster CIDR", status.overlay_cidr or "none"),
        ("node slice", status.slice_cidr or "none"),
        ("peers", str(status.peer_count)),
        ("services", f"{status.service_count}, {len(status.dedicated_services)} of them dedicated"),
    ]
    if status.version is not None:
        facts += [
            ("node id", "none" if status.node_id is None else str(status.node_id)),
            ("WireGuard", _wireguard(status)),
            ("overlayd", f"{status.version}, started {age(status.started_at_unix or 0, now)}"),
        ]
    facts += [("served by", line) for line in _servers(status.devices)]
    word, tone = verdict(status)
    lines = [toned(word, tone, paper), ""]
    lines += [f"{name:<14}{printable(value)}" for name, value in facts]
    if status.services:
        services = [(each.service, each.mode, each.subnet, each.gateway, each.bridge) for each in status.services]
        columns = (Column("SERVICE", 16), "MODE", "SUBNET", Column("GATEWAY", rank=1), Column("BRIDGE", rank=2))
        lines += ["", table(columns, services, paper)]
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
        header = (
            Column("SERVICE", 16),
            "DEVICE",
            Column("ADDRESS", rank=2),
            Column("SUBNET", rank=3),
            "PORT",
            "PEERS",
            Column("PUBLIC KEY", rank=1),
        )
        lines += ["", table(header, rows, paper)]
    return "\n".join(lines)


def verdict(status: wire.Status) -> tuple[str, Tone]:
    """In one line whether all is well, and how that is coloured."""
    if status.overlay_cidr is None:
        return f"not set up: {awaited(status)}", "doubtful"
    silent = sum(each.health == "silent" for each in status.peers)
    if status.interface is None:
        return "NOT well: this node has no WireGuard, so no tunnels (overlayctl doctor)", "bad"
    number = silent if status.findings is None else status.findings
    held = f"{status.peer_count} peers, {status.service_count} services"
    if number:
        things = "1 thing is" if number == 1 else f"{number} things are"
        return f"NOT well: {things} wrong, of {held}; overlayctl doctor says what to do", "bad"
    return f"all is well: {held}", ""


def awaited(status: wire.Status) -> str:
    """What an overlay that is not set up waits for."""
    if status.cluster is None:
        return "overlayd waits for an orchestrator's setup_global_overlay"
    return f"cluster {status.cluster.name}: {status.cluster.error or 'asking the store'}"


def well(status: wire.Status) -> bool:
    """Whether the overlay is set up and nothing is known to be wrong."""
    return status.interface is not None and verdict(status)[1] == ""


def _wireguard(status: wire.Status) -> str:
    if status.backend is None:
        return "none: containers of this node only"
    return f"{status.backend}, UDP port {status.wg_port or 'none'}, MTU {status.mtu}"


def _servers(devices: Sequence[wire.StatusDevice]) -> list[str]:
    """What serves the devices, those of a kind in one line."""
    kinds: dict[str, list[str]] = {}
    for each in devices:
        program = "the kernel" if each.backend == "kernel" else "wireguard-go"
        kinds.setdefault(f"{program}, version {each.version or 'unknown'}", []).append(each.interface)
    return [f"{kind} ({names[0] if len(names) == 1 else f'{len(names)} devices'})" for kind, names in kinds.items()]


def renewed(devices: Sequence[wire.RenewedDevice]) -> str:
    """One line a device that was renewed."""
    rows = [
        (
            each.interface,
            each.before or "unknown",
            each.after or "unknown",
            f"{each.down_ms} ms",
            f"{each.answered} of {each.sessions}" + (f" after {each.restored_ms} ms" if each.answered else ""),
        )
        for each in devices
    ]
    header = ("DEVICE", "BEFORE", "NOW", "DOWN FOR", "SESSIONS BACK")
    return table(header, rows) if rows else "every device is served by the newest already"


def findings(findings: Sequence[wire.Finding]) -> str:
    """What the doctor found: a line each, after one that all is well when they are nothing but hints."""
    lines = list(map(_finding, findings))
    if all(each.severity == "hint" for each in findings):
        lines.insert(0, "all is as it should be")
    return "\n".join(lines)


def _finding(finding: wire.Finding) -> str:
    """A finding as "error device-silent: device zl-a-g does not answer; tunnels stand still; wait"."""
    parts = (f"{finding.object} {finding.problem}", finding.symptom, finding.remedy)
    head = " ".join(filter(None, (finding.severity or "error", finding.code)))
    return printable(f"{head}: {'; '.join(filter(None, parts))}")


def nat(status: wire.NatStatus, *, wide: bool, now: float, paper: Paper = PLAIN) -> str:
    """This node's candidates and, below, one line a peer."""
    candidates = [(each.candidate_type, each.address, str(each.priority)) for each in status.candidates]
    peers = [
        (peer.name or key(peer.node_id, wide=wide), _connection(peer), peer.remote_endpoint or "unknown")
        for peer in status.peers
    ]
    parts = [
        table(("CANDIDATE", "ADDRESS", Column("PRIORITY", rank=1)), candidates, paper)
        if candidates
        else "no candidates",
        table((Column("PEER", 12), "CONNECTION", Column("ENDPOINT", 15)), peers, paper) if peers else "no peers",
        f"candidates refreshed {age(status.last_refresh, now)}",
    ]
    if status.relay_failure:
        parts.append(f"no relay: {printable(status.relay_failure)}")
    return "\n\n".join(parts)


def upstreams(known: wire.Dns, paper: Paper = PLAIN) -> str:
    """The zone, the cache, and where names come from that are not registered here."""
    rows = [[each.address, each.state] for each in known.upstreams]
    asked = known.hits + known.misses
    share = f", {known.hits * 100 // asked} % of {asked} questions answered from there" if asked else ""
    return "\n".join(
        (
            f"zone    {printable(known.zone)}",
            f"cache   {known.cached} answers, {known.cached_bytes} bytes{share}",
            "",
            table([Column("UPSTREAM", 16), "STATE"], rows, paper),
        )
    )


def dns_answer(answer: wire.DnsAnswer, paper: Paper = PLAIN) -> str:
    """Who answered what, and the records."""
    sources = {
        "own": "from the names of this node",
        "cache": "from the cache",
        "upstream": "from an upstream",
        "stale": "from the cache, though its time is over",
        "none": "nobody has an answer",
    }
    source = printable(sources.get(answer.source, answer.source))
    server = f", of {printable(answer.server)}" if answer.server else ""
    lines = [f"{printable(answer.name)} {printable(answer.type)}: {printable(answer.rcode)}, {source}{server}"]
    if answer.error:
        lines.append(printable(answer.error))
    for title, records in (("RECORD", answer.records), ("AUTHORITY", answer.authorities)):
        if records:
            rows = [(each.name, f"{each.ttl} s", each.type, each.data) for each in records]
            lines += ["", table((title, "TTL", "TYPE", "DATA"), rows, paper)]
    if answer.left_out:
        lines.append(f"and {answer.left_out} more")
    return "\n".join(lines)


def edge_peers(peers: Sequence[wire.EdgePeer], *, wide: bool, now: float, paper: Paper = PLAIN) -> str:
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
    header = (
        Column("NAME", 12),
        "ADDRESS",
        Column("ALLOWED", 14),
        "EXPIRES",
        Column("LAST HANDSHAKE", rank=2),
        Column("PUBLIC KEY", rank=1),
    )
    return table(header, rows, paper) if rows else "no edge peers"


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
        case wire.Changed(what=what, finding=wire.Finding() as found):
            return printable(f"{time} finding {what} {found.code}: {found.object} {found.problem}; {found.remedy}")
        case wire.Changed(kind=kind, object=object, what=what):
            return printable(f"{time} {kind} {object} {what}".replace("  ", " "))


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


def size(number: float) -> str:
    """A number of bytes in its largest fitting unit."""
    for unit, bytes in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= bytes:
            return f"{number / bytes:.1f} {unit}"
    return f"{int(number)} B"


def _connection(peer: wire.NatPeer) -> str:
    return f"{peer.connection_type} (idle)" if peer.health == "idle" else peer.connection_type
