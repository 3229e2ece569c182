"""The command line of `overlayctl`: a table of its commands, and the parser made of it.

Owns: words, options and their help, and what exit codes mean.  Must not know: what a command does (`commands`).

Nothing slow is imported here: `--help` and a mistyped argument should not wait for asyncio.
"""

import argparse
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from overlayd import __version__

EXIT_ERR = 1  # the daemon answered err
EXIT_USAGE = 2  # argparse's own
EXIT_FINDINGS = 4  # the doctor found an error, or an inspection a difference
EXIT_UNAVAILABLE = 69  # sysexits.h, EX_UNAVAILABLE
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE

DEFAULT_TIMEOUT = 30.0  # seconds
SECTIONS = ("links", "addresses", "routes", "fdb", "neighbours", "sockets", "conntrack")  # of an inspection
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_EPILOG = """\
examples:
  overlayctl status                                  this node's overlay
  overlayctl peers -o wide                           its peers, with whole keys
  overlayctl nat                                     where it may be reached, and how it reaches its peers
  overlayctl dns list                                registered names, upstream servers, and the cache
  overlayctl whoami                                  which process serves the socket
  overlayctl events                                  what changes, as it changes
  overlayctl doctor                                  what is not as it should be, and what to do
  overlayctl inspect                                 what the kernel has of it, also when the daemon is dead
  overlayctl call --list                             every request and its keys
  overlayctl call allocate_ip service=web join_global=false
  (umask 077; overlayctl edge mint laptop --ttl 8h --allow 10.200.0.0/16 > overlay.conf)

exit status:
  0 done   1 the daemon refused, and said why   2 wrong usage
  4 the doctor found an error, or the inspection a difference
  69 the daemon cannot be reached, or is not the one that its identity file names
"""

_CALL_EPILOG = """\
Values are read as the request's key wants them: text as it is, numbers, true or false, lists as a,b,c or JSON, objects
as JSON or by dotted keys.  These two are the same:

  overlayctl call attach_container handle.platform=linux_pid handle.pid=71 service=web join_global=false
  overlayctl call attach_container handle='{"platform":"linux_pid","pid":71}' service=web join_global=false

The answer is printed as JSON.
"""

_INSPECT_EPILOG = f"""\
Sections: {", ".join(SECTIONS)}; all of them, shortened, when none is named.

overlayd need not run.  The kernel is read by another library than the daemon's own code, and compared with the journal
in the data directory.  Reading the journal and the connections takes root; the rest anybody may see.
"""

_EDGE_EPILOG = """\
examples:
  (umask 077; overlayctl edge mint laptop --ttl 8h --allow 10.200.0.0/16 > overlay.conf)
  wg-quick up ./overlay.conf                         on the laptop
  overlayctl edge mint laptop --ttl 8h --allow web --node-endpoint vpn.example.net:51820
  overlayctl edge list
  overlayctl edge revoke laptop

The configuration holds the private key; overlayd does not show it again.
"""


class Option(NamedTuple):
    """The arguments of one `add_argument`."""

    names: tuple[str, ...]
    settings: dict[str, Any]


class Command(NamedTuple):
    """A command, or a word before several: then it has `actions`, and no options."""

    word: str
    summary: str
    options: tuple[Option, ...] = ()
    epilog: str | None = None
    actions: tuple["Command", ...] = ()


def _option(*names: str, **settings: Any) -> Option:
    return Option(names, settings)


def _output(*formats: str) -> Option:
    """The first format is the default."""
    return _option("-o", "--output", choices=formats, default=formats[0], help="how to print it (default: %(default)s)")


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
    return int(match[1]) * _SECONDS[match[2]]


def _section(text: str) -> str:
    if text not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SECTIONS)}")
    return text


