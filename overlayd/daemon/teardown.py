"""Removing everything of ours from this host.

Owns: the order of removal.  Must not know: the state; what is ours is told by its mark alone.
"""

import logging
from functools import partial

from overlayd.daemon.change.apply import Kernel
from overlayd.errors import MechanismError
from overlayd.linux import forwarding, link
from overlayd.linux.nft import Nft
from overlayd.linux.observe import DeviceLink, observe_host
from overlayd.linux.wireguard.choice import candidates
from overlayd.linux.wireguard.process import remove_stale_sockets
from overlayd.model import set_members
from overlayd.model.layout import Layout
from overlayd.model.plan import plan

log = logging.getLogger(__name__)


def remove_everything() -> bool:
    """Remove our links, routes, addresses, devices with whatever serves them, and rules; the data directory stays.

    Returns whether all of it went; what did not is logged.  Forwarding is switched off again if it was we who switched
    it on: our ruleset tells, which goes last.
    """
    seen = observe_host([]).values()
    devices = [thing.name for thing in seen if isinstance(thing, DeviceLink)]
    others: Layout = {thing.key: thing for thing in seen if not isinstance(thing, DeviceLink)}
    kernel = Kernel(None, Nft())
    errors = [failure for _, failure in kernel.repair(plan(others, {}))]
    for name in devices:
        try:
            _remove_device(name)
        except MechanismError as error:
            errors.append(error)
    for remove in (remove_stale_sockets, partial(_stop_forwarding, kernel.nft), kernel.nft.teardown):
        try:
            remove()
        except MechanismError as error:
            errors.append(error)
    kernel.close()
    for failure in errors:
        log.error("teardown: %s", failure)
    return not errors


def _stop_forwarding(nft: Nft) -> None:
    closed, _ = set_members.remembered_host(nft.observe().values())
    forwarding.close(closed)


def _remove_device(name: str) -> None:
    """Whichever backend made it, and also when nobody serves it any more."""
    for backend in candidates("auto"):
        if backend.alive(name):
            backend.delete(name)
    link.delete(name)
