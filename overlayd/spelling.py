"""Which known word somebody meant who wrote another one.

Owns: how alike words must be, and the words of the question.  Must not know: what the words are of.
"""

from collections.abc import Iterable


def perhaps_meant(word: str, known: Iterable[str]) -> str:
    """Ask for the known words that are most like one, in upper or lower case; empty when none is."""
    from difflib import get_close_matches  # noqa: PLC0415 - only who mistypes needs it

    called = {each.casefold(): each for each in known}
    near = get_close_matches(word.casefold(), called, 3)
    return f"did you mean {' or '.join(called[each] for each in near)}?" if near else ""