COMMANDS = (
    Command("status", "Show this node's overlay and its dedicated services.", (_output("table", "wide", "json"),)),
    Command("peers", "List the peers of the global overlay.", (_output("table", "wide", "json"),)),
    Command(
        "nat",
        "Show where this node may be reached, and how it reaches its peers.",
        (_output("table", "wide", "json"),),
    ),
    Command(
        "dns",
        "Show what the name server knows, or let it ask anew.",
        actions=(
            Command(
                "list",
                "List registered names, and the servers that are asked for others.",
                (_output("table", "json"),),
            ),
            Command("flush", "Forget what those servers have answered."),
        ),
    ),
    Command(
        "whoami",
        "Ask which process serves the socket, and verify it if told against what.",
        (
            _option("--identity-file", metavar="FILE", help="what the daemon published with its --identity-file"),
            _output("table", "json"),
        ),
    ),
    Command("events", "Print what changes, one line each, until interrupted.", (_output("text", "json"),)),
    Command(
        "call",
        "Send one request of the contract.",
        (
            _option("--list", action="store_true", help="list every request and its keys, and exit"),
            _option("op", metavar="OP", nargs="?", help="the request"),
            _option("pairs", metavar="key=value", nargs="*", help="its keys"),
        ),
        _CALL_EPILOG,
    ),
    Command(
        "doctor",
        "Compare the daemon's state with the kernel and the devices, and say what to do.",
        (_output("text", "json"),),
    ),
    Command(
        "inspect",
        "Show what the kernel has of this node's overlay, and what is missing or too much there.",
        (
            _option("sections", metavar="SECTION", nargs="*", type=_section, help="what to show, whole"),
            _option(
                "--data-dir",
                metavar="DIR",
                help="the daemon's data directory (default: $OVERLAYD_DATA_DIR, else /var/lib/overlayd)",
            ),
            _output("text", "json"),
        ),
        _INSPECT_EPILOG,
    ),
    Command(
        "edge",
        "Let devices outside the cluster in, for a while.",
        epilog=_EDGE_EPILOG,
        actions=(
            Command(
                "mint",
                "Make a key and an address for a device, and print its configuration.",
                (
                    _option("name", metavar="NAME", help="what to call it"),
                    _option(
                        "--ttl",
                        type=_duration,
                        required=True,
                        metavar="TIME",
                        help="how long it may connect: 90s, 30m, 8h, 7d",
                    ),
                    _option(
                        "--allow",
                        action="append",
                        default=[],
                        metavar="CIDR|SERVICE",
                        help="what it may reach, a CIDR or a service of this node; repeatable (default: everything)",
                    ),
                    _option(
                        "--node-endpoint",
                        metavar="HOST:PORT",
                        help="where it dials this node (default: this host's own address, which a NAT may hide)",
                    ),
                    _option(
                        "--format", choices=("wg-quick", "json"), default="wg-quick", help="(default: %(default)s)"
                    ),
                ),
                _EDGE_EPILOG,
            ),
            Command("list", "List the devices that were let in.", (_output("table", "wide", "json"),)),
            Command(
                "revoke",
                "Shut a device out now.",
                (_option("name", metavar="NAME", help="the name it was minted with"),),
            ),
        ),
    ),
)


def parser() -> argparse.ArgumentParser:
    """What it parses has the words of the command, such as "edge mint", as `command`."""
    top = argparse.ArgumentParser(
        prog="overlayctl",
        description="Ask the overlayd of this node.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"overlayctl {__version__}")
    top.add_argument(
        "--socket",
        metavar="PATH",
        help="the daemon's socket (default: $OVERLAYD_SOCKET, else /run/overlayd/overlayd.sock)",
    )
    top.add_argument(
        "--timeout",
        metavar="S",
        type=_timeout,
        default=DEFAULT_TIMEOUT,
        help="seconds to wait for an answer (default: %(default)g)",
    )
    top.set_defaults(identity_file=None)
    _add(top, COMMANDS, "COMMAND", "")
    return top


def _add(parent: argparse.ArgumentParser, commands: Iterable[Command], metavar: str, before: str) -> None:
    """before: the words that come before those of `commands`, with a space after them."""
    places = parent.add_subparsers(metavar=metavar, required=True)
    for command in commands:
        made = places.add_parser(
            command.word,
            help=command.summary,
            description=command.summary,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in command.options:
            made.add_argument(*option.names, **option.settings)
        if command.actions:
            _add(made, command.actions, "ACTION", f"{before}{command.word} ")
        else:
            made.set_defaults(command=f"{before}{command.word}")
