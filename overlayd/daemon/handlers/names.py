"""Names: registered ones, and the resolvers of zones.

Owns: register_dns, unregister_dns, list_dns, query_dns, flush_dns, write_scoped_resolver, remove_scoped_resolver.  Must
not know: sockets and frames.
"""

import logging

from overlayd import wire
from overlayd.daemon import parse
from overlayd.daemon.change.resources import RECORDS
from overlayd.daemon.change.slices import Slices
from overlayd.daemon.handlers.context import Daemon
from overlayd.errors import ProtocolError, RequestError
from overlayd.model import records
from overlayd.proto import dns, dns_text

log = logging.getLogger(__name__)


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


async def list_dns(daemon: Daemon, request: wire.ListDns) -> bytes:
    server, slices, names = daemon.nameserver, Slices(), daemon.nameserver.names()
    encoded = [
        wire.encode_part(wire.DnsName(name, tuple(map(str, names[name]))))
        async for name in slices.each(await slices.in_order(names))
    ]
    known = wire.Dns(
        zone=server.zone,
        names=(),
        upstreams=tuple(wire.DnsUpstream(str(upstream), state) for upstream, state in server.upstreams()),
        cached=len(server.cache),
        cached_bytes=server.cache.size,
        hits=server.cache.hits,
        misses=server.cache.misses,
    )
    return wire.encode_with(known, "names", encoded)


async def query_dns(daemon: Daemon, request: wire.QueryDns) -> wire.Response:
    try:
        question, type = dns_text.question(request.name, request.type)
    except ValueError as error:
        raise RequestError(f"request: {error}") from None
    response, source, server = await daemon.nameserver.ask(dns.query(question, 0, edns=True))
    try:
        read = dns_text.read(response)
    except ProtocolError as error:
        raise RequestError(f"{server or 'the name server'} has answered what is broken: {error}") from None
    return wire.DnsAnswer(
        name=dns_text.name(question),
        type=type,
        rcode=read.code,
        source=source,
        server=server,
        error=read.error or None,
        records=tuple(wire.DnsRecord(*record) for record in read.answers),
        authorities=tuple(wire.DnsRecord(*record) for record in read.authorities),
        left_out=read.left_out,
    )


async def flush_dns(daemon: Daemon, request: wire.FlushDns) -> wire.Response:
    log.info("DNS: %d cached answers are forgotten, as was asked", daemon.nameserver.cache.clear())
    return wire.Ok()


async def write_scoped_resolver(daemon: Daemon, request: wire.WriteScopedResolver) -> wire.Response:
    """Only macOS has resolvers for single zones; elsewhere there is nothing to write."""
    parse.dns_name(request.zone, "zone")
    parse.address(request.node_ip, "node_ip")
    return wire.Ok()


async def remove_scoped_resolver(daemon: Daemon, request: wire.RemoveScopedResolver) -> wire.Response:
    parse.dns_name(request.zone, "zone")
    return wire.Ok()
