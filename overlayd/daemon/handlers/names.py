"""Names: registered ones, and the resolvers of zones.

Owns: register_dns, unregister_dns, write_scoped_resolver, remove_scoped_resolver.  Must not know: sockets and frames.
"""

from overlayd import wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import RECORDS
from overlayd.daemon.handlers.context import Daemon
from overlayd.model import records


async def register_dns(daemon: Daemon, request: wire.RegisterDns) -> wire.Response:
    name = parse.dns_name(request.name, "name")
    address = parse.address(request.ip, "ip")
    await daemon.node.change_together(lambda draft: records.register(draft, name, address), [RECORDS])
    return wire.Ok()


async def unregister_dns(daemon: Daemon, request: wire.UnregisterDns) -> wire.Response:
    name = parse.dns_name(request.name, "name")
    address = parse.address(request.ip, "ip") if request.ip is not None else None
    await daemon.node.change_together(lambda draft: records.unregister(draft, name, address), [RECORDS])
    return wire.Ok()


async def write_scoped_resolver(daemon: Daemon, request: wire.WriteScopedResolver) -> wire.Response:
    """Only macOS has resolvers for single zones; elsewhere there is nothing to write."""
    parse.dns_name(request.zone, "zone")
    parse.address(request.node_ip, "node_ip")
    return wire.Ok()


async def remove_scoped_resolver(daemon: Daemon, request: wire.RemoveScopedResolver) -> wire.Response:
    parse.dns_name(request.zone, "zone")
    return wire.Ok()
