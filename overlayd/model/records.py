"""Registered names.

Owns: Record rows.  Must not know: who asks for names, or what a name may look like.
"""

from overlayd.model.objects import Address
from overlayd.model.rows import Record
from overlayd.model.state import Draft


def register(draft: Draft, name: str, address: Address) -> None:
    """Let a name stand for an address, and for no other."""
    draft.put(Record(name=name, address=address))


def unregister(draft: Draft, name: str) -> None:
    """Forget a name; an unknown one is no error."""
    record = draft.get(Record, name)
    if record is not None:
        draft.drop(record)
