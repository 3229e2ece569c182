"""The command line of `overlayctl`: a table of its commands, and the parser made of it.

Owns: words, options and their help, and what exit codes mean.  Must not know: what a command does (`commands`).

Nothing slow is imported here: `--help` and a mistyped argument should not wait for asyncio.
"""

import argparse
import re
from collections.abc import Iterable

from overlayd import __version__
from overlayd.cli import cluster_words, cni_words, edge_words
from overlayd.cli.usage import Parser
from overlayd.cli.words import Command, Option, path
from overlayd.cli.words import duration as _duration
from overlayd.cli.words import option as _option
from overlayd.cli.words import output as _output

EXIT_ERR = 1  # the daemon answered err
EXIT_USAGE = 2  # argparse's own
EXIT_FINDINGS = 4  # the doctor found an error, an inspection a difference; not ready; a path is broken
EXIT_UNAVAILABLE = 69  # sysexits.h, EX_UNAVAILABLE
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE

DEFAULT_TIMEOUT = 30.0  # seconds
SECTIONS = ("links", "addresses", "routes", "fdb", "neighbours", "sockets", "conntrack")  # of an inspection

_EPILOG = """\
examples:
  overlayctl status                                  whether all is well, and this node's overlay
  overlayctl peers -o wide                           its peers, with whole keys; those that do not answer first
  overlayctl services, containers, ip, networks, dns what it holds; --filter TEXT for some of it
  overlayctl nat                                     where it may be reached, and how it reaches its peers
  overlayctl dns list                                registered names, upstream servers, and the cache
  overlayctl dns query www.example.org AAAA          what the name server says, and where it has that from
  overlayctl whoami                                  which process serves the socket
  overlayctl events                                  what changes, as it changes
  overlayctl doctor                                  what is not as it should be, and what to do
  overlayctl inspect                                 what the kernel has of it, also when the daemon is dead
  overlayctl call --list                             every request and its keys
  overlayctl call allocate_ip service=web join_global=false
  (umask 077; overlayctl edge mint laptop --ttl 8h --allow 10.200.0.0/16 > overlay.conf)

exit status:
  0 done   2 wrong usage
  1 refused by the daemon, nothing of that name, or a file that cannot be read or written; it says which
  4 the doctor found an error, the inspection a difference; the node is not ready; a path is broken
  69 the daemon cannot be reached, or is not the one that its identity file names
"""

_CALL_EPILOG = """\
Values are read as the request's key wants them: text as it is, numbers, true or false, lists as a,b,c or JSON, objects
as JSON or by dotted keys.  The first two are the same, the third one is of a container without a process:

  overlayctl call attach_container handle.platform=linux_pid handle.pid=71 service=web join_global=false
  overlayctl call attach_container handle='{"platform":"linux_pid","pid":71}' service=web join_global=false
  overlayctl call attach_container handle.platform=linux_netns handle.id=db handle.path=/run/netns/db service=web \
      join_global=false

The answer is printed as JSON.
"""

_INSPECT_EPILOG = f"""\
Sections: {", ".join(SECTIONS)}; all of them, shortened, when none is named.

overlayd need not run.  The kernel is read by another library than the daemon's own code, and compared with the journal
in the data directory.  Reading the journal and the connections takes root; the rest anybody may see.  When the journal
cannot be read, what the kernel has is shown all the same, and the exit status is 1.

examples: overlayctl inspect; overlayctl inspect links routes --json
"""

_WHY_EPILOG = """\
Each end is a container (pid:71, 71, netns:ID/eth0, guest:ID, host:ID), an address, a registered name, a peer by its
name or the beginning of its key, `node` for this one, or `outside`.  A container's namespace, links, routes and devices
are looked at by overlayctl itself, which takes root; another node's side is told by the overlayd there, which is asked
through the overlay, else by what comes back from it.  Pings are sent.

  overlayctl why 71 db                               from the container of process 71 to what is called db
  overlayctl why web outside
  overlayctl why node node-7
"""

_COMPLETION_EPILOG = """\
  bash   overlayctl completion bash > /etc/bash_completion.d/overlayctl
  zsh    overlayctl completion zsh > "${fpath[1]}/_overlayctl"
  fish   overlayctl completion fish > ~/.config/fish/completions/overlayctl.fish
"""


_FILTER = _option(
    "--filter",
    action="append",
    default=[],
    metavar="TEXT",
    help="only rows that have this in one of their cells, in any case; repeatable: all of them",
)


def _listing(*formats: str) -> tuple[Option, ...]:
    return (*_output(*formats), _FILTER)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _port(text: str) -> int:
    port = _count(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 0 to 65535")
    return port


def _section(text: str) -> str:
    if text not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SECTIONS)}")
    return text


