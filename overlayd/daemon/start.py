"""Taking up what an earlier daemon, or an earlier boot, left behind.

Owns: the first state, the dead that nobody detached, and the first audit of the kernel.  Must not know: the socket.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from overlayd import keys
from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node as LiveNode
from overlayd.daemon.change.presence import ended
from overlayd.errors import MechanismError, StateError
from overlayd.linux import egress, forwarding, netns
from overlayd.linux.nft import Nft
from overlayd.linux.observe import MarkedLink, marked_links
from overlayd.linux.wireguard.choice import Preference, choose, missing
from overlayd.model import attachments, drift, edges, overlay, set_members
from overlayd.model.layout import Facts
from overlayd.model.objects import GLOBAL
from overlayd.model.rows import Attachment, Lease, Node, Overlay, Row, decode
from overlayd.model.state import Draft, State
from overlayd.model.wireguard_go import unknown as unknown_program

log = logging.getLogger(__name__)

FEW = 4  # our own: so many links are named


def boot_id() -> str:
    """Which boot this is (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def node(journal: Journal, wireguard: Preference, wireguard_go: str = "") -> LiveNode:
    """The node as the journal has it, on the mechanisms of this host."""
    backend = choose(wireguard, wireguard_go)
    if backend is None:
        log.warning(
            "no WireGuard on this host (%s): no tunnels, guests only; install wireguard-go or load its module",
            missing(wireguard, wireguard_go),
        )
    elif backend.name == "userspace" and not backend.installed():
        log.warning("%s", unknown_program().line)
    facts = Facts(mtu=egress.overlay_mtu(egress.physical_egress()), devices=backend is not None)
    if journal.recovered:
        log.warning("journal: %s", journal.recovered)
    state = State(decode(id, data) for id, data in journal.rows.items())
    journal.rows.clear()
    return LiveNode(state, journal, Kernel(backend, Nft()), facts)


async def resume(node: LiveNode, boot: str, *, adopting: bool = False) -> None:
    """Make sure that we have an identity, give back what the dead held, and make the kernel what the state says.

    adopting: a state without an overlay is first made of what this host carries.  StateError, before anything is
    written or removed: this host has links of an overlay that is not this state's, or that cannot be adopted.
    """
    if adopting:
        await _adopt(node, boot)
    await node.run(_refuse_strangers, node)
    closed, bridged = await node.run(_host, node.kernel.nft)
    await node.take_over(_have_identity)
    await node.take_over(
        lambda draft: _take_up(draft, boot, closed, bridged), at_any_price=True
    )  # a full disk is no reason not to start
    steps, failures = await node.reconcile()
    failed = {id(step) for step, _ in failures}
    removed = [step for step in steps if step.want is None and id(step) not in failed]
    for name, problem in drift.describe(removed):
        log.warning("start: %s %s: removed", name, problem)
    for _, error in failures:
        log.error("start: %s", error)
    released = (lease.address for lease in node.state.table(Lease).values() if not lease.holder)
    node.kernel.forget(released)  # an earlier daemon may have ended between a release and this


def _refuse_strangers(node: LiveNode) -> None:
    """StateError when the links on this host are of a state that this is not: they may carry living containers.

    A state without an overlay has no links, for an overlay that was torn down stays in it, but for the device of a
    first setup that the kernel refused and we died taking back; and a device has the key of its node for good.
    """
    links = marked_links()
    overlay = node.state.get(Overlay)
    if overlay is None:
        strangers = [link for link in links if not _is_half_made(node, link)]
        if strangers:
            names = sorted(link.name for link in strangers)
            shown = ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
            raise StateError(
                f"this host carries {len(strangers)} links of an overlay that this state does not know ({shown}): "
                "wrong --data-dir? To remove them, with the networks of the containers on them: overlayd --teardown; "
                "to keep them, as far as they tell what they are: overlayd --adopt"
            )
        return
    devices = [link.name for link in links if link.device == GLOBAL]
    backend = node.kernel.backend
    if not devices or backend is None or not backend.alive(devices[0]):
        return
    try:
        key = backend.read_own(devices[0]).private_key
    except MechanismError as error:
        log.warning("start: %s; it is not known whether the device is of this state", error)
        return
    if key and key not in (node.state.node.private_key, node.state.node.former_key):
        raise StateError(
            f"device {devices[0]} on this host has the public key {keys.text(keys.public(key))}, this state's is "
            f"{keys.text(keys.public(node.state.node.private_key))}: wrong --data-dir, or another node's? To remove "
            "what is on this host, with the networks of the containers on it: overlayd --teardown"
        )


def _is_half_made(node: LiveNode, link: MarkedLink) -> bool:
    """Whether it is the device of a setup that has been taken back on disk, but not in the kernel: it has the key of
    this node, or none yet.
    """
    own, backend = node.state.get(Node), node.kernel.backend
    if own is None or backend is None or link.device != GLOBAL:
        return False
    try:
        key = backend.read_own(link.name).private_key if backend.alive(link.name) else b""
    except MechanismError as error:
        log.warning("start: %s; it is not known whether the device is of this state", error)
        return False
    return not any(key) or key in (own.private_key, own.former_key)


async def _adopt(node: LiveNode, boot: str) -> None:
    """Make the state of what this host carries, if it has no overlay yet."""
    if node.state.get(Overlay) is not None:
        log.info("nothing to adopt: the journal knows this node's overlay")
        return
    from overlayd.daemon import adopt  # noqa: PLC0415 - no other start needs it

    own = node.state.get(Node)
    adoption = await node.run(adopt.read, node.kernel, boot, own.private_key if own else keys.generate())
    if not adoption.rows:
        log.info("nothing to adopt: this host carries no links of an overlay")
        return
    await node.take_over(lambda draft: _put(draft, adoption.rows))
    log.warning("adopted %s", adoption)
    for lost in adoption.lost:
        log.warning("not adopted: %s", lost)


def _put(draft: Draft, rows: Iterable[Row]) -> None:
    for row in rows:
        draft.put(row)


def _host(nft: Nft) -> tuple[set[int], set[int]]:
    """What the host was before we made it forward (see `Host`).  An earlier daemon of this boot may have made it so,
    and not been able to write what it was before.
    """
    closed, bridged = set_members.remembered_host(nft.observe(set_members.OF_HOST).values())
    return {*forwarding.closed(), *closed}, {*forwarding.bridged(), *bridged}


def _have_identity(draft: Draft) -> None:
    if draft.get(Node) is None:
        draft.put(Node(private_key=keys.generate()))


def _take_up(draft: Draft, boot: str, closed: set[int], bridged: set[int]) -> None:
    """Remember what the host is before we make it forward, if this is a new boot.  Detach the containers of an earlier
    boot, and those that died while nobody watched; shut out the edge peers whose time is over.  closed, bridged: see
    `Host`.
    """
    if draft.get(Overlay) is not None:
        overlay.note_host(draft, boot, closed, bridged)
    there = [each for each in draft.all(Attachment) if each.namespace is not None]
    of_links = [each for each in there if each.file is not None and each.boot_id == boot]
    dead = {each.handle for each in ended(of_links)}
    living = {each.handle for each in of_links if each.handle not in dead}
    for attachment in there:
        if attachment.handle in living:
            continue
        same_boot = attachment.boot_id == boot
        if not attachments.leave(draft, attachment, netns.is_alive if same_boot else lambda _: False):
            log.info("%s is gone: %s is free again", attachment.handle, attachment.address)
    for name in edges.expire(draft, time.time()):
        log.info("edge peer %s has expired", name)
