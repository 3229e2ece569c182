"""WireGuard devices, and what serves them.

Owns: renew_devices.  Must not know: sockets and frames.
"""

from overlayd import wire
from overlayd.daemon.change.renewal import Renewal, renew
from overlayd.daemon.handlers.context import Daemon


async def renew_devices(daemon: Daemon, request: wire.RenewDevices) -> wire.Response:
    renewed = []
    for scope in daemon.health.devices():
        done = await renew(daemon.node, scope, force=request.force)
        if done is not None:
            renewed.append(_as_sent(done))
    daemon.status.outdate()
    return wire.Renewed(tuple(renewed))


def _as_sent(done: Renewal) -> wire.RenewedDevice:
    return wire.RenewedDevice(
        interface=done.device,
        before=done.before or None,
        after=done.after or None,
        down_ms=round(done.down * 1000),
        sessions=done.sessions,
        answered=done.answered,
        restored_ms=round(done.restored * 1000),
    )
