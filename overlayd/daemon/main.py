"""The process: from the command line to a running daemon, and to its end.

Owns: the order of start and stop, signals, exit codes.  Must not know: what a request does.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from overlayd import __version__
from overlayd.daemon import config as configuration
from overlayd.daemon import garbage, logs, start
from overlayd.daemon.change import journal as journals
from overlayd.daemon.change.journal import InUse as JournalInUse
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.config import Config, ConfigError
from overlayd.daemon.dns.nameserver import Nameserver
from overlayd.daemon.doctor import Doctor
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.handlers.context import Daemon
from overlayd.daemon.nat.session import Nat
from overlayd.daemon.peers.expiry import Expiry
from overlayd.daemon.peers.health import Health
from overlayd.daemon.peers.hostnames import Resolver
from overlayd.daemon.peers.lookup import Lookups
from overlayd.daemon.server import identity, listener
from overlayd.daemon.server.server import Server
from overlayd.daemon.status import StatusView
from overlayd.daemon.teardown import remove_everything
from overlayd.daemon.upkeep.deaths import DeathWatch
from overlayd.daemon.upkeep.firewall import ForwardWatch
from overlayd.daemon.upkeep.reclaim import reclaim
from overlayd.daemon.upkeep.sentinel import Sentinel
from overlayd.daemon.upkeep.suspects import Part
from overlayd.errors import DiskError, OverlaydError, StateError
from overlayd.linux import capability
from overlayd.linux.monitor import Monitor
from overlayd.model.health import FRESH
from overlayd.model.rows import Attachment
from overlayd.proto.identity import answer_probe, encode
from overlayd.proto.mux import EndpointMux, json_wire

log = logging.getLogger(__name__)

# Exit codes: sysexits.h where it has one.
FAILED = 1
IN_USE = 69
NO_PERMISSION = 77
BAD_CONFIG = 78

# Our own constant: how long a stop waits for requests in flight, seconds.
PATIENCE = 10.0
# Our own constant: seconds before a watch that failed begins anew, so that a lasting cause does not fill the log.
PAUSE = 1.0


def main(arguments: Sequence[str], *, fresh: float = FRESH) -> int:
    """Run `overlayd` and return its exit code.  fresh: seconds for which a handshake vouches for a peer."""
    options = configuration.parser().parse_args(arguments)
    try:
        config = configuration.load(options, os.environ)
    except ConfigError as error:
        print(f"overlayd: {error}", file=sys.stderr)
        return BAD_CONFIG
    logs.set_up(config.log_format, config.log_level)
    lacking = capability.missing("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
    if lacking:
        log.error("missing capability %s: run as root, or grant it (setcap, AmbientCapabilities=, --cap-add)", lacking)
        return NO_PERMISSION
    _raise_descriptor_limit()
    try:
        with ExitStack() as claims:
            return _claim_and_run(config, options.teardown, options.salvage_journal, claims, fresh)
    except (listener.InUse, JournalInUse) as error:
        log.error("%s", error)
        return IN_USE
    except DiskError as error:
        log.error("%s", error)
        return FAILED
    except StateError as error:
        log.error("%s", error)
        return BAD_CONFIG
    except OverlaydError as error:
        log.error("%s", error)
        return FAILED


def _claim_and_run(config: Config, teardown: bool, salvage: bool, claims: ExitStack, fresh: float) -> int:
    directory = Path(config.data_dir)
    if teardown:
        claims.enter_context(journals.claimed(directory))
        claims.enter_context(listener.claim_namespace())
        return 0 if remove_everything() else FAILED
    garbage.postpone()
    journal = Journal.open(directory, salvage=salvage)
    claims.enter_context(listener.claim_namespace())
    admission = listener.Admission(config.socket_group)
    bound = claims.enter_context(listener.served(config.socket, admission.gid))
    try:
        uvloop.run(_serve(config, journal, admission, bound, fresh))
    except ExceptionGroup as failed:  # of the task group: one failed, and the others were stopped for it
        raise failed.exceptions[0] from None
    return 0


async def _serve(
    config: Config, journal: Journal, admission: listener.Admission, bound: socket.socket, fresh: float
) -> None:
    """Take up the state, serve until told to stop, and leave the data plane running."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    node = start.node(journal, config.wireguard)
    boot = start.boot_id()
    sentinel = Sentinel(node, Monitor())
    # It reads the whole executable: beside the start, not before it.
    me = asyncio.create_task(asyncio.to_thread(identity.current, config.namespace_id, config.socket))
    await start.resume(node, boot)
    mux = EndpointMux(
        legacy=json_wire,
        answer_probe=partial(answer_probe, identity=encode(await me)),
        served=frozenset({config.payload_protocol}),
    )
    health = Health(node, fresh)
    forwarding = ForwardWatch(node)
    await health.resume()
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as ending:

        def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return tasks.create_task(_guarded(work))

        def keep_up(watch: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
            return tasks.create_task(_kept_up(watch, stopping))

        for watch in (health.watch, forwarding.watch):
            ending.callback(keep_up(watch).cancel)
        keep_up(sentinel.watch)
        ending.callback(sentinel.stop)
        resolver = Resolver(node, health, Lookups(), spawn)
        nat = Nat(node, health, Lookups(), spawn, keep_up)
        nameserver = Nameserver(node, config.dns_zone, config.dns_port, config.upstreams, spawn)
        for part in (resolver, nat, nameserver):
            ending.callback(part.close)
            part.resume()
        deaths = DeathWatch(partial(reclaim, node), spawn)
        ending.callback(deaths.close)
        deaths.follow({row.id: row for row in node.state.table(Attachment).values()})
        expiry = Expiry(node, spawn)
        ending.callback(expiry.close)
        expiry.arm()
        status = StatusView(node, health)
        node.observers += [each.follow for each in (status, resolver, nat, deaths, expiry, forwarding, nameserver)]
        ending.callback(node.observers.clear)  # a change that outlasts the drain has nobody left to tell
        doctor = Doctor(node, sentinel, forwarding, health, nameserver=nameserver, nat=nat)
        daemon = Daemon(node, status, health, nat, doctor, nameserver, boot, resolver.ask_again, stopping.set)
        server = Server(Handlers(daemon), admission, None if config.no_probe else mux)
        health.announce.append(server.publish)
        health.doubters.append(lambda scope: sentinel.suspect(Part("peers", scope), "reading"))
        accepting = await server.listen(bound)
        with identity.published(await me, config.identity_file):
            await _run(config.socket, stopping)
        accepting.close()
        await server.drain(PATIENCE)
    await node.close()
    forwarding.close()
    await journal.close()


async def _run(path: str, stopping: asyncio.Event) -> None:
    """From the moment when everything is there until we are told to stop."""
    garbage.begin()
    _notify("READY=1")
    log.info("overlayd %s serves %s", __version__, path)
    await stopping.wait()
    _notify("STOPPING=1")
    log.info("stopping; links, addresses and rules stay as they are")


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """Run work that nobody waits for.  A bug in it is logged, and ends neither the daemon nor other work."""
    try:
        await work
    except Exception:
        log.exception("background work failed")


async def _kept_up(watch: Callable[[], Coroutine[Any, Any, None]], stopping: asyncio.Event) -> None:
    """Keep watching, also after a bug in it."""
    await _guarded(watch())
    while not stopping.is_set():
        await asyncio.sleep(PAUSE)
        await _guarded(watch())


def _notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)), if there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def _raise_descriptor_limit() -> None:
    """A container costs a descriptor, a connection as well: take all that we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
