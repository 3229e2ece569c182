"""Which tracked connections our rules would not have let begin, or not as they are.

Owns: the rules of `ruleset` once more, about the two ends of a connection and not about a packet.  Must not know: how
connections are listed or forgotten (`linux.conntrack`).

Rules judge the first packet of a connection, and address translation is settled by it.  What began while our tables
were away, because somebody flushed the host's ruleset, goes on as it began for as long as it likes, unless it is
forgotten: then its next packet is judged.
"""

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from overlayd.model.objects import Address, Element, Network


class Ends(NamedTuple):
    """The addresses of a tracked connection, packed.  source, destination: of its first packet, as it was sent.
    answers_from, answers_to: of the answers, which tell how it was translated: a destination that was translated is
    `answers_from`, and a source that was is `answers_to`.
    """

    source: bytes
    destination: bytes
    answers_from: bytes
    answers_to: bytes


class Rules:
    """The rules with these members.  An address that is in no set of ours is judged by itself alone: what the node
    sends to a member from an address of its own that is none of the overlay's counts as sent by an outsider, and
    starts over.
    """

    def __init__(self, members: Iterable[Element]) -> None:
        self.clusters: list[Network] = []
        self._node: set[bytes] = set()
        self._network: dict[bytes, str] = {}
        self._edges: set[bytes] = set()
        self._grants: dict[bytes, list[Network]] = {}
        readers: dict[str, Callable[[Element], None]] = {
            "cluster": lambda element: self.clusters.append(ip_network(element.member)),
            "node": lambda element: self._node.add(_packed(element.member)),
            "network": lambda element: self._network.update({_packed(element.member): element.value}),
            "edge": lambda element: self._edges.add(_packed(element.member)),
            "grant": self._read_grant,
        }
        for element in members:
            reader = readers.get(element.set[:-1])
            if element.family == "inet" and reader is not None:
                reader(element)

    def break_off(self, ends: Ends) -> bool:
        """Whether the connection is to be forgotten: the rules do not let it begin, or its source is not translated
        though it leaves the overlay.
        """
        to = ends.answers_from
        if self._inside(ends.source) and not self._inside(to):
            if ends.answers_to == ends.source:
                return True
        elif not self._may_reach(ends.source, to):
            return True
        return ends.source in self._edges and not self._granted(ends.source, to)

    def _may_reach(self, source: bytes, to: bytes) -> bool:
        own, other = self._network.get(source), self._network.get(to)
        if own is not None:
            return own == other or to in self._node or not self._inside(to)
        return other is None or source in self._node

    def _granted(self, source: bytes, to: bytes) -> bool:
        return any(_address(to) in network for network in self._grants.get(source, ()))

    def _inside(self, packed: bytes) -> bool:
        return any(_address(packed) in cluster for cluster in self.clusters)

    def _read_grant(self, element: Element) -> None:
        edge, network = element.member.split(" . ")
        self._grants.setdefault(_packed(edge), []).append(ip_network(network))


def _packed(address: str) -> bytes:
    return ip_address(address).packed


def _address(packed: bytes) -> Address:
    return ip_address(packed)
