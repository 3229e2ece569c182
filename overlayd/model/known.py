"""What the rows of a state tell of who is where.

Owns: from rows to what a way is explained by (`ends.Known`).  Must not know: the way (`path`), or whose state it is.
"""

from collections.abc import Iterable

from overlayd import keys
from overlayd.model import ends, rows
from overlayd.model.ends import Known
from overlayd.model.layout import mac
from overlayd.model.objects import GLOBAL
from overlayd.model.state import State
from overlayd.model.subnets import first_usable


def known(
    state: State,
    *,
    services: Iterable[rows.Service],
    attachments: Iterable[rows.Attachment],
    peers: Iterable[rows.Peer],
    mtu: int = 0,
    findings: tuple[tuple[str, str, str, str], ...] = (),
) -> Known | None:
    """These rows of a state; None when it has no overlay.  mtu, findings: see `Known`, which is to have no names."""
    overlay = state.get(rows.Overlay)
    if overlay is None:
        return None
    services = [*services]
    devices = {GLOBAL: (overlay.interface, keys.text(keys.public(state.node.private_key)))} if overlay.up else {}
    devices |= {each.name: (each.device, keys.text(keys.public(each.private_key))) for each in services if each.device}
    return Known(
        cluster=overlay.cluster,
        slice=overlay.slice,
        node_address=first_usable(overlay.slice or overlay.cluster),
        mtu=mtu,
        devices=devices,
        services={
            each.name: ends.Service(each.name, each.subnet, first_usable(each.subnet), each.bridge, each.device)
            for each in services
        },
        members=tuple(map(_member, attachments)),
        peers=tuple(map(_peer, peers)),
        names={},
        findings=findings,
    )


def _peer(row: rows.Peer) -> ends.Peer:
    allowed_ips = tuple(dict.fromkeys((*row.listed, *row.added)))  # in their order: the first is the node's own
    return ends.Peer(row.name, keys.text(row.public_key), row.scope, row.endpoint, allowed_ips)


def _member(row: rows.Attachment) -> ends.Member:
    own = row.namespace is not None
    return ends.Member(
        row.handle,
        row.service,
        row.address,
        row.global_address,
        row.isolation_network,
        row.host_end() if own else "",
        (row.mac or mac(row.address)).hex(":") if own else "",
        row.interface or "eth0",
        row.file.path if row.file is not None else "",
    )
