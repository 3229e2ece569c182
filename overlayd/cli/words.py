"""What the command line of `overlayctl` is made of: words, options, and how times are written.

Owns: their shapes.  Must not know: any command.
"""

import argparse
import re
from typing import Any, NamedTuple

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Option(NamedTuple):
    """The arguments of one `add_argument`."""

    names: tuple[str, ...]
    settings: dict[str, Any]


class Command(NamedTuple):
    """A command, or a word before several: then it has `actions`.  default: the action that the word alone means, whose
    options it takes; empty when the word alone means none.
    """

    word: str
    summary: str
    options: tuple[Option, ...] = ()
    epilog: str | None = None
    actions: tuple["Command", ...] = ()
    default: str = ""


def option(*names: str, **settings: Any) -> Option:
    """The metavars DIR, FILE and PATH are of paths."""
    if settings.get("metavar") in ("DIR", "FILE", "PATH"):
        settings["type"] = path
    return Option(names, settings)


def path(text: str) -> str:
    """An unset variable of a shell leaves nothing, which would be the present directory, or the default."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def output(*formats: str) -> tuple[Option, ...]:
    """How an answer is printed.  The first format is the default; one is json."""
    return (
        option("-o", "--output", choices=formats, default=formats[0], help="how to print it (default: %(default)s)"),
        option(
            "--json",
            dest="output",
            action="store_const",
            const="json",
            default=argparse.SUPPRESS,
            help="the same as -o json",
        ),
    )


def duration(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,10})([smhd]?)", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 8h or 7d")
    return int(match[1]) * _SECONDS[match[2]]
