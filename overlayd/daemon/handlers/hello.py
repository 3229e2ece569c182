"""What this daemon speaks.

Owns: hello, watch.  Must not know: sockets and frames.
"""

from typing import get_args

from overlayd import __version__, wire
from overlayd.daemon.handlers.context import Daemon

PROTOCOL = 1  # the version of the contract

# Additions that are keys or conduct, rather than an op; a name never changes its meaning.
ABILITIES = ("add_peer.name", "err.code", "frame.strict", "setup_service_overlay.subnet", "unregister_dns.ip")


async def hello(daemon: Daemon, request: wire.Hello) -> wire.Response:
    ops = (str(each.__struct_config__.tag) for each in get_args(wire.Request))
    return wire.HelloAnswer(protocol=PROTOCOL, version=__version__, requests=tuple(sorted(ops)), abilities=ABILITIES)


async def watch(daemon: Daemon, request: wire.Watch) -> wire.Response:
    """Which connection it is that watches, the server has noted."""
    return wire.Ok()
