"""The two commands: `overlayd`, the daemon, and `overlayctl`, which asks it.

Owns: arguments, exit codes, and what is said when the daemon cannot be reached.  Must not know: the daemon's insides,
how answers are laid out (`cli.tables`), how `key=value` becomes a request (`cli.call`).

Imports are late where a command may not need them: `--help` and a mistyped argument should not wait for asyncio.
"""

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from overlayd.client import OverlayClient

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_ERR = 1  # the daemon answered err
EXIT_USAGE = 2  # argparse's own
EXIT_FINDINGS = 4  # the doctor found an error
EXIT_UNAVAILABLE = 69  # sysexits.h, EX_UNAVAILABLE
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE

# Ours: a daemon that just restarts is waited for, a person who forgot to start it is told at once.
CONNECT_TIMEOUT = 0.3  # seconds
DEFAULT_TIMEOUT = 30.0  # seconds

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

EPILOG = """\
examples:
  overlayctl status                                  this node's overlay
  overlayctl peers -o wide                           its peers, with whole keys
  overlayctl nat                                     where it may be reached, and how it reaches its peers
  overlayctl whoami                                  which process serves the socket
  overlayctl events                                  what changes, as it changes
  overlayctl doctor                                  what is not as it should be, and what to do
  overlayctl call --list                             every request and its keys
  overlayctl call allocate_ip service=web join_global=false
  (umask 077; overlayctl edge mint laptop --ttl 8h --allow 10.200.0.0/16 > overlay.conf)

exit status:
  0 done   1 the daemon refused, and said why   2 wrong usage   4 the doctor found an error
  69 the daemon cannot be reached, or is not the one that its identity file names
"""

CALL_EPILOG = """\
Values are read as the request's key wants them: text as it is, numbers, true or false, lists as a,b,c or JSON, objects
as JSON or by dotted keys.  These two are the same:

  overlayctl call attach_container handle.platform=linux_pid handle.pid=71 service=web join_global=false
  overlayctl call attach_container handle='{"platform":"linux_pid","pid":71}' service=web join_global=false

The answer is printed as JSON.
"""

EDGE_EPILOG = """\
examples:
  (umask 077; overlayctl edge mint laptop --ttl 8h --allow 10.200.0.0/16 > overlay.conf)
  wg-quick up ./overlay.conf                         on the laptop
  overlayctl edge list
  overlayctl edge revoke laptop

The configuration holds the private key; overlayd does not show it again.
"""


def daemon() -> NoReturn:
    """The `overlayd` command."""
    from overlayd.daemon.main import main  # noqa: PLC0415

    sys.exit(main(sys.argv[1:]))


