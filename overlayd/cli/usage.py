"""A parser of command lines that says what was perhaps meant.

Owns: the words for wrong usage.  Must not know: any command.
"""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from overlayd.cli.columns import printable
from overlayd.printing import PrintingParser
from overlayd.spelling import perhaps_meant


class Parser(PrintingParser):
    """Its commands' parsers are of its class too, and are told as `usage` of what they parsed."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']+)'|unrecognized arguments: (\S+)", message)
        if wrong:
            meant = perhaps_meant(wrong[1] or wrong[2], _words(self))
            if meant:
                message = f"{message.partition(' (choose from')[0]}; {meant}"
        super().error("\n".join(map(printable, message.split("\n"))))

    def parse_args(  # type: ignore[override]  # nobody gives a namespace
        self, args: Sequence[str] | None = None
    ) -> argparse.Namespace:
        """What is too much is said by the parser of the command, which knows what else there may be."""
        parsed, left = self.parse_known_args(args)
        if left:
            of = parsed.usage.__self__  # the command's parser
            early = [each for each in left if each.partition("=")[0] in of._option_string_actions]
            if early:
                of.error(f"{early[0]} has its place behind the command: {of.prog} {early[0]}")
            parsed.usage(f"unrecognized arguments: {' '.join(left)}")
        return parsed


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The commands and options that a parser knows."""
    known: list[str] = []
    for action in parser._actions:
        known += action.option_strings
        known += [str(each) for each in action.choices or ()]
        if isinstance(action.choices, dict):
            for each in action.choices.values():
                known += [option for one in each._actions for option in one.option_strings]
    return sorted(set(known))
