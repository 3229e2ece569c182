"""Where nodes of the cluster are known to be: the addresses in the endpoints and candidates of peers.

Owns: the index by address.  Must not know: who asks.  Endpoints that are host names do not count: a name may point
anywhere.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from overlayd.model.objects import GLOBAL, Address
from overlayd.model.rows import Change, Peer, RowId, numeric_endpoint


class KnownNodes:
    """peers: gives those that there are.  Nothing is kept until somebody asks, for most nodes offer no relay."""

    def __init__(self, peers: Callable[[], Iterable[Peer]]) -> None:
        self._peers = peers
        self._asked = False
        self._of: dict[RowId, frozenset[Address]] = {}
        self._count: Counter[Address] = Counter()

    def __contains__(self, address: Address) -> bool:
        if not self._asked:
            self._asked = True
            for peer in self._peers():
                self._put(peer)
        return address in self._count

    def follow(self, change: Change) -> None:
        """Follow the peers, at the cost of the change."""
        if not self._asked:
            return
        for id, row in change.items():
            if id[0] != Peer.table:
                continue
            for address in self._of.pop(id, ()):
                self._count[address] -= 1
                if not self._count[address]:
                    del self._count[address]
            if isinstance(row, Peer):
                self._put(row)

    def _put(self, peer: Peer) -> None:
        if peer.scope != GLOBAL:
            return
        texts = (peer.endpoint, *(address for _, address, _ in peer.candidates))
        found = frozenset(endpoint[0] for text in texts if text and (endpoint := numeric_endpoint(text)) is not None)
        self._of[peer.id] = found
        self._count.update(found)
