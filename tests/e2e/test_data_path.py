"""Containers on two nodes talk through the tunnel, and only through the tunnel."""

import json
import threading

from lab import ping, run, transfer
from lab.cluster import PORT, Pair
from lab.lab import OUTSIDE
from lab.patience import LIMIT
from lab.traffic import MARKER

LARGEST_OVERHEAD = 80  # outer IPv6 40, UDP 8, WireGuard 32: the most that the device's MTU may stay below the path's


def test_containers_reach_each_other(pair: Pair) -> None:
    ping(pair.web, pair.db_address, count=20)
    ping(pair.db, pair.web_address, count=20)


def test_nodes_reach_each_other_and_the_other_sides_container(pair: Pair) -> None:
    ping(pair.alpha.node, "10.200.2.1")
    ping(pair.beta.node, "10.200.1.1")
    ping(pair.alpha.node, pair.db_address)


def test_a_transfer_is_intact_encrypted_and_within_the_path_mtu(pair: Pair) -> None:
    underlay, inside = pair.lab.capture(pair.alpha.node), pair.lab.capture(pair.db, "eth0")
    with underlay:
        with inside:
            transfer(pair.web, pair.db, pair.db_address, megabytes=1)
        transfer(pair.web, pair.db, pair.db_address, megabytes=100)
        transfer(pair.db, pair.web, pair.web_address, megabytes=1)
    packets = underlay.packets()
    assert [packet for packet in packets if not packet.is_wireguard(PORT)] == []
    assert {packet.source for packet in packets} == {pair.alpha.node.address, pair.beta.node.address}
    largest = max(packet.size for packet in packets)
    assert pair.lab.mtu - LARGEST_OVERHEAD < largest <= pair.lab.mtu
    assert inside.holds(MARKER), "control: the marker is visible where it may be"
    assert not underlay.holds(MARKER)


def test_the_largest_packet_a_container_may_send_arrives_whole(pair: Pair) -> None:
    mtu = json.loads(pair.web.run(["ip", "-j", "link", "show", "eth0"]))[0]["mtu"]
    assert pair.lab.mtu - LARGEST_OVERHEAD <= mtu < pair.lab.mtu
    underlay = pair.lab.capture(pair.alpha.node)
    with underlay:
        ping(pair.web, pair.db_address, count=3, options=["-M", "do", "-s", str(mtu - 28)])
    packets = underlay.packets()
    assert [packet for packet in packets if not packet.is_wireguard(PORT)] == [], "fragments, perhaps"
    assert mtu < max(packet.size for packet in packets) <= pair.lab.mtu


def test_a_container_reaches_the_outside_as_its_node(pair: Pair) -> None:
    ping(pair.web, str(OUTSIDE.ip))
    with pair.lab.open_outside() as listener, pair.web.open_socket() as sender:
        listener.bind((str(OUTSIDE.ip), 0))
        listener.listen(1)
        listener.settimeout(LIMIT)
        sender.settimeout(LIMIT)
        connecting = threading.Thread(target=sender.connect, args=(listener.getsockname(),))
        connecting.start()
        receiver, client = listener.accept()
        receiver.close()
        connecting.join()
    assert client[0] == str(pair.alpha.node.address)


def test_traffic_inside_the_cluster_keeps_the_containers_address(pair: Pair) -> None:
    assert transfer(pair.web, pair.db, pair.db_address, megabytes=1).client == pair.web_address


def test_wg_show_reads_the_device(pair: Pair) -> None:
    status = pair.alpha.request("status")
    interface = status["interface"]
    shown = pair.alpha.node.run(["wg", "show", interface])
    assert f"public key: {pair.alpha.public_key}" in shown
    assert f"listening port: {PORT}" in shown
    assert f"peer: {pair.beta.public_key}" in shown
    assert f"endpoint: {pair.beta.node.address}:{PORT}" in shown
    handshake = int(pair.alpha.node.run(["wg", "show", interface, "latest-handshakes"]).split()[1])
    assert handshake == status["peers"][0]["last_handshake_unix_secs"] > 0


def test_no_link_of_ours_is_in_the_hosts_own_namespace(pair: Pair) -> None:
    assert "zl-" not in run(["ip", "-br", "link"])
    assert set(pair.bridges) <= set(
        (pair.alpha.node.run(["ip", "-br", "link"]) + pair.beta.node.run(["ip", "-br", "link"])).split()
    )
