"""When a neighbour towards peers is at fault, and how it is told."""

from ipaddress import ip_address

from overlayd.model.next_hops import NextHop, Sent, next_hop_findings

HOP = NextHop("eth0", ip_address("192.0.2.9"), routes=False)
ROUTER = NextHop("eth0", ip_address("192.0.2.1"), routes=True)
MAC = "02:00:00:00:00:99"


def codes(*sent):
    return [(each.code, each.severity) for each in next_hop_findings(sent)]


def test_one_that_answers_is_fine_whatever_waits_beyond():
    assert codes(Sent(HOP, "peer a", True, False), Sent(ROUTER, "the outside", False, False)) == []


def test_a_router_that_does_not_answer_is_an_error_and_a_peer_a_warning():
    silent, router = HOP._replace(entry="silent"), ROUTER._replace(entry="silent")
    sent = [Sent(silent, "peer a", False, True), *(Sent(router, f"peer {each}", False, False) for each in "bcdefg")]
    assert sorted(codes(*sent)) == [("neighbour-silent", "error"), ("neighbour-silent", "warning")]
    assert "peer b, peer c, peer d, peer e and 2 more" in next_hop_findings(sent)[0].symptom


def test_many_are_told_in_one():
    silent = [HOP._replace(entry="silent", address=HOP.address + number) for number in range(9)]
    (found,) = next_hop_findings([Sent(each, "peer", True, False) for each in silent])
    assert found.object == "9 neighbours of eth0 (192.0.2.9, 192.0.2.10, 192.0.2.11, 192.0.2.12, ...)"


def test_a_mac_that_was_told_is_suspected_when_nothing_by_it_answers():
    told = ROUTER._replace(entry="told", mac=MAC)
    waits = Sent(told, "peer a", True, False)
    (found,) = next_hop_findings([waits])
    assert (found.code, found.severity, MAC in found.problem) == ("neighbour-told", "warning", True)
    assert found.remedy == "unless that is the right one: ip neigh del 192.0.2.1 dev eth0"
    assert codes(waits._replace(waits=False)) == []
    assert codes(waits, Sent(told, "peer b", False, True)) == []
    (found,) = next_hop_findings([waits._replace(hop=told._replace(arp=False))])
    assert found.remedy.startswith("ip link set dev eth0 arp on")


def test_this_hosts_own_mac_is_surely_wrong():
    ours = Sent(ROUTER._replace(entry="ours", mac=MAC, arp=False), "peer a", False, True)
    (found,) = next_hop_findings([ours])
    assert (found.code, found.severity, found.remedy) == ("neighbour-told", "error", "ip link set dev eth0 arp on")
    (found,) = next_hop_findings([ours._replace(hop=ours.hop._replace(arp=True))])
    assert found.remedy == "ip neigh del 192.0.2.1 dev eth0"


def test_a_router_beside_others_that_answer_is_a_warning():
    silent = Sent(ROUTER._replace(entry="silent"), "peer a", True, False, others=True)
    (found,) = next_hop_findings([silent])
    assert (found.severity, found.symptom) == (
        "warning",
        "what is sent by it, not by other routers, to peer a is lost",
    )
    (found,) = next_hop_findings([silent, silent._replace(to="peer b", others=False)])
    assert (found.severity, found.symptom) == ("error", "nothing is sent to peer a, peer b")


def test_a_port_of_a_bridge_is_called_that():
    silent = ROUTER._replace(entry="silent", port_of="br0")
    (found,) = next_hop_findings([Sent(silent, "peer a", True, False)])
    assert found.remedy.startswith("eth0 is a port of br0, which takes all answers")
