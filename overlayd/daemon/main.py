"""The process: from the command line to a running daemon, and to its end.

Owns: the order of start and stop, signals, exit codes.  Must not know: what a request does.
"""

import argparse
import asyncio
import errno
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from overlayd import __version__, wire
from overlayd.daemon import config as configuration
from overlayd.daemon import garbage, logs, start, systemd
from overlayd.daemon.change.claim import InUse as DirectoryInUse
from overlayd.daemon.change.claim import claimed
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node
from overlayd.daemon.cni.serving import Runtimes
from overlayd.daemon.config import Config, ConfigError
from overlayd.daemon.dns.nameserver import Nameserver
from overlayd.daemon.doctor import Doctor
from overlayd.daemon.handlers import Handlers
from overlayd.daemon.handlers.context import Daemon
from overlayd.daemon.nat.session import Nat
from overlayd.daemon.peers import grants
from overlayd.daemon.peers.expiry import Expiry
from overlayd.daemon.peers.health import Health, Listener
from overlayd.daemon.peers.hostnames import Resolver
from overlayd.daemon.peers.inquiries import Inquiries
from overlayd.daemon.peers.lookup import Lookups
from overlayd.daemon.peers.own_side import OwnSide
from overlayd.daemon.server import identity, listener
from overlayd.daemon.server.acceptor import Quotas
from overlayd.daemon.server.listener import Place
from overlayd.daemon.server.server import Server
from overlayd.daemon.server.watchers import tell_finding, told
from overlayd.daemon.status import About, StatusView
from overlayd.daemon.tasks import KeepUp, Tasks
from overlayd.daemon.upkeep.conflicts import Conflicts
from overlayd.daemon.upkeep.deaths import DeathWatch
from overlayd.daemon.upkeep.host import HostWatch
from overlayd.daemon.upkeep.reclaim import reclaim
from overlayd.daemon.upkeep.sentinel import Sentinel
from overlayd.daemon.upkeep.surroundings import Surroundings
from overlayd.daemon.upkeep.suspects import Part
from overlayd.errors import DiskError, MechanismError, OverlaydError, StateError
from overlayd.linux import capability, heap, sysctl
from overlayd.linux.claim import NamespaceInUse, claim_namespace
from overlayd.linux.monitor import Monitor
from overlayd.linux.nft import Nft
from overlayd.linux.threads import Pool
from overlayd.linux.wireguard import choice
from overlayd.model import membership
from overlayd.model.health import FRESH
from overlayd.proto.identity import DaemonProcess, answer_probe, encode
from overlayd.proto.mux import EndpointMux, json_wire

if TYPE_CHECKING:
    from overlayd.daemon.cluster.requests import InCluster

log = logging.getLogger(__name__)

# Exit codes: sysexits.h where it has one.
FAILED = 1
IN_USE = 69
NO_PERMISSION = 77
BAD_CONFIG = 78

# Our own constant: how long a stop waits for requests in flight, seconds.
PATIENCE = 10.0

# Our own constant: threads for what blocks and has none of its own, such as files.
DEFAULT_THREADS = 8

# Our own constant: seconds that a thread may keep the interpreter while another one waits for it.  With CPython's 5 ms
# an answer, which takes the interpreter several times, waits for each worker thread that computes several times that.
SWITCH_INTERVAL = 0.0005


class Bound(NamedTuple):
    """The sockets, before anybody is served.  clients: of orchestrators; shims: of runtimes, None for none."""

    clients: Place
    shims: Place | None


def main(arguments: Sequence[str], *, fresh: float = FRESH) -> int:
    """Run `overlayd` and return its exit code, as `run` does; SystemExit for a wrong word and --help."""
    return run(configuration.parser().parse_args(arguments), fresh=fresh)


def run(options: argparse.Namespace, *, fresh: float = FRESH) -> int:
    """Run `overlayd` and return its exit code.  fresh: seconds for which a handshake vouches for a peer."""
    try:
        config = configuration.load(options, os.environ)
        if config.etcd:
            from overlayd.daemon.cluster import settings  # noqa: PLC0415

            settings.read(config)
    except ConfigError as error:
        print(f"overlayd: {error}", file=sys.stderr)
        return BAD_CONFIG
    repetition = logs.set_up(config.log_format, config.log_level)
    for mistake in configuration.perhaps_settings(os.environ):
        log.warning("environment: %s", mistake)
    if idle := configuration.without_etcd(config):
        log.warning("%s: nothing comes of it without --etcd: this node is in no cluster of a store", ", ".join(idle))
    try:
        return _check_and_run(config, options, repetition, fresh)
    finally:
        repetition.tell(at_the_end=True)