COMMANDS = (
    Command(
        "status",
        "Say whether all is well, and show this node's overlay and its services.",
        (
            *_output("table", "wide", "json"),
            _option("--wait", action="store_true", help="wait until all is well, for --timeout at most; else exit 4"),
        ),
        "example: overlayctl status --wait --timeout 60",
    ),
    Command(
        "ready",
        "Exit 0 when this node's overlay is set up and can tunnel, 4 with the reason when not.",
        _output("text", "json"),
        "example: until overlayctl ready; do sleep 1; done",
    ),
    Command(
        "services",
        "List the services of this node.",
        _listing("table", "json"),
        "example: overlayctl services --filter dedicated",
    ),
    Command(
        "containers",
        "List what is attached to this node's services.",
        _listing("table", "json"),
        "example: overlayctl containers --filter web",
    ),
    Command(
        "ip",
        "List pools of addresses and what holds them; -o wide: each.",
        _listing("table", "wide", "json"),
        "example: overlayctl ip -o wide --filter 10.200.1.7",
    ),
    Command(
        "networks",
        "List the isolation networks of this node.",
        _listing("table", "json"),
        "example: overlayctl networks --json",
    ),
    Command(
        "peers",
        "List peers of all devices, those that do not answer first.",
        _listing("table", "wide", "json"),
        "example: overlayctl peers -o wide --filter silent",
    ),
    Command(
        "show",
        "Show the devices and their peers as wg(8) does, with the peers' names.",
        (_option("form", metavar="dump", nargs="?", choices=("dump",), help="as wg show all dump, the name last"),),
        "example: overlayctl show dump | cut -f 4,6,10            endpoint, last handshake, name",
    ),
    Command(
        "top",
        "Show what flows to and from each peer and service, refreshed every few seconds.",
        (
            _option("--interval", metavar="S", type=_timeout, default=2.0, help="seconds (default: %(default)g)"),
            _option("-n", "--number", metavar="N", type=_count, default=0, help="so many times (default: forever)"),
            *_listing("table", "json"),
        ),
        "example: overlayctl top --interval 5 --filter node-7",
    ),
    Command(
        "nat",
        "Show where this node may be reached, and how it reaches its peers.",
        _output("table", "wide", "json"),
        "example: overlayctl nat -o wide",
    ),
    Command(
        "dns",
        "Show what the name server knows, or let it ask again.",
        epilog="examples: overlayctl dns; overlayctl dns query web; overlayctl dns flush",
        actions=(
            Command(
                "list",
                "List registered names, and the servers that are asked for others.",
                _listing("table", "json"),
                "example: overlayctl dns list --filter web",
            ),
            Command(
                "query",
                "Ask the name server for a name, and show who answered.",
                (
                    _option("name", metavar="NAME", help="a name, or an address for the name of its holder"),
                    _option("type", metavar="TYPE", nargs="?", default="", help="of records (default: A)"),
                    *_output("table", "json"),
                ),
                "examples: overlayctl dns query web; overlayctl dns query www.example.org AAAA",
            ),
            Command(
                "flush",
                "Forget what those servers have answered.",
                epilog="example: overlayctl dns flush && overlayctl dns query www.example.org",
            ),
        ),
        default="list",
    ),
    Command(
        "whoami",
        "Ask which process serves the socket, and verify it if told against what.",
        (
            _option("--identity-file", metavar="FILE", help="what the daemon published with its --identity-file"),
            *_output("table", "json"),
        ),
        "example: overlayctl whoami --identity-file /run/overlayd/identity.json",
    ),
    Command(
        "events",
        "Print what changes, one line each, until interrupted.",
        _output("text", "json"),
        "example: overlayctl events --json | jq -r .event",
    ),
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
        _output("text", "json"),
        "example: overlayctl doctor --json | jq -r '.[].code'      the codes are in docs/troubleshooting.md",
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
            *_output("text", "json"),
        ),
        _INSPECT_EPILOG,
    ),
    Command(
        "web",
        "Serve a page for a browser on this machine: the node, its peers, services, findings and events, and why.",
        (
            _option(
                "--port",
                type=_port,
                default=9587,
                metavar="N",
                help="the port at 127.0.0.1, 0 for any that is free (default: %(default)s)",
            ),
        ),
        "example: overlayctl web --port 0                         from elsewhere: ssh -L 9587:127.0.0.1:9587 NODE",
    ),
    Command(
        "why",
        "Walk a packet's way from one end to another, and name the first hop that fails, with its remedy.",
        (
            _option("source", metavar="A", help="where it comes from"),
            _option("target", metavar="B", help="where it goes to"),
            _option(
                "--data-dir",
                metavar="DIR",
                help="the daemon's data directory, for when no daemon answers (default: as of inspect)",
            ),
            *_output("text", "json"),
        ),
        _WHY_EPILOG,
    ),
    Command(
        "ping",
        "Ping a peer, a container or an address through the overlay, and say by which path it is reached.",
        (
            _option("target", metavar="PEER", help="a peer's name or key, a registered name, a handle or an address"),
            _option("-c", "--count", metavar="N", type=_count, default=4, help="so many times (default: %(default)s)"),
            *_output("text", "json"),
        ),
        "examples: overlayctl ping node-7; overlayctl ping -c 1 10.200.2.1",
    ),
    Command(
        "bundle",
        "Write a tar file for a bug report: what the daemon and the kernel show, without secrets.",
        (
            _option("file", metavar="FILE", nargs="?", help="where to (default: overlayd-HOST-TIME.tar.gz here)"),
            _option(
                "--data-dir",
                metavar="DIR",
                help="the daemon's data directory, whose secrets are looked for (default: as of inspect)",
            ),
        ),
        "example: overlayctl bundle /tmp/overlayd.tar.gz",
    ),
    Command(
        "schema",
        "Print the JSON Schema of every frame of the protocol; docs/protocol.md explains it.",
        epilog="example: overlayctl schema > overlayd.schema.json",
    ),
    Command(
        "version",
        "Print the versions of overlayctl and of the daemon.",
        _output("text", "json"),
        "example: overlayctl version                              exits 69 after its own when no daemon answers",
    ),
    Command(
        "completion",
        "Print what makes a shell complete overlayctl's words.",
        (_option("shell", choices=("bash", "zsh", "fish"), help="the shell"),),
        _COMPLETION_EPILOG,
    ),
    Command(
        "man",
        "Print a manual page, in roff: overlayctl man | man -l -",
        (
            _option(
                "page",
                nargs="?",
                choices=("overlayctl", "overlayd"),
                default="overlayctl",
                help="(default: %(default)s)",
            ),
        ),
        "example: overlayctl man overlayd | man -l -",
    ),
    Command(
        "device",
        "Look after the WireGuard devices.",
        epilog="example: overlayctl device renew",
        actions=(
            Command(
                "renew",
                "Have the newest wireguard-go serve the devices, one after the other; their sessions begin again.",
                (
                    _option("--all", action="store_true", help="also the devices that it serves already"),
                    *_output("table", "json"),
                ),
                "example: overlayctl device renew --json",
            ),
        ),
    ),
    Command(
        "rotate-key",
        "Give this node of a cluster another key, while its tunnels live.",
        (
            _option(
                "--after",
                type=_duration,
                metavar="TIME",
                help="until it is used, so that all nodes know it by then: 90s, 5m (default: 60s)",
            ),
            _option(
                "--force", action="store_true", help="though guests, edge peers or other peers know the present one"
            ),
        ),
        "example: overlayctl rotate-key --after 5m                overlayctl cluster status shows how far it is",
    ),
    Command(
        "cluster",
        "See and change the cluster that this node is in without an orchestrator.",
        epilog=cluster_words.EPILOG,
        actions=cluster_words.ACTIONS,
    ),
    Command(
        "cni",
        "Let container runtimes use the overlay: containerd, CRI-O, podman, nomad, Kubernetes.",
        epilog=cni_words.EPILOG,
        actions=cni_words.ACTIONS,
    ),
    Command(
        "edge",
        "Let devices outside the cluster in, for a while.",
        epilog=edge_words.EPILOG,
        actions=edge_words.ACTIONS,
        default="list",
    ),
)


