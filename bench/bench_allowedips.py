"""Longest-prefix match of random addresses among 1,000 to 1,000,000 prefixes: `allowedips.AllowedIPs` beside pytricia,
and py-radix if it is there.

Run: python bench/bench_allowedips.py [--fast] [--prefixes N]...
"""

import argparse
import random
from collections.abc import Callable
from functools import cache

import pyperf
import pytricia
from smoke import SMOKE, make_runner

from overlayd._fast.allowedips import AllowedIPs

try:
    import radix
except ImportError:  # an extra of its own: pip install -e '.[bench]'
    radix = None

PEERS = ("AllowedIPs", "pytricia", *(("py-radix",) if radix else ()))

ADDRESSES = 100 if SMOKE else 20_000


def prefixes(count: int, size: int) -> list[tuple[bytes, int]]:
    """Prefixes as a routing table has them: few short, most /16 to /28 (IPv6: /32 to /64)."""
    rng = random.Random(count)
    low, high = (16, 28) if size == 4 else (32, 64)
    return [(rng.randbytes(size), rng.randint(low, high)) for _ in range(count)]


def addresses(held: list[tuple[bytes, int]]) -> list[bytes]:
    """Half of them inside a prefix, half anywhere; new objects, as out of a packet."""
    rng = random.Random(1)
    size = len(held[0][0])
    return [bytes([*rng.choice(held)[0]]) if i % 2 else rng.randbytes(size) for i in range(ADDRESSES)]


def filled(peer: str, held: list[tuple[bytes, int]]) -> Callable[[bytes], object]:
    """The lookup of a table that holds these prefixes, each with a value of its own."""
    if peer == "py-radix":
        tree = radix.Radix()
        for packed, prefix_len in held:
            tree.add(packed=packed, masklen=prefix_len)
        return lambda packed: tree.search_best(packed=packed)
    if peer == "AllowedIPs":
        ours = AllowedIPs[int]()
        insert, lookup = ours.insert, ours.lookup
    else:
        theirs = pytricia.PyTricia(len(held[0][0]) * 8)
        insert, lookup = theirs.insert, theirs.get
    for i, (packed, prefix_len) in enumerate(held):
        insert(packed, prefix_len, i)
    return lookup


@cache  # per worker process, which times one benchmark only
def prepared(peer: str, count: int, size: int) -> tuple[Callable[[bytes], object], list[bytes]]:
    held = prefixes(count, size)
    return filled(peer, held), addresses(held)


def time_lookups(loops: int, peer: str, count: int, size: int) -> float:
    lookup, asked = prepared(peer, count, size)
    start = pyperf.perf_counter()
    for _ in range(loops):
        for packed in asked:
            lookup(packed)
    return float(pyperf.perf_counter() - start)


def pass_prefixes(command: list[str], args: argparse.Namespace) -> None:
    for count in args.prefixes or ():
        command += ["--prefixes", str(count)]


def main() -> None:
    runner = make_runner(add_cmdline_args=pass_prefixes)
    runner.argparser.add_argument("--prefixes", type=int, action="append")
    for count in runner.parse_args().prefixes or ([100] if SMOKE else [1_000, 100_000, 1_000_000]):
        for size, version in ((4, "IPv4"), (16, "IPv6")):
            for peer in PEERS:
                title = f"lookup {version}, {count} prefixes: {peer}"
                runner.bench_time_func(title, time_lookups, peer, count, size, inner_loops=ADDRESSES)


if __name__ == "__main__":
    main()
