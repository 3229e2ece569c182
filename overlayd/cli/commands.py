"""What each command of `overlayctl` does.

Owns: which request a command sends, which table its answer becomes, and what is said when the daemon cannot be reached
or refuses.  Must not know: how answers are laid out (`tables`), how `key=value` becomes a request (`call`).
"""

import asyncio
import os
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from overlayd.cli import tables
from overlayd.cli.arguments import EXIT_ERR, EXIT_FINDINGS, EXIT_UNAVAILABLE
from overlayd.cli.call import UsageError, list_requests, parse_request
from overlayd.client import CallError, ConnectionLost, OverlayClient, Unreachable, default_socket
from overlayd.errors import OverlaydError

# Ours: a daemon that just restarts is waited for, a person who forgot to start it is told at once.
CONNECT_TIMEOUT = 0.3  # seconds
DEFAULT_DATA_DIR = "/var/lib/overlayd"  # as the daemon's own


def run(args: Namespace, usage: Callable[[str], NoReturn]) -> int:
    """Do the command that `arguments.parser` parsed, and return the exit code.  usage: ends it with a message."""
    try:
        code = asyncio.run(_exit_code(COMMANDS[args.command](args)))
        sys.stdout.flush()
    except UsageError as error:
        usage(str(error))
    except CallError as error:
        return _fail(EXIT_ERR, "\n".join(map(tables.printable, str(error).split("\n"))))
    except Unreachable as error:
        return _fail(EXIT_UNAVAILABLE, f"{error}\n{_advice(error.reason, _socket(args))}")
    except ConnectionLost as error:
        # Also what a caller who may not use the daemon sees: it accepts, looks at the credentials, and hangs up.
        reason = PermissionError() if os.geteuid() else ConnectionResetError()
        return _fail(EXIT_UNAVAILABLE, f"{error}\n{_advice(reason, _socket(args))}")
    except (OverlaydError, TimeoutError) as error:
        return _fail(EXIT_UNAVAILABLE, str(error))
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


async def _status(args: Namespace) -> None:
    async with _client(args) as client:
        status = await client.status()
    _show(args, status, lambda: tables.status(status, wide=args.output == "wide"))


async def _peers(args: Namespace) -> None:
    async with _client(args) as client:
        peers = (await client.status()).peers
    _show(args, peers, lambda: tables.peers(peers, wide=args.output == "wide", now=time.time()))


async def _nat(args: Namespace) -> None:
    async with _client(args) as client:
        status = await client.nat_status()
    _show(args, status, lambda: tables.nat(status, wide=args.output == "wide", now=time.time()))


async def _dns_list(args: Namespace) -> None:
    async with _client(args) as client:
        known = await client.list_dns()
    _show(args, known, lambda: tables.dns(known))


async def _dns_flush(args: Namespace) -> None:
    async with _client(args) as client:
        await client.flush_dns()


async def _whoami(args: Namespace) -> None:
    async with _client(args) as client:
        who = await client.whoami()
    _show(args, who, lambda: tables.whoami(who, now=time.time()))


async def _events(args: Namespace) -> None:
    async with _client(args) as client:
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
    return EXIT_FINDINGS if found.differences else 0


async def _edge_mint(args: Namespace) -> None:
    async with _client(args) as client:
        config = await client.mint_edge_peer(
            args.name, ttl_secs=args.ttl, allow=args.allow, node_endpoint=args.node_endpoint
        )
    print(tables.pretty_json(config) if args.format == "json" else tables.wg_quick(config))


async def _edge_list(args: Namespace) -> None:
    async with _client(args) as client:
        peers = await client.list_edge_peers()
    _show(args, peers, lambda: tables.edge_peers(peers, wide=args.output == "wide", now=time.time()))


async def _edge_revoke(args: Namespace) -> None:
    async with _client(args) as client:
        await client.revoke_edge_peer(args.name)


# By the words of `arguments.COMMANDS`.
COMMANDS: dict[str, Callable[[Namespace], Awaitable[int | None]]] = {
    "status": _status,
    "peers": _peers,
    "nat": _nat,
    "dns list": _dns_list,
    "dns flush": _dns_flush,
    "whoami": _whoami,
    "events": _events,
    "call": _call,
    "doctor": _doctor,
    "inspect": _inspect,
    "edge mint": _edge_mint,
    "edge list": _edge_list,
    "edge revoke": _edge_revoke,
}


def _show(args: Namespace, answer: object, table: Callable[[], str]) -> None:
    print(tables.pretty_json(answer) if args.output == "json" else table())


# --- what is said on stderr -------------------------------------------------------------------------------------------


def _fail(code: int, message: str) -> int:
    print(f"overlayctl: {message}", file=sys.stderr)
    return code


def _advice(reason: OSError, path: str) -> str:
    match reason:
        case FileNotFoundError():
            return (
                "There is no such socket: is overlayd running on this node (systemctl status overlayd)?\n"
                "If it listens elsewhere, name the socket with --socket or OVERLAYD_SOCKET."
            )
        case ConnectionRefusedError():
            return (
                f"Nobody listens there: overlayd stopped or crashed (journalctl -u overlayd), and left {path} behind."
            )
        case PermissionError():
            return (
                "overlayd talks to root, to its own user, and to members of the socket's group:\n"
                f"compare `stat -c %G {path}` with `id -nG`, or use sudo.  Its log says whom it turned away."
            )
        case ConnectionResetError():
            return "overlayd stopped, or was restarted: its log says why (journalctl -u overlayd)."
        case _:
            return "Check that overlayd runs on this node, and the socket's path (--socket, OVERLAYD_SOCKET)."
