"""Where nodes are known to be, against a list of all peers."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from overlayd.daemon.nat.known_nodes import KnownNodes
from overlayd.model.rows import Peer

ADDRESSES = [ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "fd00::1")]
ENDPOINTS = ["", "a.example:1", "10.0.0.1:1", "10.0.0.2:2", "[fd00:0::1]:3"]
CHANGES = st.lists(
    st.tuples(
        st.binary(min_size=32, max_size=32).map(lambda key: key[:1] * 32),
        st.sampled_from(["", "service"]),
        st.none() | st.tuples(st.sampled_from(ENDPOINTS), st.lists(st.sampled_from(ENDPOINTS[2:]), max_size=2)),
        st.booleans(),
    )
)


@given(CHANGES)
def test_as_from_nothing(changes) -> None:
    table: dict[tuple[str, str], Peer] = {}
    subject = KnownNodes(table.values)
    for key, scope, given_, asks in changes:
        endpoint, candidates = given_ or ("", [])
        peer = Peer(
            scope=scope, public_key=key, endpoint=endpoint, candidates=tuple(("host", at, 1) for at in candidates)
        )
        if given_ is None:
            table.pop(peer.id, None)
        else:
            table[peer.id] = peer
        subject.follow({peer.id: table.get(peer.id), ("attachment", "x"): None})
        if asks:
            assert [address in subject for address in ADDRESSES] == [
                any(_is_at(peer, address) for peer in table.values()) for address in ADDRESSES
            ]


def _is_at(peer: Peer, address) -> bool:
    texts = [peer.endpoint, *(text for _, text, _ in peer.candidates)]
    hosts = [text.rpartition(":")[0].strip("[]") for text in texts if text and "example" not in text]
    return not peer.scope and address in map(ip_address, hosts)
