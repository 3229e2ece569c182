"""Rows of cells as columns that fit a width.

Owns: widths, what is cut or left out when there is no room, and colours.  Must not know: what the cells mean.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Tone = Literal["", "bad", "doubtful", "faint"]

CUT = "..."
GAP = 2  # blanks between columns
_SGR = {"bad": "31", "doubtful": "33", "faint": "2"}  # ECMA-48, 8.3.117
_BOLD = "1"


class Column(NamedTuple):
    """least: characters to which its cells may be cut, 0 when they may not.  rank: of two columns for which there is no
    room the one with the higher rank is left out first; 0: it is never left out.
    """

    title: str
    least: int = 0
    rank: int = 0


class Row(NamedTuple):
    """tone: how the row is coloured, where there are colours."""

    cells: Sequence[str]
    tone: Tone = ""


class Paper(NamedTuple):
    """The terminal or file that is written to.  width: characters of a line, 0 for any number."""

    width: int = 0
    colours: bool = False


PLAIN = Paper()


def table(columns: Sequence[Column | str], rows: Sequence[Row | Sequence[str]], paper: Paper = PLAIN) -> str:
    """The rows under their titles, in columns as wide as their widest cell or as there is room for."""
    made = [each if isinstance(each, Column) else Column(each) for each in columns]
    lines = [each if isinstance(each, Row) else Row(each) for each in rows]
    lines = [Row([printable(cell) for cell in row.cells], row.tone) for row in lines]
    shown, widths = _fit(made, [row.cells for row in lines], paper.width)
    head = _line([made[at].title for at in shown], widths)
    text = [coloured(head, _BOLD, paper)]
    for row in lines:
        line = _line([row.cells[at] for at in shown], widths)
        text.append(coloured(line, _SGR[row.tone], paper) if row.tone else line)
    return "\n".join(text)


def toned(text: str, tone: Tone, paper: Paper) -> str:
    """A text in the colour of its tone, where there are colours."""
    return coloured(text, _SGR[tone], paper) if tone else text


def coloured(text: str, code: str, paper: Paper) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if paper.colours and text else text


def printable(text: str) -> str:
    """Escape what a terminal would act on: anybody who may use the socket, or serves it, chooses names."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> tuple[list[int], list[int]]:
    """Which columns are shown, and how wide each."""
    shown = list(range(len(columns)))
    natural = [max([len(column.title), *(len(row[at]) for row in rows)]) for at, column in enumerate(columns)]
    while True:
        widths = _narrowed([natural[at] for at in shown], [columns[at] for at in shown], room)
        if not room or sum(widths) + GAP * (len(widths) - 1) <= room:
            return shown, widths
        dispensable = [at for at in shown if columns[at].rank]
        if not dispensable:
            return shown, widths
        shown.remove(max(dispensable, key=lambda at: columns[at].rank))


def _narrowed(widths: list[int], columns: Sequence[Column], room: int) -> list[int]:
    """Take from the widest column that may be cut, until there is room or nothing more to take."""
    excess = sum(widths) + GAP * (len(widths) - 1) - room if room else 0
    while excess > 0:
        cuttable = [
            at
            for at, column in enumerate(columns)
            if column.least and widths[at] > max(column.least, len(column.title))
        ]
        if not cuttable:
            break
        widths[max(cuttable, key=lambda at: widths[at])] -= 1
        excess -= 1
    return widths


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row as a line; the last cell is not padded, but cut like the others."""
    return (" " * GAP).join(_cut(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cut(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell
    return cell[: width - len(CUT)] + CUT if width > len(CUT) else cell[:width]
