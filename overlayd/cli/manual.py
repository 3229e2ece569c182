"""Manual pages, made of the parsers.

Owns: the form of man(7).  Must not know: the words of the parsers.
"""

import argparse
from collections.abc import Iterator

from overlayd import __version__

_SECTION = {"overlayctl": 1, "overlayd": 8}


def page(parser: argparse.ArgumentParser) -> str:
    """A parser's command as a manual page, its commands in sections of their own."""
    name = parser.prog
    lines = [f'.TH {name.upper()} {_SECTION[name]} "" "overlayd {__version__}"', ".SH NAME"]
    lines.append(f"{name} \\- {_text(_first(parser.description))}")
    lines += [".SH SYNOPSIS", ".nf", _text(parser.format_usage().removeprefix("usage: ").rstrip()), ".fi"]
    lines += [".SH DESCRIPTION", _text(parser.description or "")]
    lines += [".SH OPTIONS", *_options(parser)]
    commands = list(_commands(parser))
    if commands:
        lines.append(".SH COMMANDS")
    for command in commands:
        lines.append(f".SS {_text(command.prog.removeprefix(f'{name} '))}")
        lines += [_text(command.description or ""), ".PP", ".nf"]
        lines += [_text(command.format_usage().removeprefix("usage: ").rstrip()), ".fi"]
        lines += _options(command)
        lines += _epilog(command)
    lines += _epilog(parser, ".SH NOTES")
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield each
                yield from _commands(each)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help is argparse.SUPPRESS:
            continue
        names = action.option_strings or [""]
        value = "" if action.nargs == 0 else formatter._format_args(action, str(action.metavar or action.dest.upper()))
        heads = (f"\\fB{_text(name)}\\fR \\fI{_text(str(value))}\\fR".strip() for name in names)
        yield ".TP"
        yield ", ".join(heads)
        yield _text(formatter._expand_help(action) if action.help else "")


def _epilog(parser: argparse.ArgumentParser, title: str = ".PP") -> Iterator[str]:
    if parser.epilog:
        yield from (title, ".nf", _text(parser.epilog.rstrip()), ".fi")


def _first(text: str | None) -> str:
    return " ".join((text or "").split()).partition(":")[0].rstrip(".")


def _text(text: str) -> str:
    """Escape what roff would take for requests and hyphens."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)
