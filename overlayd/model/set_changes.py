"""From steps about set elements to changes of whole sets.

Owns: what goes together, and in which order.  Must not know: what an element means (`set_members`), or how a change
reaches the kernel (`linux.setelem`).
"""

from collections.abc import Sequence

import msgspec

from overlayd.model.objects import Element, Step


class Change(msgspec.Struct, frozen=True):
    """Elements of one set that are added, or else deleted, together."""

    add: bool
    family: str
    set: str
    elements: tuple[Element, ...]


def changes(steps: Sequence[Step]) -> list[Change]:
    """What does `steps`, each of them about an Element, when done in this order in one transaction; empty for nothing.

    Deletes come first: that is how a map entry changes its value, and how a CIDR gives way to one that overlaps it.
    Raises TypeError for a step about anything else.
    """
    sets: dict[tuple[bool, str, str], list[Element]] = {}
    for step in steps:
        if step.have == step.want:
            continue
        for add, element in ((False, step.have), (True, step.want)):
            if element is None:
                continue
            if not isinstance(element, Element):
                raise TypeError(f"not an nftables element: {element!r}")
            sets.setdefault((add, element.family, element.set), []).append(element)
    return [Change(*key, tuple(sets[key])) for key in sorted(sets, key=lambda key: key[0])]
