"""What each command of `overlayctl` does.

Owns: which request a command sends, which table its answer becomes, and what is said when the daemon cannot be reached
or refuses.  Must not know: how answers are laid out (`tables`), how `key=value` becomes a request (`call`).
"""

import asyncio
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from overlayd import __version__
from overlayd.cli import advice, cluster, cni, completion, lists, tables, top, wgshow
from overlayd.cli.arguments import EXIT_ERR, EXIT_FINDINGS, EXIT_UNAVAILABLE
from overlayd.cli.call import NotFound, UsageError, list_requests, parse_request
from overlayd.cli.columns import Paper, printable
from overlayd.client import CallError, ConnectionLost, OverlayClient, Unreachable, default_socket
from overlayd.errors import OverlaydError
from overlayd.spelling import perhaps_meant

# Ours: a daemon that just restarts is waited for, a person who forgot to start it is told at once.
CONNECT_TIMEOUT = 0.3  # seconds
PAUSE = 0.2  # seconds between two looks of who waits
DEFAULT_DATA_DIR = "/var/lib/overlayd"  # as the daemon's own


T = TypeVar("T")


def run(args: Namespace) -> int:
    """Do the command that `arguments.parser` parsed, and return the exit code."""
    try:
        code = asyncio.run(_exit_code(COMMANDS[args.command](args)))
        sys.stdout.flush()
    except UsageError as error:
        args.usage(str(error))
    except NotFound as error:
        return _fail(EXIT_ERR, printable(str(error)))
    except CallError as error:
        return _fail(EXIT_ERR, "\n".join(filter(None, (str(error), advice.refused(error)))))
    except (OverlaydError, TimeoutError) as error:
        return _fail(EXIT_UNAVAILABLE, "\n".join(filter(None, (str(error), advice.unavailable(error, _socket(args))))))
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file or a directory that the command was to read or write
        root = " (this takes root)" if isinstance(error, PermissionError) and os.geteuid() else ""
        return _fail(EXIT_ERR, f"{error.filename or args.command}: {error.strerror or error}{root}")
    return code


async def _exit_code(work: Awaitable[int | None]) -> int:
    return await work or 0


@asynccontextmanager
async def _client(args: Namespace) -> AsyncIterator[OverlayClient]:
    async with await OverlayClient.connect(
        _socket(args), timeout=CONNECT_TIMEOUT, call_timeout=args.timeout, identity_file=args.identity_file
    ) as client:
        yield client


def _socket(args: Namespace) -> str:
    return args.socket or default_socket()


# --- the commands, each a coroutine of the parsed words that may return an exit code ----------------------------------


async def _status(args: Namespace) -> int:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + args.timeout
    while True:
        try:
            async with _client(args) as client:
                status = await client.status()
        except (Unreachable, ConnectionLost):
            if not args.wait or loop.time() > deadline:
                raise
        else:
            if not args.wait or tables.well(status) or loop.time() > deadline:
                break
        await asyncio.sleep(PAUSE)
    wide = args.output == "wide"
    _show(args, status, lambda: tables.status(status, wide=wide, now=time.time(), paper=_paper()))
    return EXIT_FINDINGS if args.wait and not tables.well(status) else 0


async def _ready(args: Namespace) -> int:
    async with _client(args) as client:
        status = await client.status()
    reason = "" if status.interface is not None else tables.verdict(status)[0]
    if args.output == "json":
        print(tables.line_json({"ready": not reason, "reason": reason or None}))
    else:
        print(f"not ready: {reason}" if reason else "ready")
    return EXIT_FINDINGS if reason else 0


async def _version(args: Namespace) -> None:
    if args.output != "json":
        print(f"overlayctl {__version__}")
    try:
        async with _client(args) as client:
            daemon = (await client.status()).version
    except (Unreachable, ConnectionLost):
        if args.output == "json":
            print(tables.line_json({"overlayctl": __version__, "overlayd": None}))
        raise
    if args.output == "json":
        print(tables.line_json({"overlayctl": __version__, "overlayd": daemon}))
    else:
        print(f"overlayd {daemon or '(of before 0.1: it does not say)'}")


