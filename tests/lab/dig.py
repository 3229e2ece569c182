"""Asking name servers with dig, from wherever in the laboratory.

Owns: one question, and who serves port 53 of a node.  Must not know: what should be answered.
"""

import re
from typing import NamedTuple

from lab import Container, Node


class Answer(NamedTuple):
    status: str
    flags: set[str]
    records: list[str]  # data of the answer section
    text: str


def dig(place: Container | Node, server: str, name: str, type: str = "A", *options: str) -> Answer:
    """Ask once.  CommandFailed when nobody answers."""
    argv = ["dig", "+tries=1", "+time=20", "+nocookie", f"@{server}", *options, name, type]
    said = place.run(argv)
    status, flags = re.search(r"status: (\w+)", said), re.search(r"flags: ([a-z ]+);", said)
    assert status and flags, said
    answers = said.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0].splitlines()
    return Answer(status[1], set(flags[1].split()), [line.split(maxsplit=4)[4] for line in answers], said)


def listening(node: Node) -> set[str]:
    """The protocols and addresses that somebody serves at port 53."""
    shown = node.run(["ss", "-Hlntu", "sport = :53"]).splitlines()
    return {f"{line.split()[0]} {line.split()[4]}" for line in shown}
