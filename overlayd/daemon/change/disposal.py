"""The end of many objects.

Owns: how they go.  Must not know: what they are.
"""

from collections.abc import MutableMapping
from typing import Any


def dispose(*tables: MutableMapping[Any, Any]) -> None:
    """Empty tables that nobody needs any more, one entry after the other.  For worker threads.

    Left to themselves, their objects end all together, with the last reference to the table, and nobody else gets the
    interpreter in between: of 50,000 peers, or of 500 with 63 allowed IPs each, that takes 20 to 60 ms.
    """
    for table in tables:
        while table:
            table.popitem()
