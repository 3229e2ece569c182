"""Grants of edge peers that have come to nothing.

Owns: saying so when a service goes.  Must not know: how a grant is enforced (`model.ruleset`), or why the service went.
"""

import logging

from overlayd.daemon.change.node import Node
from overlayd.model.rows import Change, Edge, Service

log = logging.getLogger(__name__)


def tell_lost(node: Node, change: Change) -> None:
    """Log which edge peers were granted a service that this change has removed."""
    gone = {key for (table, key), row in change.items() if table == Service.table and row is None}
    if not gone:
        return
    for edge in node.state.table(Edge).values():
        for name in edge.services:
            if name in gone:
                log.warning("edge peer %s reaches nothing of service %s any more: it left this node", edge.name, name)
