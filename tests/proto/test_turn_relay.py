"""Our TURN client and our relay back to back: with a perfect network, and with loss, reordering and duplicates."""

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turn_network import CLIENT, CREDENTIAL, EXTERNAL, PEER, PEER_ADDRESS, Network, ids, server

from overlayd.proto import stun
from overlayd.proto.stun import Kind, Message
from overlayd.proto.turn import Allocated, Expired, Failed, Received, Refused, TurnClient
from overlayd.proto.wireguard import Address

HOUR = 3600
EXTERNAL6 = ip_address("2001:db8::1")


def payloads(network: Network) -> list[bytes]:
    return [event.data for event in network.events if isinstance(event, Received)]


def allocated(**faults: float) -> Network:
    network = Network(**faults)  # type: ignore[arg-type]
    network.run(0.5)
    assert network.events == [Allocated((EXTERNAL, network.port), (ip_address(CLIENT[0]), CLIENT[1]))]
    return network


def test_data_goes_both_ways() -> None:
    network = allocated()
    network.client.send(PEER, b"to peer", network.now)
    network.run(0.1)
    assert network.at_peer == [(network.port, PEER_ADDRESS, b"to peer")], "held until the permission was there"
    network.peer_sends(b"to client")
    network.run(0.1)
    assert network.events[1:] == [Received(PEER, b"to client")]


@pytest.mark.parametrize("given", [[EXTERNAL, EXTERNAL6], [EXTERNAL], [EXTERNAL6]], ids=["both", "IPv4", "IPv6"])
def test_an_address_of_each_ip_version_is_asked_for_at_once(given: list[Address]) -> None:
    network = Network()
    network.relay = server(external=given)
    network.client = TurnClient("node-1", CREDENTIAL, ids(), network.now, both=True)
    network.run(0.5)
    (event,) = network.events
    assert isinstance(event, Allocated)
    assert [at[0] for at in (event.relayed, event.also) if at] == given
    for at in filter(None, (event.relayed, event.also)):
        peer = (ip_address("192.0.2.9" if at[0].version == 4 else "2001:db8::9"), 7)
        network.client.send(peer, b"out", network.now)
        network.run(0.1)
        assert network.at_peer.pop() == (at[1], (str(peer[0]), 7), b"out")
    network.run(HOUR)
    assert network.events == [event] and len(network.relay.sessions) == 1, "refreshed together"
    network.client.release(network.now)
    network.run(1)
    assert not network.relay.by_port


def test_a_channel_costs_four_bytes() -> None:
    network = allocated()
    network.client.send(PEER, b"first", network.now)
    network.run(0.1)
    network.client.send(PEER, b"second", network.now)
    assert network.client.datagrams_to_send(network.now) == [b"\x40\x00\x00\x06second"]
    [session] = network.relay.sessions.values()
    assert network.relay.peer_datagram(session, PEER_ADDRESS, b"back", network.now) == b"\x40\x00\x00\x04back"


def test_a_peer_that_was_only_permitted_is_heard() -> None:
    """By a Data indication: there is no channel before we send."""
    network = allocated()
    network.peer_sends(b"too early")
    network.client.permit(PEER, network.now)
    network.run(0.1)
    network.peer_sends(b"heard")
    network.peer_sends(b"another port of the address", ("192.0.2.9", 7))
    network.peer_sends(b"another address", ("192.0.2.10", 51820))
    network.run(0.1)
    assert network.events[1:] == [
        Received(PEER, b"heard"),
        Received((PEER[0], 7), b"another port of the address"),
    ]
    network.client.send(PEER, b"by Send indication, then by channel", network.now)
    network.run(0.1)
    network.client.send(PEER, b"channel", network.now)
    network.run(0.1)
    assert [data for _, _, data in network.at_peer] == [b"by Send indication, then by channel", b"channel"]


@pytest.mark.parametrize("used", [True, False], ids=["channel", "permission"])
def test_an_allocation_and_its_peers_stay_for_hours(used: bool) -> None:
    network = allocated()
    port = network.port
    if used:
        network.client.send(PEER, b"hello", network.now)
    else:
        network.client.permit(PEER, network.now)
    for minute in range(5 * 60):
        network.run(60)
        network.peer_sends(str(minute).encode())
    network.run(1)
    assert payloads(network) == [str(minute).encode() for minute in range(5 * 60)]
    assert network.port == port
    assert not [event for event in network.events if isinstance(event, Expired | Refused | Failed)]


def test_what_a_client_that_died_had_ends() -> None:
    network = allocated()
    network.client.send(PEER, b"hello", network.now)
    network.run(0.5)
    [session] = network.relay.sessions.values()
    relay, start = network.relay, network.now

    def heard(after: float) -> bool:
        return relay.peer_datagram(session, PEER_ADDRESS, b"?", start + after) is not None

    def relayed(after: float) -> bool:
        return relay.client_datagram(CLIENT, b"\x40\x00\x00\x01!", start + after) is not None

    assert heard(299)
    assert not heard(300)
    assert relayed(599)
    assert not relayed(600)
    relay.expire(start + 598)
    assert relay.sessions
    relay.expire(start + 600)
    assert not relay.sessions
    assert not relay.by_port


