"""Taking up what an earlier daemon, or an earlier boot, left behind.

Owns: the first state, the dead that nobody detached, and the first audit of the kernel.  Must not know: the socket.
"""

import logging
import time
from pathlib import Path

from overlayd import keys
from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node as LiveNode
from overlayd.linux import egress, netns
from overlayd.linux.nft import Nft
from overlayd.linux.wireguard.choice import Preference, choose
from overlayd.model import attachments, edges
from overlayd.model.layout import Facts
from overlayd.model.rows import Attachment, Lease, Node, decode
from overlayd.model.state import Draft, State

log = logging.getLogger(__name__)


def boot_id() -> str:
    """Which boot this is (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def node(journal: Journal, wireguard: Preference) -> LiveNode:
    """The node as the journal has it, on the mechanisms of this host."""
    backend = choose(wireguard)
    if backend is None:
        log.warning(
            "no WireGuard on this host: no tunnels, guests only; install wireguard-go or load the wireguard module"
        )
    facts = Facts(mtu=egress.overlay_mtu(egress.physical_egress()), devices=backend is not None)
    if journal.recovered:
        log.warning("journal: %s", journal.recovered)
    state = State(decode(id, data) for id, data in journal.rows.items())
    journal.rows.clear()
    return LiveNode(state, journal, Kernel(backend, Nft()), facts)


async def resume(node: LiveNode, boot: str) -> None:
    """Make sure that we have an identity, give back what the dead held, and make the kernel what the state says."""
    await node.take_over(_have_identity)
    await node.take_over(
        lambda draft: _take_up(draft, boot), at_any_price=True
    )  # a full disk is no reason not to start
    for _, error in await node.reconcile():
        log.error("start: %s", error)
    released = (lease.address for lease in node.state.table(Lease).values() if not lease.holder)
    node.kernel.forget(released)  # an earlier daemon may have ended between a release and this


def _have_identity(draft: Draft) -> None:
    if draft.get(Node) is None:
        draft.put(Node(private_key=keys.generate()))


def _take_up(draft: Draft, boot: str) -> None:
    """Detach the containers of an earlier boot, and those that died while nobody watched; shut out the edge peers whose
    time is over.
    """
    for attachment in list(draft.all(Attachment)):
        if attachment.netns is None:
            continue
        same_boot = attachment.boot_id == boot
        if not attachments.leave(draft, attachment, netns.is_alive if same_boot else lambda _: False):
            log.info("%s is gone: %s is free again", attachment.handle, attachment.address)
    for name in edges.expire(draft, time.time()):
        log.info("edge peer %s has expired", name)
