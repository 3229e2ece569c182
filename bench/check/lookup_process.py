"""The longest match of random addresses among allowed IPs: the process that does it for `cases.lookup`.

Owns: the table, the addresses and their timing.  Must not know: the harness, because it runs with another tree's
`overlayd`.
"""

import random
import sys
import time
from collections.abc import Callable

PREFIXES, ADDRESSES = 20_000, 20_000
FAMILIES = {"lookup_v4": (4, 16, 28), "lookup_v6": (16, 32, 64)}  # bytes of an address; shortest and longest prefix


def serve(library: str) -> None:
    """For each line with a case's name, print the seconds and the processor time of a lookup.

    library: `pytricia`, or `overlayd`.
    """
    lookups: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {}
    for case, (size, low, high) in FAMILIES.items():
        rng = random.Random(size)
        held = [(rng.randbytes(size), rng.randint(low, high)) for _ in range(PREFIXES)]
        if library == "pytricia":
            from pytricia import PyTricia  # noqa: PLC0415  a version's process has it not

            theirs = PyTricia(size * 8)
            insert, lookup = theirs.insert, theirs.get
        else:
            from overlayd._fast.allowedips import AllowedIPs  # noqa: PLC0415

            ours = AllowedIPs[int]()
            insert, lookup = ours.insert, ours.lookup
        for number, (packed, prefix) in enumerate(held):
            insert(packed, prefix, number)
        # Half of them inside a prefix; new objects, as out of a packet.
        asked = [bytes([*rng.choice(held)[0]]) if at % 2 else rng.randbytes(size) for at in range(ADDRESSES)]
        lookups[case] = (lookup, asked)
    for line in sys.stdin:
        lookup, asked = lookups[line.strip()]
        used, start = time.process_time(), time.perf_counter()
        for _ in range(5):
            for packed in asked:
                lookup(packed)
        took = time.perf_counter() - start
        print(took / (5 * ADDRESSES), (time.process_time() - used) / (5 * ADDRESSES), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