def _listed(args: Namespace, kind: lists.List[T], rows: Sequence[T]) -> None:
    if args.output == "json":
        print(tables.pretty_json(lists.matching(kind, rows, args.filter)))
    else:
        print(lists.text(kind, rows, args.filter, _paper()))


async def _services(args: Namespace) -> None:
    async with _client(args) as client:
        rows = (await client.list("services")).services
    _listed(args, lists.services(time.time()), rows)


async def _containers(args: Namespace) -> None:
    async with _client(args) as client:
        rows = (await client.list("containers")).containers
    _listed(args, lists.containers(time.time()), rows)


async def _ip(args: Namespace) -> None:
    async with _client(args) as client:
        pools = (await client.list("pools")).pools
        held = (await client.list("addresses")).addresses
    if args.output == "json":
        shown = lists.matching(lists.addresses(), held, args.filter)
        print(tables.pretty_json({"pools": pools, "addresses": shown}))
        return
    rows = lists.held_by(pools, held)
    if args.output == "wide" or args.filter:
        print(lists.text(lists.addresses(), held, args.filter, _paper()))
    if not args.filter:
        print(("\n" if args.output == "wide" else "") + lists.text(lists.pools(), rows, (), _paper()))


async def _networks(args: Namespace) -> None:
    async with _client(args) as client:
        rows = (await client.list("networks")).networks
    _listed(args, lists.networks(), rows)


async def _peers(args: Namespace) -> None:
    kind = lists.peers(time.time(), wide=args.output == "wide")
    async with _client(args) as client:
        if args.output == "json":  # in the shape that they have in `status`
            known = (await client.status()).peers
            rows = (await client.list("peers")).peers if args.filter else ()
            wanted = {each.public_key for each in lists.matching(kind, rows, args.filter)}
            print(tables.pretty_json([each for each in known if not args.filter or each.public_key in wanted]))
            return
        rows = (await client.list("peers")).peers
    print(lists.text(kind, rows, args.filter, _paper()))


async def _wg_show(args: Namespace) -> None:
    async with _client(args) as client:
        status, peers = await client.status(), (await client.list("peers")).peers
    print(wgshow.dump(status, peers) if args.form else wgshow.show(status, peers, time.time()))


async def _top(args: Namespace) -> None:
    async with _client(args) as client:
        before = await _look(client)
        shown = 0
        while not args.number or shown < args.number:
            await asyncio.sleep(args.interval)
            now = await _look(client)
            rates = top.rates(before, now, args.filter)
            if args.output == "json":
                print(top.as_json(rates), flush=True)
            else:
                clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else "\n" if shown else ""
                print(clear + top.text(rates, _paper()), flush=True)
            before, shown = now, shown + 1


async def _look(client: OverlayClient) -> top.Look:
    services = (await client.list("services")).services
    flows = {each.service: flow for each in services if (flow := _flow(each.bridge)) is not None}
    return top.Look((await client.list("peers")).peers, flows, time.monotonic())


def _flow(bridge: str) -> tuple[int, int] | None:
    """What a bridge of this host sent to its ports and received from them; None when it is not in this namespace."""
    try:
        directory = Path("/sys/class/net", bridge, "statistics")
        return int((directory / "tx_bytes").read_text()), int((directory / "rx_bytes").read_text())
    except (OSError, ValueError):
        return None


async def _nat(args: Namespace) -> None:
    async with _client(args) as client:
        status = await client.nat_status()
    wide = args.output == "wide"
    _show(args, status, lambda: tables.nat(status, wide=wide, now=time.time(), paper=_paper()))


async def _dns_list(args: Namespace) -> None:
    async with _client(args) as client:
        known = await client.list_dns()
    if args.output == "json" and not args.filter:
        print(tables.pretty_json(known))
    elif args.output == "json":
        _listed(args, lists.names(), known.names)
    else:
        print(tables.upstreams(known, _paper()), end="\n\n")
        _listed(args, lists.names(), known.names)


async def _dns_query(args: Namespace) -> None:
    async with _client(args) as client:
        answer = await client.query_dns(args.name, args.type)
    _show(args, answer, lambda: tables.dns_answer(answer, _paper()))


