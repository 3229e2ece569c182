"""What the kernel says of a packet's way: by which link, and why by none."""

from ipaddress import ip_address

import pytest

from overlayd.linux.fib_lookup import ways
from overlayd.model.diversions import HERE, ICMP, ICMPV6, TCP, UDP, Flow, Mark, Question, Way

REMOTE, LOCAL = ip_address("10.2.9.1"), ip_address("10.2.7.2")
OWN = Question(REMOTE, "tunnel")
CARRIED = Question(REMOTE, "tunnel", "inside", LOCAL)


@pytest.fixture
def links(host, shell):
    for name, address in (("tunnel", "10.2.0.1/16"), ("inside", "10.2.7.1/24"), ("lan", "192.0.2.2/24")):
        shell(f"ip link add {name} type veth peer name {name}-far; ip link set {name} up; ip link set {name}-far up")
        shell(f"ip address add {address} dev {name}")
    shell("sysctl -q -w net.ipv4.ip_forward=1; ip link set lo up")


@pytest.mark.parametrize("question", [OWN, CARRIED])
@pytest.mark.parametrize(
    ("damage", "way"),
    [
        ("true", Way("tunnel")),
        ("ip rule add pref 9 lookup 9; ip route add default via 192.0.2.1 table 9", Way("lan")),
        ("ip route add 10.2.9.0/24 dev lan", Way("lan")),
        (
            "ip rule add pref 9 to 10.2.9.0/24 blackhole",
            Way("", "a blackhole, or a filter of reverse paths (rp_filter), drops it"),
        ),
        ("ip route add prohibit 10.2.9.1", Way("", "a rule or route of the type prohibit refuses it")),
        ("ip route add local 10.2.9.1 dev lo", Way(HERE)),
    ],
)
def test_a_way_is_told_whatever_leads_it(links, shell, question, damage, way):
    shell(damage)
    ((asked, found),) = ways([question])
    assert found == way
    assert asked == question


def test_rules_by_the_link_that_it_came_by_and_filters_of_reverse_paths(links, shell):
    shell("ip rule add pref 9 iif inside lookup 9; ip route add default via 192.0.2.1 table 9")
    assert [way.link for _, way in ways([OWN, CARRIED])] == ["tunnel", "lan"]
    shell("ip rule del pref 9; sysctl -q -w net.ipv4.conf.inside.rp_filter=1")
    foreign = CARRIED._replace(source=ip_address("192.0.2.77"))
    ((_, way),) = ways([foreign])
    assert way.link == "" and "a filter of reverse paths (rp_filter)" in way.problem


def test_links_that_are_not_there_are_left_out(links):
    assert ways([OWN._replace(through="none"), CARRIED._replace(incoming="none"), OWN]) == [(OWN, Way("tunnel"))]


def test_ipv6(host, shell):
    shell("ip link add tunnel type veth peer name far; ip link set tunnel up; ip link set far up")
    shell("ip -6 address add fd00::1/48 dev tunnel nodad")
    question = Question(ip_address("fd00::9"), "tunnel")
    assert ways([question]) == [(question, Way("tunnel"))]
    shell("ip -6 route add blackhole fd00::9")
    ((_, way),) = ways([question])
    assert way.link == "" and way.problem
    shell("ip link set lo up")
    own = Question(ip_address("fd00::1"), HERE, "tunnel", ip_address("fd00::7"))
    assert ways([own]) == [(own, Way(HERE))]


@pytest.mark.parametrize("rule", ["ipproto udp dport 51820", "ipproto udp sport 51821"])
def test_rules_for_wireguards_ports(links, shell, rule):
    shell(f"ip rule add pref 9 {rule} blackhole")
    tunnel = Question(ip_address("192.0.2.9"), "", ports=(51821, 51820))
    others = [tunnel._replace(ports=None), tunnel._replace(ports=(1, 2))]
    first, *rest = [way.problem for _, way in ways([tunnel, *others])]
    assert first and rest == ["", ""]


@pytest.mark.parametrize("question", [OWN, CARRIED])
def test_rules_for_protocols_and_marks(links, shell, question):
    shell("ip rule add pref 9 ipproto icmp blackhole; ip rule add pref 10 ipproto tcp dport 80-90 blackhole")
    shell("ip rule add pref 11 fwmark 4/0xc lookup 9; ip route add default via 192.0.2.1 table 9")
    flows = [Flow(ICMP), Flow(TCP, port=80), Flow(TCP), Flow(TCP, 80), Flow(UDP, port=80)]
    assert [bool(way.problem) for _, way in ways(question._replace(flow=each) for each in flows)] == [
        *(True, True),
        *(False, False, False),
    ]
    marked = [question._replace(mark=Mark(each, ("chain",), True)) for each in (4, 0x14, 8, 0)]
    assert [way.link for _, way in ways(marked)] == ["lan", "lan", "tunnel", "tunnel"]


def test_rules_for_protocols_and_marks_of_ipv6(host, shell):
    shell("ip link add tunnel type veth peer name far; ip link set tunnel up; ip link set far up")
    shell("ip -6 address add fd00::1/48 dev tunnel nodad; ip -6 rule add pref 9 ipproto ipv6-icmp prohibit")
    shell("ip -6 rule add pref 10 fwmark 7 blackhole")
    question = Question(ip_address("fd00::9"), "tunnel")
    asked = [question, question._replace(flow=Flow(ICMPV6)), question._replace(mark=Mark(7, ("chain",), True))]
    assert [bool(way.problem) for _, way in ways(asked)] == [False, True, True]