def test_release_gives_the_port_back() -> None:
    network = allocated()
    network.client.send(PEER, b"hello", network.now)
    network.client.release(network.now)
    network.run(0.1)
    assert not network.relay.sessions
    assert network.client.next_timeout() is None
    assert network.client.datagrams_to_send(network.now + HOUR) == []
    network.client.send(PEER, b"too late", network.now)
    network.client.permit(PEER, network.now)
    network.client.release(network.now)
    assert network.client.datagrams_to_send(network.now) == []


def test_a_relay_that_was_restarted_ends_the_allocation_and_says_so() -> None:
    network = allocated()
    network.relay.close()
    network.relay._nonce_key = b"another" * 4
    network.run(HOUR)
    [_, expired] = network.events
    assert isinstance(expired, Expired)
    assert expired.failure.code == 437
    assert network.client.relayed is None
    assert network.client.next_timeout() is None


def test_a_relay_that_vanished_ends_the_allocation_before_its_time_is_over() -> None:
    network = allocated()
    network._loss = 1.0
    start = network.now
    while len(network.events) == 1:
        network.run(1)
    assert network.events[1] == Expired(network.events[1].failure)  # type: ignore[union-attr]
    assert "no answer" in str(network.events[1].failure)  # type: ignore[union-attr]
    assert network.now - start < 600


def test_a_client_that_starts_again_on_the_same_port_gets_another_allocation() -> None:
    network = allocated()
    old = network.port
    network.client = TurnClient("node-1", CREDENTIAL, ids(1000), network.now)
    network.run(1)
    assert isinstance(network.events[-1], Allocated)
    assert network.port != old


def test_a_forgotten_peer_is_not_heard_and_can_be_used_again() -> None:
    network = allocated()
    network.client.send(PEER, b"one", network.now)
    network.run(0.1)
    network.client.forget(PEER)
    network.peer_sends(b"nobody listens")
    network.run(400)
    network.peer_sends(b"nobody is let through")
    network.client.send(PEER, b"two", network.now)
    network.run(0.1)
    network.peer_sends(b"heard")
    network.run(0.1)
    assert payloads(network) == [b"heard"]
    assert [data for _, _, data in network.at_peer] == [b"one", b"two"]


def test_two_clients_of_one_relay_reach_each_other() -> None:
    """The peer is the relay's own address: only ports that it relays are meant by that."""
    network = allocated()
    mine = network.port
    peer = (EXTERNAL, 49999)
    network.client.send(peer, b"nobody has that port", network.now)
    network.run(100)
    assert not network.at_peer
    other = Network()
    other.relay = network.relay
    other.now = network.now
    other.client = TurnClient("node-2", CREDENTIAL, ids(1000), network.now)
    # The second client comes from another port of the same NAT.
    relay = network.relay.client_datagram
    network.relay.client_datagram = lambda client, datagram, now: relay(  # type: ignore[method-assign]
        ("198.51.100.7", 40001), datagram, now
    )
    other.run(0.5)
    theirs = next(port for port in network.relay.by_port if port != mine)
    network.relay.client_datagram = relay  # type: ignore[method-assign]
    network.client.send((EXTERNAL, theirs), b"hello", network.now)
    network.run(0.1)
    assert network.at_peer == [(mine, (str(EXTERNAL), theirs), b"hello")]
    network.relay._end(network.relay.by_port[theirs])
    network.client.send((EXTERNAL, theirs), b"to whoever has the port now", network.now)
    network.run(0.1)
    assert len(network.at_peer) == 1


# --- faults ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.05, 2.0]),
)
def test_no_fault_of_the_network_confuses_them(seed: int, loss: float, duplicates: float, delay: float) -> None:
    """Whatever is lost, doubled or late: what arrives is what was sent, and both sides end in a state they know."""
    network = Network(seed, loss=loss, duplicates=duplicates, delay=delay)
    sent, answered = set(), set()
    for step in range(40):
        network.run(20)
        data = f"out {step}".encode()
        if network.client.relayed is not None:
            network.client.send(PEER, data, network.now)
            sent.add(data)
        if network.relay.by_port:
            answer = f"in {step}".encode()
            network.peer_sends(answer, port=max(network.relay.by_port))
            answered.add(answer)
    network.run(10)
    assert {data for _, peer, data in network.at_peer} <= sent
    assert {peer for _, peer, _ in network.at_peer} <= {PEER_ADDRESS}
    assert set(payloads(network)) <= answered
    assert len(network.relay.sessions) <= 1
    ends = [event for event in network.events if isinstance(event, Failed | Expired)]
    assert len(ends) <= 1
    assert (network.client.relayed is None) == bool(ends or not network.events)
    if not loss:
        assert not ends
        assert {data for _, _, data in network.at_peer} == sent
        assert set(payloads(network)) >= {f"in {step}".encode() for step in range(2, 40)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=20), st.booleans())
def test_noise_changes_nothing(noise: list[bytes], shaped: bool) -> None:
    network = allocated()
    network.client.send(PEER, b"hello", network.now)
    network.run(0.1)
    for data in noise:
        datagram = stun.encode(Message(stun.REFRESH, Kind.ERROR, data[:12].ljust(12))) if shaped else data
        network.client.datagram_received(datagram, network.now)
        network.relay.client_datagram(CLIENT, datagram, network.now)
        network.relay.client_datagram(("192.0.2.1", 1), datagram, network.now)
    network.events.clear()
    network.peer_sends(b"still there")
    network.run(0.1)
    assert Received(PEER, b"still there") in network.events
    assert not [event for event in network.events if not isinstance(event, Received)]