async def _dns_flush(args: Namespace) -> None:
    async with _client(args) as client:
        await client.flush_dns()


async def _whoami(args: Namespace) -> None:
    async with _client(args) as client:
        who = await client.whoami()
    _show(args, who, lambda: tables.whoami(who, now=time.time()))


async def _events(args: Namespace) -> None:
    async with _client(args) as client:
        with suppress(CallError):  # a daemon that is older than this request
            await client.watch()
        async for event in client.events():
            line = tables.line_json(event) if args.output == "json" else tables.event(event, now=time.time())
            print(line, flush=True)


async def _call(args: Namespace) -> None:
    if args.list:
        print(list_requests())
        return
    if args.op is None:
        raise UsageError("the following arguments are required: OP")
    request = parse_request(args.op, args.pairs)
    async with _client(args) as client:
        print(tables.pretty_json(await client.call(request)))


async def _doctor(args: Namespace) -> int:
    async with _client(args) as client:
        findings = await client.doctor()
    _show(args, findings, lambda: tables.findings(findings))
    return EXIT_FINDINGS if any(each.severity in ("error", None) for each in findings) else 0


async def _inspect(args: Namespace) -> int:
    # pyroute2 takes a quarter of a second to import, and no other command needs it.
    from overlayd.cli import inspection  # noqa: PLC0415

    directory = args.data_dir or os.environ.get("OVERLAYD_DATA_DIR") or DEFAULT_DATA_DIR
    # In a thread: pyroute2 runs an event loop of its own.
    found = await asyncio.to_thread(inspection.inspect, directory, _socket(args), args.sections)
    print(inspection.as_json(found) if args.output == "json" else inspection.as_text(found, args.sections))
    if found.uncompared:
        return _fail(EXIT_ERR, inspection.uncompared(found))
    return EXIT_FINDINGS if found.differences else 0


async def _web(args: Namespace) -> None:
    from overlayd.cli import web  # noqa: PLC0415 - it imports pyroute2

    try:
        await web.serve(lambda: _client(args), args.port)
    except OSError as error:
        raise UsageError(f"port {args.port}: {error.strerror or error}; --port 0 takes one that is free") from None


async def _why(args: Namespace) -> int:
    from overlayd.cli import why  # noqa: PLC0415 - it imports pyroute2

    try:
        async with _client(args) as client:
            known = await why.known(client)
    except (Unreachable, ConnectionLost) as error:
        directory = args.data_dir or os.environ.get("OVERLAYD_DATA_DIR") or DEFAULT_DATA_DIR
        known = why.known_without_daemon(Path(directory), error)
        print(f"overlayctl: {error}; by its journal:", file=sys.stderr)
    if known is None:
        return _not_set_up()
    hops, turned = await asyncio.to_thread(why.explain, known, args.source, args.target)
    print(why.as_json(hops, turned) if args.output == "json" else why.as_text(hops, turned, _paper()))
    return EXIT_FINDINGS if hops[-1].state == "broken" else 0


def _not_set_up() -> int:
    print("overlayctl: the overlay is not set up on this node: see overlayctl status", file=sys.stderr)
    return EXIT_FINDINGS


async def _ping(args: Namespace) -> int:
    from overlayd.cli import why  # noqa: PLC0415 - it imports pyroute2

    async with _client(args) as client:
        known = await why.known(client)
        paths = {each.public_key: each.path or "" for each in (await client.list("peers")).peers}
    if known is None:
        return _not_set_up()
    answered = 0
    for ping in why.pings(known, args.target, args.count, paths):
        reply = await asyncio.to_thread(ping)
        answered += reply.seconds is not None
        print(reply.as_json() if args.output == "json" else reply, flush=True)
    return 0 if answered else EXIT_FINDINGS


async def _bundle(args: Namespace) -> None:
    from overlayd.cli import bundle  # noqa: PLC0415 - tarfile and pyroute2 are slow to import

    path = Path(args.file or bundle.default_name())
    directory = args.data_dir or os.environ.get("OVERLAYD_DATA_DIR") or DEFAULT_DATA_DIR
    said = await bundle.daemon_says(lambda: _client(args))
    await asyncio.to_thread(bundle.write, path, said, Path(directory), _socket(args))
    print(f"{path}: look through it before you give it away")


