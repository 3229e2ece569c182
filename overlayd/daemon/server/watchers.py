"""Telling those who watch what has changed.

Owns: from rows and findings to `changed` events.  Must not know: sockets, or who watches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from overlayd import keys, wire
from overlayd.daemon.change.node import Node
from overlayd.daemon.handlers.doctor import as_sent
from overlayd.daemon.server.server import Server
from overlayd.model.findings import Finding
from overlayd.model.rows import Attachment, Change, Edge, Overlay, Peer, Record, Service, peer_of

Kind = Literal["overlay", "service", "container", "peer", "name", "edge", "repair"]

KINDS: dict[str, Kind] = {
    Overlay.table: "overlay",
    Service.table: "service",
    Attachment.table: "container",
    Peer.table: "peer",
    Record.table: "name",
    Edge.table: "edge",
}


def tell_finding(server: Server, finding: Finding, raised: bool) -> None:
    """Tell the watchers that a finding was raised, or cleared."""
    if server.is_watched:
        what: Literal["raised", "cleared"] = "raised" if raised else "cleared"
        server.publish(wire.Changed("finding", finding.object, what, as_sent(finding)))


@contextmanager
def told(node: Node, server: Server) -> Iterator[Callable[[str], None]]:
    """Tell the watchers of every change that has taken effect, until the block ends.  Yields what tells them of a
    repair, by the name of what was put right.
    """

    def follow(change: Change) -> None:
        if not server.is_watched:
            return
        for (table, key), row in change.items():
            kind = KINDS.get(table)
            if kind is not None:
                object = keys.text(peer_of(key)[0]) if kind == "peer" else key
                server.publish(wire.Changed(kind, object, "removed" if row is None else "set"))

    with node.subscribe(follow):
        yield lambda name: server.publish(wire.Changed("repair", name, "repaired"))
