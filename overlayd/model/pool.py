"""The addresses of one subnet, and which to hand out next.

Owns: the order of allocation: never-used addresses first, lowest first; then the one released longest ago.  Must
not know: who asks, services, the journal.

A pool is an index over the leases of its subnet, rebuilt from them at any time.  Its window is at most 65,536
addresses, more than a node's bridges can carry.
"""

from collections.abc import Container, Iterable
from heapq import heappop, heappush

from overlayd._fast.bitmap import Bitmap
from overlayd.model.objects import Address, Network
from overlayd.model.rows import Lease
from overlayd.model.subnets import usable_window


class Pool:
    """The pool of `network`.  excluded: subnets inside it that are handed out elsewhere."""

    def __init__(self, network: Network, excluded: Iterable[Network]) -> None:
        self.network = network
        self._kind = type(network.network_address)
        first, last = usable_window(network)
        self._base = int(network.network_address) + first
        self._used = Bitmap(last - first + 1)
        self._reserved: set[int] = set()
        self._held: set[Address] = set()
        self._released: dict[Address, int] = {}
        self._oldest: list[
            tuple[int, int]
        ] = []  # heap of (release, index); entries that _released no longer confirms are stale
        for subnet in excluded:
            if subnet.version == network.version:
                low = int(subnet.network_address) - self._base
                high = int(subnet.broadcast_address) - self._base
                for index in range(max(low, 0), min(high, self._used.size - 1) + 1):
                    self._reserve(index)

    @property
    def size(self) -> int:
        """How many addresses can have a holder."""
        return self._used.size - len(self._reserved)

    @property
    def held(self) -> int:
        """How many addresses have a holder."""
        return len(self._held)

    def is_inhabited(self, network: Network) -> bool:
        """Whether an address of a network has a holder."""
        if len(self._held) < network.num_addresses:
            return any(address in network for address in self._held)
        return any(address in self._held for address in network)

    def reserve(self, address: Address) -> None:
        """Never hand this one out: the gateway's, the node's."""
        index = int(address) - self._base
        if 0 <= index < self._used.size:
            self._reserve(index)

    def _reserve(self, index: int) -> None:
        self._reserved.add(index)
        self._used.set(index)

    def update(self, address: Address, lease: Lease | None) -> None:
        """Follow a lease of this pool that was put, or went (None)."""
        index = int(address) - self._base
        if not 0 <= index < self._used.size:
            return
        self._held.discard(address)
        self._released.pop(address, None)
        if lease is None:
            if index not in self._reserved:
                self._used.clear(index)
            return
        self._used.set(index)
        if lease.holder:
            self._held.add(address)
        elif index not in self._reserved:
            self._released[address] = lease.released
            heappush(self._oldest, (lease.released, index))

    def can_give(self, address: Address) -> bool:
        """Whether an address is one of those that can have a holder."""
        index = int(address) - self._base
        inside = address.version == self.network.version and 0 <= index < self._used.size
        return inside and index not in self._reserved

    def choose(self, taken: Container[Address] = ()) -> Address | None:
        """The next address to hand out that is not in `taken` (of the same draft), None when the pool is exhausted."""
        index = self._used.first_clear()
        while index >= 0:
            address = self._address(index)
            if address not in taken:
                return address
            index = self._used.first_clear(index + 1)
        skipped = []
        found = None
        while self._oldest and found is None:
            release, index = entry = self._oldest[0]
            address = self._address(index)
            if self._released.get(address) != release:
                heappop(self._oldest)
            elif address in taken:
                skipped.append(heappop(self._oldest))
            else:
                found = address
        for entry in skipped:
            heappush(self._oldest, entry)
        return found

    def _address(self, index: int) -> Address:
        return self._kind(self._base + index)