def parser() -> argparse.ArgumentParser:
    """What it parses has the words of the command, such as "edge mint", as `command`, and as `usage` what ends
    the program with a message and how that command is used.
    """
    top = Parser(
        prog="overlayctl",
        description="Ask the overlayd of this node.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"overlayctl {__version__}")
    _add_global(top)
    top.set_defaults(identity_file=None, socket=None, timeout=DEFAULT_TIMEOUT)
    _add(top, COMMANDS, "COMMAND", "")
    return top


def _add_global(parser: argparse.ArgumentParser) -> None:
    """The options that may stand before the command or after it."""
    group = parser.add_argument_group("of every command")
    group.add_argument(
        "--socket",
        metavar="PATH",
        type=path,
        default=argparse.SUPPRESS,
        help="the daemon's socket (default: $OVERLAYD_SOCKET, else /run/overlayd/overlayd.sock)",
    )
    group.add_argument(
        "--timeout",
        metavar="S",
        type=_timeout,
        default=argparse.SUPPRESS,
        help=f"seconds to wait for an answer (default: {DEFAULT_TIMEOUT:g})",
    )


def _add(parent: argparse.ArgumentParser, commands: Iterable[Command], metavar: str, before: str) -> None:
    """before: the words that come before those of `commands`, with a space after them."""
    optional = any(before == f"{each.word} " and each.default for each in COMMANDS)
    places = parent.add_subparsers(metavar=metavar, required=not optional)
    for command in commands:
        made = places.add_parser(
            command.word,
            help=command.summary,
            description=command.summary,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        default = next((each for each in command.actions if each.word == command.default), None)
        for option in default.options if default is not None else command.options:
            made.add_argument(*option.names, **option.settings)
        _add_global(made)
        words = f"{before}{command.word}" + (f" {command.default}" if default is not None else "")
        made.set_defaults(command=words, usage=made.error)
        if command.actions:
            _add(made, command.actions, "ACTION", f"{before}{command.word} ")
