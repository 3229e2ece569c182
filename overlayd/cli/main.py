"""The two commands: `overlayd`, the daemon, and `overlayctl`, which asks it.

Owns: the entry points.  Must not know: the daemon's insides, what `overlayctl` understands (`arguments`) and does
(`commands`).

Each imports late what is slow, and once: a mistyped argument should not wait for asyncio.
"""

import os
import sys
from typing import NoReturn

from overlayd.cli.arguments import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, parser


def daemon() -> NoReturn:
    """The `overlayd` command."""
    from overlayd.daemon.main import main  # noqa: PLC0415

    sys.exit(main(sys.argv[1:]))


def control() -> NoReturn:
    """The `overlayctl` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Do what `overlayctl ARGUMENTS` should.  Returns the exit code; raises SystemExit for wrong usage and --help."""
    line = parser()
    args = line.parse_args(arguments)
    try:
        from overlayd.cli import commands  # noqa: PLC0415

        return commands.run(args, line.error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits: let that succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
