"""Freeing many objects without keeping the interpreter.

Owns: the order.  Must not know: what they are.
"""

from collections.abc import MutableMapping
from typing import Any


def dispose(*tables: MutableMapping[Any, Any]) -> None:
    """Empty tables that nobody needs any more, one entry after the other.  For worker threads.

    Otherwise all their objects are freed together, with the last reference to the table, and no other thread gets the
    interpreter in between: for 50,000 peers, or for 500 with 63 allowed IPs each, that takes 20 to 60 ms.
    """
    for table in tables:
        while table:
            table.popitem()
