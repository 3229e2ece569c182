"""A status that is put together from the last one is what it would be from nothing."""

from ipaddress import ip_address, ip_network
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from overlayd.daemon.status import StatusView
from overlayd.linux.wireguard import Activity
from overlayd.model.layout import Facts
from overlayd.model.rows import Node, Overlay, Peer
from overlayd.model.state import State

KEYS = [bytes([number]) * 32 for number in range(1, 4)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "seen", "unseen"]), st.sampled_from(KEYS), st.integers(0, 2))
)


@given(STEPS)
def test_as_from_nothing(steps) -> None:
    overlay = Overlay(
        deployment="d", instance_id="1", interface="zl-d-1-g", cluster=ip_network("10.0.0.0/8"), wg_port=1
    )
    state = State([Node(private_key=b"k" * 32), overlay])
    seen: dict[bytes, Activity] = {}
    health = SimpleNamespace(generation=0, activity=lambda _scope, key: seen.get(key))
    node = SimpleNamespace(state=state, facts=Facts(mtu=1420))
    view = StatusView(node, health)
    for kind, key, number in steps:
        row = Peer(public_key=key, endpoint=f"192.0.2.1:{number + 1}", listed=(ip_network(f"10.0.{number}.0/24"),))
        match kind:
            case "put":
                state.apply({row.id: row})
            case "drop":
                state.apply({row.id: None})
            case "seen":
                seen[key] = Activity((ip_address("192.0.2.9"), 9 + number % 2), number, rx_bytes=0, tx_bytes=0)
            case "unseen":
                seen.pop(key, None)
        health.generation += 1
        assert view.encoded() == StatusView(node, health).encoded()