def control() -> NoReturn:
    """The `overlayctl` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Do what `overlayctl ARGUMENTS` should.  Returns the exit code; raises SystemExit for wrong usage and --help."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        return _ask(parser, args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits: let that succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _ask(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415

    from overlayd.cli import tables  # noqa: PLC0415
    from overlayd.cli.call import UsageError  # noqa: PLC0415
    from overlayd.client import (  # noqa: PLC0415
        CallError,
        ConnectionLost,
        OverlayClient,
        Unreachable,
        default_socket,
    )
    from overlayd.errors import OverlaydError  # noqa: PLC0415

    path = args.socket or default_socket()

    async def connected() -> int:
        async with await OverlayClient.connect(
            path, timeout=CONNECT_TIMEOUT, call_timeout=args.timeout, identity_file=args.identity_file
        ) as client:
            return await args.run(client, args) or 0

    try:
        if args.prepare:
            args.prepare(args)
        code = asyncio.run(connected())
        sys.stdout.flush()
    except UsageError as error:
        parser.error(str(error))
    except CallError as error:
        return _fail(EXIT_ERR, "\n".join(map(tables.printable, str(error).split("\n"))))
    except Unreachable as error:
        return _fail(EXIT_UNAVAILABLE, f"{error}\n{_advice(error.reason, path)}")
    except ConnectionLost as error:
        # Also what a caller who may not use the daemon sees: it accepts, looks at the credentials, and hangs up.
        reason = PermissionError() if os.geteuid() else ConnectionResetError()
        return _fail(EXIT_UNAVAILABLE, f"{error}\n{_advice(reason, path)}")
    except (OverlaydError, TimeoutError) as error:
        return _fail(EXIT_UNAVAILABLE, str(error))
    return code


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="overlayctl",
        description="Ask the overlayd of this node.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="the daemon's socket (default: $OVERLAYD_SOCKET, else /run/overlayd/overlayd.sock)",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_timeout,
        default=DEFAULT_TIMEOUT,
        help="seconds to wait for an answer (default: %(default)g)",
    )
    parser.set_defaults(prepare=None, identity_file=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_status(commands)
    _add_peers(commands)
    _add_nat(commands)
    _add_whoami(commands)
    _add_events(commands)
    _add_call(commands)
    _add_doctor(commands)
    _add_edge(commands)
    return parser


def _add_command(commands: "Commands", name: str, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_output(command: argparse.ArgumentParser, *formats: str) -> None:
    command.add_argument(
        "-o", "--output", choices=formats, default=formats[0], help="how to print it (default: %(default)s)"
    )


# --- One pair of functions a command: its arguments, and what it does ---


def _add_status(commands: "Commands") -> None:
    command = _add_command(commands, "status", "Show this node's overlay and its dedicated services.")
    _add_output(command, "table", "wide", "json")
    command.set_defaults(run=_status)


async def _status(client: "OverlayClient", args: argparse.Namespace) -> None:
    from overlayd.cli import tables  # noqa: PLC0415

    status = await client.status()
    if args.output == "json":
        print(tables.pretty_json(status))
    else:
        print(tables.status(status, wide=args.output == "wide"))


def _add_peers(commands: "Commands") -> None:
    command = _add_command(commands, "peers", "List the peers of the global overlay.")
    _add_output(command, "table", "wide", "json")
    command.set_defaults(run=_peers)


async def _peers(client: "OverlayClient", args: argparse.Namespace) -> None:
    import time  # noqa: PLC0415

    from overlayd.cli import tables  # noqa: PLC0415

    peers = (await client.status()).peers
    if args.output == "json":
        print(tables.pretty_json(peers))
    else:
        print(tables.peers(peers, wide=args.output == "wide", now=time.time()))


def _add_nat(commands: "Commands") -> None:
    command = _add_command(commands, "nat", "Show where this node may be reached, and how it reaches its peers.")
    _add_output(command, "table", "wide", "json")
    command.set_defaults(run=_nat)


async def _nat(client: "OverlayClient", args: argparse.Namespace) -> None:
    import time  # noqa: PLC0415

    from overlayd.cli import tables  # noqa: PLC0415

    status = await client.nat_status()
    if args.output == "json":
        print(tables.pretty_json(status))
    else:
        print(tables.nat(status, wide=args.output == "wide", now=time.time()))


def _add_whoami(commands: "Commands") -> None:
    command = _add_command(
        commands, "whoami", "Ask which process serves the socket, and verify it if told against what."
    )
    command.add_argument("--identity-file", metavar="FILE", help="what the daemon published with its --identity-file")
    _add_output(command, "table", "json")
    command.set_defaults(run=_whoami)


async def _whoami(client: "OverlayClient", args: argparse.Namespace) -> None:
    import time  # noqa: PLC0415

    from overlayd.cli import tables  # noqa: PLC0415

    who = await client.whoami()
    print(tables.pretty_json(who) if args.output == "json" else tables.whoami(who, now=time.time()))


def _add_events(commands: "Commands") -> None:
    command = _add_command(commands, "events", "Print what changes, one line each, until interrupted.")
    _add_output(command, "text", "json")
    command.set_defaults(run=_events)


async def _events(client: "OverlayClient", args: argparse.Namespace) -> None:
    import time  # noqa: PLC0415

    from overlayd.cli import tables  # noqa: PLC0415

    async for event in client.events():
        line = tables.line_json(event) if args.output == "json" else tables.event(event, now=time.time())
        print(line, flush=True)


def _add_call(commands: "Commands") -> None:
    command = _add_command(commands, "call", "Send one request of the contract.", CALL_EPILOG)
    command.add_argument("--list", action=_ListRequests, nargs=0, help="list every request and its keys, and exit")
    command.add_argument("op", metavar="OP", help="the request")
    command.add_argument("pairs", metavar="key=value", nargs="*", help="its keys")
    command.set_defaults(prepare=_prepare_call, run=_call)


class _ListRequests(argparse.Action):
    """Like --help: it acts at once, so no OP is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from overlayd.cli import call  # noqa: PLC0415

        print(call.list_requests())
        parser.exit()


