"""What a change of membership costs, and what nft(8) costs, on a node that has many members already.

Needs root; works in a network namespace of its own.

    python bench/bench_nft.py [MEMBERS]
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv4Network

from smoke import SMOKE

from overlayd.linux.nft import Nft
from overlayd.model import set_members
from overlayd.model.objects import Element, Step

_CLONE_NEWNET = 0x40000000
MEMBERS, TIMES = (50, 3) if SMOKE else (5_000, 300)


def median_ms(repeat: int, *calls: Callable[[], object]) -> list[float]:
    """The median time of each of `calls`, made in turn `repeat` times, in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeat):
        for call, into in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            into.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(each) for each in times]


def steps(elements: list[Element], *, add: bool) -> list[Step]:
    return [Step(None, element) if add else Step(element, None) for element in elements]


def main() -> None:
    members = int(sys.argv[1]) if len(sys.argv) > 1 else MEMBERS
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: needs root")
    nft = Nft()
    print(f"ensure, first           {median_ms(1, nft.ensure)[0]:8.3f} ms")
    print(f"ensure, again           {median_ms(20, nft.ensure)[0]:8.3f} ms")
    first = int(IPv4Address("10.200.0.2"))
    crowd = [e for n in range(members) for e in set_members.member(IPv4Address(first + n), n // 10 + 1)]
    took = median_ms(1, lambda: nft.apply(steps(crowd, add=True)))[0]
    print(f"{len(crowd)} elements at once  {took:8.3f} ms")

    address = IPv4Address("10.201.0.1")
    cases = {
        "one element": set_members.node(address),
        "a routed member": set_members.member(address, 7),
        "a bridged member": set_members.member(address, 7, "veth-71-s"),
        "an edge peer, 2 CIDRs": set_members.edge(address, [IPv4Network("10.9.0.0/16"), IPv4Network("10.7.0.0/16")]),
    }
    for name, elements in cases.items():
        add, delete = steps(elements, add=True), steps(elements, add=False)
        plus, minus = median_ms(TIMES, partial(nft.apply, add), partial(nft.apply, delete))
        print(f"{name:22}  {plus:8.3f} ms to add, {minus:.3f} ms to delete")
    print(f"intact                  {median_ms(20, nft.intact)[0]:8.3f} ms")
    print(f"observe                 {median_ms(3, nft.observe)[0]:8.3f} ms")


if __name__ == "__main__":
    main()
