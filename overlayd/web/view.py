"""What the page shows of a node, as JSON.

Owns: which requests are sent for it, and what is cut short.  Must not know: HTTP, or how it is drawn.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from overlayd import wire
from overlayd.client import OverlayClient

# Our own constants: rows that a person reads through; of more peers than that there are groups.
MOST_PEERS = 200
MOST_WORSE = 50  # of the peers that are not well, beside the groups
MOST_CONTAINERS = 50  # of a service
MOST_NAMES = 500


async def node(client: OverlayClient) -> bytes:
    """A JSON object of everything but the findings."""
    status = await client.status()
    services = (await client.list("services")).services
    containers = (await client.list("containers")).containers
    dns = await client.list_dns()
    return msgspec.json.encode(
        {
            "status": msgspec.structs.replace(status, peers=(), services=(), devices=(), dedicated_services=()),
            "peers": peers((await client.list("peers")).peers),
            "services": _services(services, containers),
            "pools": (await client.list("pools")).pools,
            "names": {"zone": dns.zone, "total": len(dns.names), "shown": dns.names[:MOST_NAMES]},
        }
    )


async def findings(client: OverlayClient) -> bytes:
    """A JSON list of what the doctor finds."""
    return msgspec.json.encode(await client.doctor())


def peers(listed: Sequence[wire.ListedPeer]) -> dict[str, Any]:
    """All of them, the worst first; of many the groups by health and path, and those that are not well."""
    ordered = sorted(listed, key=lambda peer: (-_badness(peer), peer.name or peer.public_key))
    groups = Counter((_health(peer), peer.path or "") for peer in listed)
    shown = ordered
    if len(ordered) > MOST_PEERS:
        shown = [peer for peer in ordered if _badness(peer)][:MOST_WORSE]
    return {
        "total": len(ordered),
        "groups": [{"health": h, "path": path, "peers": number} for (h, path), number in sorted(groups.items())],
        "shown": [
            {
                "name": peer.name or f"{peer.public_key[:8]}...",
                "key": peer.public_key,
                "service": peer.service or "",
                "health": _health(peer),
                "path": peer.path or "",
                "endpoint": peer.endpoint or "",
                "allowed_ips": peer.allowed_ips,
                "handshake": peer.last_handshake_unix_secs,
                "rx": peer.rx_bytes,
                "tx": peer.tx_bytes,
            }
            for peer in shown
        ],
    }


def _health(peer: wire.ListedPeer) -> str:
    """In the words of `overlayctl peers`."""
    return peer.health or ("answers" if peer.last_handshake_unix_secs else "new")


def _badness(peer: wire.ListedPeer) -> int:
    return 2 if peer.health == "silent" else 1 if peer.path == "unreachable" else 0


def _services(
    services: Sequence[wire.ListedService], containers: Sequence[wire.ListedContainer]
) -> list[dict[str, Any]]:
    members: dict[str, list[wire.ListedContainer]] = {
        name: list(group)
        for name, group in groupby(sorted(containers, key=lambda each: each.service), lambda each: each.service)
    }
    return [
        {**msgspec.to_builtins(each), "containers": members.get(each.service, [])[:MOST_CONTAINERS]}
        for each in sorted(services, key=lambda each: each.service)
    ]