def _prepare_call(args: argparse.Namespace) -> None:
    from overlayd.cli import call  # noqa: PLC0415

    args.request = call.parse_request(args.op, args.pairs)


async def _call(client: "OverlayClient", args: argparse.Namespace) -> None:
    from overlayd.cli import tables  # noqa: PLC0415

    print(tables.pretty_json(await client.call(args.request)))


def _add_doctor(commands: "Commands") -> None:
    command = _add_command(
        commands,
        "doctor",
        "Compare the daemon's state with the kernel and the devices, and say what to do.",
    )
    _add_output(command, "text", "json")
    command.set_defaults(run=_doctor)


async def _doctor(client: "OverlayClient", args: argparse.Namespace) -> int:
    from overlayd.cli import tables  # noqa: PLC0415

    findings = await client.doctor()
    print(tables.pretty_json(findings) if args.output == "json" else tables.findings(findings))
    return EXIT_FINDINGS if any(each.severity in ("error", None) for each in findings) else 0


def _add_edge(commands: "Commands") -> None:
    edge = _add_command(commands, "edge", "Let devices outside the cluster in, for a while.", EDGE_EPILOG)
    actions = edge.add_subparsers(metavar="ACTION", required=True)

    mint = _add_command(
        actions, "mint", "Make a key and an address for a device, and print its configuration.", EDGE_EPILOG
    )
    mint.add_argument("name", metavar="NAME", help="what to call it")
    mint.add_argument(
        "--ttl", type=_duration, required=True, metavar="TIME", help="how long it may connect: 90s, 30m, 8h, 7d"
    )
    mint.add_argument("--allow", action="append", required=True, metavar="CIDR", help="what it may reach; repeatable")
    mint.add_argument("--format", choices=("wg-quick", "json"), default="wg-quick", help="(default: %(default)s)")
    mint.set_defaults(run=_edge_mint)

    listing = _add_command(actions, "list", "List the devices that were let in.")
    _add_output(listing, "table", "wide", "json")
    listing.set_defaults(run=_edge_list)

    revoke = _add_command(actions, "revoke", "Shut a device out now.")
    revoke.add_argument("name", metavar="NAME", help="the name it was minted with")
    revoke.set_defaults(run=_edge_revoke)


async def _edge_mint(client: "OverlayClient", args: argparse.Namespace) -> None:
    from overlayd.cli import tables  # noqa: PLC0415

    config = await client.mint_edge_peer(args.name, ttl_secs=args.ttl, allow=args.allow)
    print(tables.pretty_json(config) if args.format == "json" else tables.wg_quick(config))


async def _edge_list(client: "OverlayClient", args: argparse.Namespace) -> None:
    import time  # noqa: PLC0415

    from overlayd.cli import tables  # noqa: PLC0415

    peers = await client.list_edge_peers()
    if args.output == "json":
        print(tables.pretty_json(peers))
    else:
        print(tables.edge_peers(peers, wide=args.output == "wide", now=time.time()))


async def _edge_revoke(client: "OverlayClient", args: argparse.Namespace) -> None:
    await client.revoke_edge_peer(args.name)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _duration(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,10})([smhd]?)", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 8h or 7d")
    return int(match[1]) * SECONDS[match[2]]