def _check_and_run(config: Config, options: argparse.Namespace, repetition: logs.Repetition, fresh: float) -> int:
    try:
        sysctl.mounted_at(config.proc_sys)
    except MechanismError as error:
        log.error("proc-sys: %s", error)
        return BAD_CONFIG
    lacking = capability.missing("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
    if lacking:
        log.error("missing capability %s: run as root, or grant it (setcap, AmbientCapabilities=, --cap-add)", lacking)
        return NO_PERMISSION
    capability.give_up_others()
    _raise_descriptor_limit()
    heap.use_one_arena()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        with ExitStack() as claims:
            return _claim_and_run(config, options, claims, repetition, fresh)
    except (listener.InUse, DirectoryInUse, NamespaceInUse) as error:
        log.error("%s", error)
        return IN_USE
    except DiskError as error:
        log.error("%s", error)
        return FAILED
    except StateError as error:
        log.error("%s", error)
        return BAD_CONFIG
    except (OverlaydError, OSError) as error:
        number = getattr(error, "errno", 0)
        if number in (errno.EMFILE, errno.ENFILE):
            why = os.strerror(number)
            log.error("start: %s; give overlayd more descriptors (LimitNOFILE=, ulimit -n): %s", why, error)
        elif isinstance(error, OSError):
            raise
        else:
            log.error("%s", error)
        return FAILED


def _claim_and_run(
    config: Config, options: argparse.Namespace, claims: ExitStack, repetition: logs.Repetition, fresh: float
) -> int:
    directory = Path(config.data_dir)
    if options.teardown:
        from overlayd.daemon.teardown import remove_everything  # noqa: PLC0415 - no other daemon needs it

        claims.enter_context(claimed(directory))
        _claim_namespace(claims)
        return 0 if remove_everything() else FAILED
    garbage.postpone()
    journal = Journal.open(directory, salvage=options.salvage_journal)
    _claim_namespace(claims)
    admission = listener.Admission(config.socket_group)
    bound = _bind(config, admission, claims)
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        runner.get_loop().set_default_executor(Pool(DEFAULT_THREADS, "work"))
        return runner.run(
            _serve(config, journal, admission, bound, fresh, repetition=repetition, adopting=options.adopt)
        )
    finally:
        with suppress(RuntimeError):  # it starts a thread to wait for the others; without one the interpreter waits
            runner.close()


def _bind(config: Config, admission: listener.Admission, claims: ExitStack) -> Bound:
    """Our sockets, or those of their paths that a service manager holds, so that clients wait while we are replaced."""
    held = listener.passed()
    if others := held.keys() - {config.socket, config.cni_path}:
        raise StateError(
            f"the service manager holds the socket {min(others)}, which is neither --socket ({config.socket}) nor "
            "--cni-socket: make ListenStream= of overlayd.socket and these the same"
        )
    clients = claims.enter_context(closing(Place(config.socket, admission.gid, held=held.get(config.socket))))
    if not config.cni_path:
        return Bound(clients, None)
    shims = Place(config.cni_path, None, 0o600, held=held.get(config.cni_path))
    return Bound(clients, claims.enter_context(closing(shims)))


def _claim_namespace(claims: ExitStack) -> None:
    try:
        claims.enter_context(claim_namespace())
    except MechanismError as error:  # a kernel that was built without nfnetlink_log
        log.warning("%s: a second overlayd in this network namespace would not be noticed", error)


async def _serve(
    config: Config,
    journal: Journal,
    admission: listener.Admission,
    bound: Bound,
    fresh: float,
    *,
    repetition: logs.Repetition,
    adopting: bool,
) -> int:
    """Take up the state, serve until told to stop, and leave the data plane running.  Returns the exit code.

    Every part is a context on one stack.  So whatever fails, and wherever, the parts end in the reverse order of their
    start, each of them.
    """
    stopping = _told_to_stop()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        stack.push_async_callback(journal.close)
        requests = await enter(Tasks())
        stack.callback(requests.cancel)  # of what still waits for a node that is closed
        foreign_rules = stack.enter_context(closing(Nft()))
        monitor = stack.enter_context(closing(Monitor()))
        node = start.node(journal, config.wireguard, config.wireguard_go)
        stack.push_async_callback(node.close)
        boot = start.boot_id()
        # It reads the whole executable: during the start, not after it.
        identifying = asyncio.get_running_loop().run_in_executor(
            None, identity.current, config.namespace_id, config.socket
        )
        await start.resume(node, boot, adopting=adopting)
        me = await identifying
        tasks = await enter(Tasks())
        health = Health(node, fresh)
        await enter(health.running(tasks.keep_up))
        surroundings = Surroundings(node)
        await enter(surroundings.running())
        host = HostWatch(node, foreign_rules, surroundings, config.dns_port)
        await enter(host.running(tasks.keep_up))
        deaths = await enter(DeathWatch(partial(reclaim, node), tasks.spawn).running(node))
        sentinel = Sentinel(node, monitor, host.look, surroundings, deaths.lost)
        await enter(sentinel.running(tasks.keep_up))
        conflicts = Conflicts(node, sentinel.suspect)
        await enter(conflicts.running())
        resolver = Resolver(node, health, Lookups(), tasks.spawn)
        await enter(resolver.running())
        nat = Nat(node, health, Lookups(), tasks.spawn, tasks.keep_up)
        await enter(nat.running())
        nameserver = Nameserver(
            node,
            config.dns_zone or "",
            config.dns_port,
            config.upstreams,
            tasks.spawn,
            at_node_address=config.dns_node_address,
        )
        await enter(nameserver.running())
        await enter(Expiry(node, tasks.spawn).running())
        await enter(_answering_nodes(config, node, health, host, tasks))
        cluster = _in_cluster(config, node, nat, boot, stopping.set)
        status = StatusView(node, health, _about(node), cluster.status if cluster is not None else None)
        stack.enter_context(node.subscribe(status.follow))
        doctor = Doctor(
            node,
            sentinel,
            host,
            health,
            conflicts=conflicts,
            surroundings=surroundings,
            nameserver=nameserver,
            nat=nat,
            no_wireguard=partial(choice.missing, config.wireguard, config.wireguard_go),
            cluster=cluster.findings if cluster is not None else lambda: membership.unfollowed(node.state),
        )
        await enter(doctor.counting(status.count_findings, tasks.keep_up))
        daemon = Daemon(
            node, status, health, nat, doctor, nameserver, surroundings, boot, resolver.ask_again, stopping.set, cluster
        )
        server = Server(Handlers(daemon), admission, requests.spawn, _multiplexer(config, me), quotas=_quotas(config))
        stack.enter_context(_publishing(node, health, sentinel, doctor, server))
        runtimes = Runtimes(daemon, config.cni_path)
        await enter(_measuring(config, daemon, server, runtimes, sentinel=sentinel, tasks=tasks))
        await enter(cluster.running(server.handlers.run, tasks.keep_up) if cluster is not None else nullcontext())
        await enter(runtimes.serving(bound.shims, sentinel, requests.spawn, PATIENCE))
        await enter(server.serving(bound.clients, PATIENCE))
        stack.enter_context(identity.published(me, config.identity_file))
        await _run(config.socket, stopping, repetition, tasks.keep_up, cluster)
        return BAD_CONFIG if cluster is not None and cluster.refusal else 0


def _answering_nodes(
    config: Config, node: Node, health: Health, host: HostWatch, tasks: Tasks
) -> AbstractAsyncContextManager[None]:
    """Tell other nodes our side of a way, unless that is not wanted."""
    if config.no_inquiries:
        return nullcontext()
    return Inquiries(node, OwnSide(node, health, lambda: host.findings).hops, tasks.spawn).running(tasks.keep_up)


def _told_to_stop() -> asyncio.Event:
    """Set by the signals that end the daemon.  SIGHUP does when a terminal hangs up; who rotates logs, or wants
    settings to be read again, sends it too.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if os.isatty(2):
        loop.add_signal_handler(signal.SIGHUP, stopping.set)
    else:
        loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP changes nothing: settings are read at a start")
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(number, log.info, "%s changes nothing: there is no log to open again", number.name)
    return stopping


def _about(node: Node) -> About:
    backend = node.kernel.backend
    return About(__version__, int(time.time()), backend.name if backend is not None else None)


@asynccontextmanager
async def _measuring(
    config: Config, daemon: Daemon, server: Server, runtimes: Runtimes, *, sentinel: Sentinel, tasks: Tasks
) -> AsyncIterator[None]:
    """Serve metrics until the block ends, if that is wanted."""
    if not config.metrics:
        yield
        return
    from overlayd.daemon.metrics.collection import Collection  # noqa: PLC0415 - most nodes need none of it
    from overlayd.daemon.metrics.endpoint import Endpoint  # noqa: PLC0415
    from overlayd.daemon.metrics.requests import Requests  # noqa: PLC0415

    requests = Requests()
    server.handlers.observe(requests.record)
    runtimes.observe(requests.record)
    daemon.node.time_syncs(requests.syncs.observe)
    watch = tasks.keep_up(requests.watch_loop)
    collection = Collection(
        requests,
        daemon,
        sentinel,
        started=time.time(),
        each_peer=config.metrics_peers,
        connected=lambda: len(server.connections),
    )
    endpoint = Endpoint(lambda: collection.text(time.time()), daemon.status.unready, tasks.spawn)
    try:
        async with endpoint.serving(config.metrics):
            yield
    finally:
        watch.cancel()


@contextmanager
def _publishing(node: Node, health: Health, sentinel: Sentinel, doctor: Doctor, server: Server) -> Iterator[None]:
    """Let clients hear of what happens, until the block ends."""
    with (
        node.subscribe(partial(grants.tell_lost, node)),
        doctor.subscribe(partial(tell_finding, server)),
        health.subscribe(_Onward(sentinel, server)),
        told(node, server) as tell_repair,
        sentinel.subscribe(tell_repair),
    ):
        yield


class _Onward(Listener):
    """Hands on what readings of the devices mean for parts that do not know of them."""

    def __init__(self, sentinel: Sentinel, server: Server) -> None:
        self._sentinel = sentinel
        self._server = server

    def peers_doubted(self, scope: str) -> None:
        self._sentinel.suspect(Part("peers", scope), "reading")

    def published(self, event: wire.Event) -> None:
        self._server.publish(event)


def _multiplexer(config: Config, me: DaemonProcess) -> EndpointMux | None:
    if config.no_probe:
        return None
    return EndpointMux(
        legacy=json_wire,
        answer_probe=partial(answer_probe, identity=encode(me)),
        served=frozenset({config.payload_protocol}),
    )


def _in_cluster(config: Config, node: Node, nat: Nat, boot: str, stop: Callable[[], None]) -> "InCluster | None":
    """This node's part in a cluster of a store, which only a daemon imports that is to have one."""
    if not config.etcd:
        for finding in membership.unfollowed(node.state):
            log.warning("%s", finding.line)
        return None
    from overlayd.daemon.cluster import requests, settings  # noqa: PLC0415

    return requests.InCluster(node, nat, settings.read(config), boot, stop)


async def _run(
    path: str, stopping: asyncio.Event, repetition: logs.Repetition, keep_up: KeepUp, cluster: "InCluster | None"
) -> None:
    """From the moment when everything is there until we are told to stop.  A node that is to join a cluster is ready
    when it has, and serves before.
    """
    garbage.begin()
    heap.give_back()
    log.info("overlayd %s serves %s", __version__, path)
    if cluster is not None:
        await _joined(cluster, stopping)
    systemd.notify("READY=1\nSTATUS=")
    feeding = keep_up(systemd.feed)
    while not stopping.is_set():
        repetition.tell()
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), logs.WINDOW)
    feeding.cancel()
    systemd.notify("STOPPING=1")
    log.info("stopping; links, addresses and rules stay as they are")


async def _joined(cluster: "InCluster", stopping: asyncio.Event) -> None:
    """Wait until this node has its block, which takes a person or another node, or until we are told to stop."""
    waiting = [
        asyncio.create_task(each)
        for each in (
            cluster.joined(),
            stopping.wait(),
            systemd.go_on_starting("has not joined the cluster yet"),
        )
    ]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for each in waiting:
        each.cancel()


def _quotas(config: Config) -> Quotas:
    """How many connections there may be, as configured, or as this process has descriptors for."""
    asked = Quotas(config.max_connections, config.max_connections_per_user, config.max_connections_per_process)
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    quotas = asked.within(descriptors)
    if quotas != asked:
        log.warning(
            "at most %d connections are served, %d of a process: a quarter of %d descriptors (LimitNOFILE)",
            quotas.all,
            quotas.process,
            descriptors,
        )
    return quotas


def _raise_descriptor_limit() -> None:
    """A container costs a descriptor, a connection as well: take all that we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
