"""Which packets the kernel is asked about, and what is said of those that go another way than through the overlay."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from decisions import CLUSTER, FACTS, KEYS, attach, ready, serve
from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.diversions import (
    FLOWS,
    HERE,
    ICMP,
    ICMPV6,
    PROTOCOLS,
    SAMPLE,
    TCP,
    UDP,
    Flow,
    Mark,
    Question,
    Rule,
    Way,
    WayOut,
    diversions,
    no_way_out,
    questions,
    samples,
)
from overlayd.model.rows import Overlay, Peer, Service

REMOTE, LOCAL = ip_address("10.200.9.1"), ip_address("10.200.40.66")
OWN = Question(REMOTE, "zl-d-1-g")
CARRIED = Question(REMOTE, "zl-d-1-g", "zl-d-1-web-b", LOCAL)


def told(*ways, known=()):
    return diversions(ways, CLUSTER, [ip_network(each) for each in known])


def test_a_node_alone_asks_nothing():
    assert questions(ready(), FACTS) == []


def test_the_ways_to_peers_of_the_host_and_of_containers_and_the_ways_to_containers():
    state = ready()
    serve(state, "web")
    peer = Peer(public_key=KEYS[0], endpoint="192.0.2.9:51820", listed=(ip_network("10.200.9.0/28"),))
    state.apply({peer.id: peer})
    container = attach(state, 71, "web", join_global=True)
    device, bridge = state.get(Overlay).interface, state.get(Service, "web").bridge
    asked = questions(state, FACTS)
    assert asked == [
        Question(ip_address("192.0.2.9"), "", ports=(51820, 51820)),
        Question(ip_address("10.200.9.1"), device),
        Question(ip_address("10.200.9.1"), device, bridge, container.address),
        Question(container.address, bridge, device, ip_address("10.200.9.1")),
        Question(state.node_address, HERE, device, ip_address("10.200.9.1")),
        Question(container.address, bridge),
        Question(container.global_address, "veth-71-g"),
    ]
    assert questions(state, replace(FACTS, devices=False)) == asked[5:], "without WireGuard there are no peers"
    outside, uplink = ip_address("192.0.2.1"), WayOut("eth0", ip_address("198.51.100.7"))
    assert [each for each in questions(state, FACTS, out=uplink) if each not in asked] == [
        Question(uplink.address, HERE, "eth0", ip_address("192.0.2.9"), (51820, 51820)),
        Question(outside, "", bridge, container.address),
        Question(container.address, bridge, "eth0", outside),
    ]
    by_ipv6 = WayOut("eth0", ip_address("2001:db8::7"))
    assert questions(state, FACTS, out=by_ipv6) == asked, "nothing of IPv4 leaves there"


def test_of_many_a_few_are_asked_about_and_none_that_is_this_nodes_own():
    state = ready()
    own = serve(state, "web").subnet
    for number in range(3 * SAMPLE):
        networks = (ip_network(f"10.200.{100 + number}.0/24"), own)
        peer = Peer(public_key=bytes([number]) * 32, listed=networks)
        state.apply({peer.id: peer})
    asked = questions(state, FACTS)
    assert len(asked) == SAMPLE + 1
    assert not any(each.destination in own for each in asked)


def test_rules_for_some_addresses_are_asked_about_by_one_of_these():
    state = ready()
    serve(state, "web")
    containers = [attach(state, 100 + number, "web") for number in range(SAMPLE + 2)]
    for number in range(SAMPLE + 2):
        peer = Peer(public_key=bytes([number]) * 32, listed=(ip_network(f"10.200.{100 + number}.0/24"),))
        state.apply({peer.id: peer})
    device, bridge = state.get(Overlay).interface, state.get(Service, "web").bridge
    last, far = containers[-1].address, ip_address(f"10.200.{100 + SAMPLE + 1}.7")
    before = questions(state, FACTS)

    def added(destination=None, source=None):
        networks = (ip_network(each) if each is not None else None for each in (destination, source))
        return [each for each in questions(state, FACTS, [Rule(*networks)]) if each not in before]

    assert added(far) == [Question(far, device), Question(far, device, bridge, containers[0].address)]
    assert added(source=last) == [Question(ip_address("10.200.100.1"), device, bridge, last)]
    assert added(far, last) == [Question(far, device, bridge, last)]
    assert added(last) == [Question(last, bridge)]
    assert added("10.200.117.0/24") == [
        Question(ip_address("10.200.117.1"), device),
        Question(ip_address("10.200.117.1"), device, bridge, containers[0].address),
    ]
    assert added("198.51.100.0/24", "203.0.113.0/24") == [], "what is none of the overlay's"
    assert added() == []


def test_what_goes_as_it_should_is_no_finding():
    assert told((OWN, Way("zl-d-1-g")), (CARRIED, Way("zl-d-1-g"))) == []


def test_it_says_who_where_and_what_to_do():
    (found,) = told((OWN, Way("eth0")))
    assert (found.code, found.severity) == ("route-diverted", "error")
    assert found.object == "what this host sends to 10.200.9.1"
    assert found.problem == "does not go through zl-d-1-g: it goes through eth0"
    assert found.symptom == "it leaves outside of the overlay"
    assert found.remedy.endswith("ip rule add pref 1 to 10.200.0.0/16 lookup main")
    (found,) = told((CARRIED, Way("", "Network is unreachable")))
    assert found.object == "what zl-d-1-web-b brings to 10.200.9.1"
    assert found.problem == "does not go through zl-d-1-g: Network is unreachable"
    assert found.symptom == "it is lost"


def test_one_finding_for_each_way_that_packets_of_a_kind_go():
    others = [OWN._replace(destination=REMOTE + number, through=f"zl-d-{number}-b") for number in range(1, 9)]
    assert len(told((OWN, Way("eth0")), *((each, Way("eth0")) for each in others), (CARRIED, Way("eth0")))) == 2
    assert len(told((OWN, Way("eth0")), (others[0], Way("eth1")), (others[1], Way("", "Network is down")))) == 3


def test_of_an_overlap_that_is_told_already_nothing_is_said_again():
    assert told((OWN, Way("lan")), known=["10.200.9.0/24"]) == []
    assert len(told((OWN, Way("lan")), known=["10.200.8.0/24", "10.0.0.0/8", "0.0.0.0/0"])) == 1


def test_a_network_outside_of_the_cluster_is_named_by_itself_and_ipv6_has_its_own_command():
    beyond = ip_address("192.168.7.1")
    (found,) = told((Question(beyond, "zl-d-1-g"), Way(HERE)))
    assert found.problem.endswith("it is taken for the host's own")
    assert found.remedy.endswith("ip rule add pref 1 to 192.168.7.1 lookup main")
    (found,) = diversions([(Question(ip_address("fd00::9"), "d"), Way("eth0"))], ip_network("fd00::/48"), [])
    assert found.remedy.endswith("ip -6 rule add pref 1 to fd00::/48 lookup main")


OUTSIDE = ip_address("192.0.2.1")
LEAVING, ANSWER = Question(OUTSIDE, "", "zl-d-1-web-b", LOCAL), Question(LOCAL, "zl-d-1-web-b", "eth0", OUTSIDE)


def test_containers_that_do_not_get_out_or_get_no_answer():
    assert told((LEAVING, Way("eth0")), (ANSWER, Way("zl-d-1-web-b"))) == []
    found, answer = told((LEAVING, Way("eth0")), (ANSWER, Way("", "gone")), (LEAVING, Way("", "no route")))[::-1]
    assert found.line.startswith("what zl-d-1-web-b brings to the outside does not leave: no route; it is lost;")
    assert found.remedy.endswith("ip rule add pref 1 from 10.200.0.0/16 lookup main")
    assert answer.line.startswith("what eth0 brings to 10.200.40.66 does not go through zl-d-1-web-b: gone; it is lost")
    assert told((LEAVING, Way("wg0")), (ANSWER, Way("", "filtered"))) == [], "a VPN of somebody else leads out"


def test_what_is_for_this_host_and_is_not_taken():
    tunnel = Question(ip_address("198.51.100.7"), HERE, "eth0", ip_address("192.0.2.9"), (51820, 51820))
    assert told((tunnel, Way(HERE))) == []
    (found,) = told((tunnel, Way("", "Network is unreachable")))
    assert found.problem == "is not taken for the host's own: Network is unreachable"
    assert found.remedy.endswith("have it spare the overlay: ip rule add pref 0 lookup local")


def test_endpoints_that_nothing_leads_to_are_told_together():
    endpoints = [Question(ip_address(f"192.0.2.{number}"), "") for number in range(1, 5)]
    ways = [Way("eth0"), Way(""), Way("", "Network is unreachable"), Way("", "Network is unreachable")]
    (found,) = told(*zip(endpoints, ways, strict=True))
    assert (found.code, found.severity) == ("endpoint-unreachable", "error")
    assert found.line.startswith(
        "the endpoint 192.0.2.3 and 1 more of peers cannot be sent to: Network is unreachable;"
    )
    (found,) = told((endpoints[0], Way("", "No route to host")))
    assert found.object == "the endpoint 192.0.2.1 of a peer"


def test_a_host_that_lost_its_way_out_is_worse_off_than_one_that_never_had_any():
    assert no_way_out(lost=True).severity == "warning"
    assert no_way_out(lost=False).severity == "hint"


def peered():
    """A node with a container, and a peer that has an endpoint."""
    state = ready()
    serve(state, "web")
    peer = Peer(public_key=KEYS[0], endpoint="192.0.2.9:51820", listed=(ip_network("10.200.9.0/28"),))
    state.apply({peer.id: peer})
    attach(state, 71, "web")
    return state


@given(
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([0, ICMP, TCP, UDP, ICMPV6, 132]),
    source_ports=st.sampled_from([None, (7, 7), (7, 9)]),
    ports=st.sampled_from([None, (53, 53), (1, 65535)]),
    inverted=st.booleans(),
)
def test_the_packets_of_a_rule_by_protocol_and_ports_are_those_that_it_is_for(
    version, protocol, source_ports, ports, inverted
):
    rule = Rule(None, None, None, protocol, source_ports, ports, inverted, version)

    def meant(flow):
        """As fib_rule_match() has it: packets without ports have 0."""
        fits = protocol in (0, flow.protocol)
        for wanted, port in ((source_ports, flow.source_port), (ports, flow.port)):
            fits = fits and (wanted is None or wanted[0] <= port <= wanted[1])
        return fits != inverted

    assert all(meant(flow) for flow in rule.flows)
    known = {flow.protocol for flow in rule.flows}
    assert known <= set(PROTOCOLS[version])
    if protocol or source_ports or ports:
        every = (Flow(each, *ends) for each in PROTOCOLS[version] for ends in ((0, 0), (7, 53)))
        by_port = (source_ports or ports) and not inverted
        assert {each.protocol for each in every if meant(each)} - known <= ({ICMP, ICMPV6} if by_port else set())
    else:
        assert rule.flows == []


def test_rules_for_protocols_and_ports_are_asked_about_once_for_each_way():
    state, uplink = peered(), WayOut("eth0", ip_address("198.51.100.7"))
    before = questions(state, FACTS, out=uplink)

    def added(*rules):
        return [each for each in questions(state, FACTS, rules, uplink) if each not in before]

    twin = Question(ip_address("192.0.2.9"), "", flow=Flow(TCP))
    inside = [each for each in samples(before) if each.ports is None and not each.is_of_the_outside]
    outside = [each for each in before if each.is_of_the_outside]
    icmp = added(Rule(protocol=ICMP), Rule(protocol=ICMP))
    assert set(icmp) == {twin, *(each._replace(flow=Flow(ICMP)) for each in (*inside, *outside))}
    web = added(Rule(protocol=TCP, ports=(80, 90)))
    other = twin._replace(flow=Flow(ICMP))
    assert set(web) == {other, *(each._replace(flow=Flow(TCP, 0, 80)) for each in inside)}, "the outside is the host's"
    assert added(Rule(protocol=UDP, ports=(51820, 51820))) == [twin], "WireGuard's own is asked about as it is"
    assert added(Rule(mark=(7, 7))) == [twin]
    assert added(Rule(mark=(7, 7), inverted=True)) == []
    assert added(Rule(protocol=ICMPV6, version=6)) == [twin], "the overlay is of IPv4, WireGuard's may be of both"
    many = added(*(Rule(protocol=TCP, ports=(port, port)) for port in range(1, 2 * FLOWS)))
    assert len({each.flow for each in many}) == FLOWS + 1


def test_a_protocol_is_named_and_shown():
    (found,) = told((CARRIED, Way("zl-d-1-g")), (CARRIED._replace(flow=Flow(TCP, 0, 80)), Way("", "dropped")))
    assert found.object == "what zl-d-1-web-b brings to 10.200.9.1 (tcp dport 80)"
    assert "ip route get 10.200.9.1 ipproto tcp dport 80)" in found.remedy
    both = [(CARRIED._replace(flow=Flow(each)), Way("", "dropped")) for each in (TCP, UDP)]
    assert len(told(*both)) == 2
    assert len(told((CARRIED, Way("", "dropped")), *both)) == 1, "all packets, and so those"


CHAINS = ("table ip x chain y", "table ip x chain z")
SURE, PERHAPS = Mark(7, CHAINS, certain=True), Mark(7, CHAINS, certain=False, rule=40)


def test_marks_that_packets_surely_carry_and_those_that_they_may():
    (found,) = told((CARRIED._replace(mark=SURE), Way("eth1")))
    assert (found.code, found.severity) == ("route-diverted", "error")
    assert "(mark 0x7, which table ip x chain y or table ip x chain z sets)" in found.object
    assert "ip route get 10.200.9.1 mark 0x7)" in found.remedy
    perhaps = [(each._replace(mark=PERHAPS), Way("", "dropped")) for each in (OWN, CARRIED)]
    (found,) = told(*perhaps)
    assert (found.code, found.severity) == ("route-diverted", "hint")
    assert found.line.startswith("ip rule 40 is for packets of mark 0x7, which are lost: dropped;")
    assert found.symptom.startswith("if table ip x chain y or table ip x chain z sets that mark on the overlay's")
    assert found.remedy.endswith("ip rule add pref 1 to 10.200.0.0/16 lookup main")
    assert told((CARRIED._replace(mark=PERHAPS), Way("zl-d-1-g"))) == []


WIREGUARD = Question(ip_address("192.0.2.9"), "", ports=(51820, 51821))
TWIN = WIREGUARD._replace(ports=None, flow=Flow(TCP))


def test_what_wireguard_sends_goes_as_all_else_to_there():
    assert told((WIREGUARD, Way("eth0")), (TWIN, Way("eth0"))) == []
    assert told((WIREGUARD, Way("eth0"))) == [], "with nothing to compare"
    assert told((WIREGUARD, Way("eth0")), (TWIN, Way("", "dropped"))) == [], "which is none of ours"
    astray = [(WIREGUARD._replace(mark=SURE), Way("astray")), (TWIN, Way("eth0"))]
    (found,) = diversions(astray, CLUSTER, [])
    assert (found.code, found.severity) == ("endpoint-diverted", "error")
    assert found.object.startswith("what WireGuard sends to 192.0.2.9 (mark 0x7, which")
    assert found.problem == "goes through astray, and all else to there through eth0"
    assert "ip route get 192.0.2.9 ipproto udp sport 51820 dport 51821 mark 0x7)" in found.remedy
    assert found.remedy.endswith("have it spare WireGuard's UDP port 51820")
    (found,) = diversions(astray, CLUSTER, [], uplinks={"eth0", "astray"})
    assert found.severity == "warning", "it may be meant so"
    lost = (WIREGUARD._replace(mark=SURE), Way("", "dropped")), (WIREGUARD, Way("eth0")), (TWIN, Way("eth0"))
    (found,) = told(*lost)
    assert (found.code, found.severity) == ("endpoint-unreachable", "error")
    assert "mark 0x7, which table ip x chain y" in found.problem
    (found,) = told((WIREGUARD._replace(mark=PERHAPS), Way("astray")), (TWIN, Way("eth0")))
    assert found.severity == "hint" and "leave WireGuard's packets unmarked" in found.remedy