async def _schema(args: Namespace) -> None:
    from overlayd.wire.schema import schema  # noqa: PLC0415

    print(tables.pretty_json(schema()))


async def _completion(args: Namespace) -> None:
    print(completion.script(args.shell), end="")


async def _man(args: Namespace) -> None:
    from overlayd.cli import manual  # noqa: PLC0415
    from overlayd.cli.arguments import parser  # noqa: PLC0415

    if args.page == "overlayd":
        from overlayd.daemon.config import parser as daemon_parser  # noqa: PLC0415 - it imports the daemon

        print(manual.page(daemon_parser()), end="")
    else:
        print(manual.page(parser()), end="")


async def _device_renew(args: Namespace) -> None:
    async with _client(args) as client:
        renewed = await client.renew_devices(force=args.all)
    _show(args, renewed, lambda: tables.renewed(renewed))


async def _edge_mint(args: Namespace) -> None:
    async with _client(args) as client:
        config = await client.mint_edge_peer(
            args.name, ttl_secs=args.ttl, allow=args.allow, node_endpoint=args.node_endpoint
        )
    print(tables.pretty_json(config) if args.format == "json" else tables.wg_quick(config))


async def _edge_list(args: Namespace) -> None:
    async with _client(args) as client:
        peers = await client.list_edge_peers()
    wide = args.output == "wide"
    _show(args, peers, lambda: tables.edge_peers(peers, wide=wide, now=time.time(), paper=_paper()))


async def _edge_revoke(args: Namespace) -> None:
    async with _client(args) as client:
        names = [each.name for each in await client.list_edge_peers()]
        if args.name not in names:  # the request itself succeeds, and who mistyped would think the device shut out
            meant = perhaps_meant(args.name, names) or "overlayctl edge list shows all"
            raise NotFound(f"there is no edge peer {args.name}; {meant}")
        await client.revoke_edge_peer(args.name)


async def _rotate_key(args: Namespace) -> None:
    async with _client(args) as client:
        await client.rotate_key(after_secs=args.after, force=args.force)
    print("the next key is prepared; overlayctl cluster status shows what it waits for, and the log when it is used")


async def _cluster(args: Namespace) -> int | None:
    async with _client(args) as client:
        return await cluster.ACTIONS[args.command.removeprefix("cluster ")](client, args)


# By the words of `arguments.COMMANDS`.
COMMANDS: dict[str, Callable[[Namespace], Awaitable[int | None]]] = {
    "status": _status,
    "ready": _ready,
    "services": _services,
    "containers": _containers,
    "ip": _ip,
    "networks": _networks,
    "peers": _peers,
    "show": _wg_show,
    "top": _top,
    "nat": _nat,
    "dns list": _dns_list,
    "dns query": _dns_query,
    "dns flush": _dns_flush,
    "whoami": _whoami,
    "events": _events,
    "call": _call,
    "doctor": _doctor,
    "inspect": _inspect,
    "web": _web,
    "why": _why,
    "ping": _ping,
    "bundle": _bundle,
    "schema": _schema,
    "version": _version,
    "completion": _completion,
    "man": _man,
    "device renew": _device_renew,
    "edge mint": _edge_mint,
    "edge list": _edge_list,
    "edge revoke": _edge_revoke,
    "rotate-key": _rotate_key,
    **{f"cluster {action}": _cluster for action in cluster.ACTIONS},
    **{f"cni {action}": do for action, do in cni.ACTIONS.items()},
}


def _show(args: Namespace, answer: object, table: Callable[[], str]) -> None:
    print(tables.pretty_json(answer) if args.output == "json" else table())


def _paper() -> Paper:
    """What stdout is: as wide as the terminal or COLUMNS says, in colours on a terminal that has them."""
    width = shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() or "COLUMNS" in os.environ else 0
    # https://no-color.org
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Paper(width, colours)


# --- what is said on stderr -------------------------------------------------------------------------------------------


def _fail(code: int, message: str) -> int:
    print("\n".join(map(printable, f"overlayctl: {message}".split("\n"))), file=sys.stderr)
    return code
