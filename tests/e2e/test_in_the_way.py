"""What of the host stands in the way of the overlay's packets is named by the doctor and by `why`, as long as it does.

Each case loses traffic of a kind until it is undone: from a container to one of another node ("peer"), to the outside
("outside"), or to its neighbour ("neighbour").
"""

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Pair, besides_version
from lab.patience import until


class Way:
    """Two nodes; what is in the way is put on the first.  names: what the commands of the cases are made of."""

    def __init__(self, lab: Lab, cluster: str) -> None:
        self.pair = Pair(lab, cluster)
        self.node = self.pair.alpha.node
        near = lab.container()
        self.ends = {
            "peer": self.pair.db_address,
            "neighbour": self.pair.alpha.attach(near, "web"),
            "outside": str(lab.outside_address.ip),
        }
        ipv6 = cluster == CLUSTER6
        self.names = {
            "outside": "2000::/3" if ipv6 else "128.0.0.0/1",
            "strange": "2001:db8:77::/48" if ipv6 else "203.0.113.0/24",
            "icmp": "ipv6-icmp" if ipv6 else "icmp",
            "ip": "ip -6" if ipv6 else "ip",
            "family": "ip6" if ipv6 else "ip",
            "bridge": self.pair.bridges[0],
            "device": str(self.pair.alpha.request("status")["interface"]),
            "port": f"veth-{self.pair.web.pid}-s",
            "web": self.pair.web_address,
            "cluster": cluster,
            "here": str(self.node.address),
            "there": str(self.pair.beta.node.address),
        }
        until(lambda: self.reaches("peer"), self.node.log_tail)
        self.do("{ip} route add blackhole default table 77")

    def do(self, command: str) -> None:
        self.node.run(["sh", "-ec", command.format(**self.names)])

    def reaches(self, end: str) -> bool:
        with suppress(AssertionError):
            ping(self.pair.web, self.ends[end], 1, ["-W", "1", "-w", "1"])
            return True
        return False

    def control(self, *argv: str) -> str:
        return self.node.try_overlayctl(*argv)[1]

    def findings(self) -> list[dict[str, str]]:
        return besides_version(json.loads(self.control("doctor", "-o", "json")))

    def why(self, end: str) -> str:
        return self.control("why", self.names["web"], self.ends[end])


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        yield Way(lab, request.param)


def told(way: Way, change: tuple[str, str], lost: str, code: str, words: str) -> None:
    """That something in the way is named, and no longer when it is gone.  change: the commands that put and take it."""
    put, taken = change
    way.do(put)
    try:
        until(lambda: not way.reaches(lost), f"{put} loses nothing")
        found = [each for each in way.findings() if each["code"] == code]
        assert found, way.findings()
        shown = " ".join(f"{each['object']} {each['problem']} {each['remedy']}" for each in found)
        assert words.format(**way.names) in shown
        assert any(each["problem"] in (said := way.why(lost)) for each in found), said
    finally:
        way.do(taken)
    until(lambda: way.reaches(lost), f"{taken} does not help")
    assert way.findings() == []


@pytest.mark.parametrize(
    ("rule", "lost", "words"),
    [
        ("iif {bridge} blackhole", "peer", "what {bridge} brings to"),
        ("iif {device} blackhole", "peer", ""),
        ("from {web} blackhole", "peer", "what {bridge} brings to"),
        ("iif uplink blackhole", "outside", ""),
        ("from {cluster} to {outside} blackhole", "outside", "brings to the outside does not leave"),
        ("ipproto {icmp} blackhole", "peer", "({icmp})"),
        ("ipproto {icmp} prohibit", "peer", "what {device} brings to {web} ({icmp})"),
        ("not ipproto udp lookup 77", "peer", "what {bridge} brings to"),
        ("to {cluster} ipproto {icmp} lookup 77", "peer", "({icmp}) does not go through"),
        ("ipproto {icmp} blackhole", "outside", "({icmp})"),
    ],
)
def test_policy_rules(way: Way, rule: str, lost: str, words: str) -> None:
    told(way, (f"{{ip}} rule add pref 40 {rule}", "{ip} rule del pref 40"), lost, "route-diverted", words)


def test_a_policy_rule_for_wireguards_port(way: Way) -> None:
    if way.names["family"] == "ip":
        pytest.skip("of IPv4 a socket keeps the way that it has found")
    change = "{ip} rule add pref 40 ipproto udp dport 51820 blackhole", "{ip} rule del pref 40"
    told(way, change, "peer", "endpoint-unreachable", "the endpoint {there}")


def test_without_the_rule_for_the_hosts_own_addresses(way: Way) -> None:
    change = "{ip} rule del pref 0", "{ip} rule add pref 0 table local"
    told(way, change, "peer", "route-diverted", "is not taken for the host's own")


@pytest.mark.parametrize(
    ("policy", "lost", "words"),
    [
        ("src {cluster} dst {cluster} dir out action block", "peer", "blocks the overlay's packets"),
        ("src {cluster} dst {cluster} dir fwd action block", "peer", "blocks the overlay's packets"),
        ("src {there} dst {here} proto udp dir in action block", "peer", "blocks WireGuard's packets"),
        ("src {here} dst {there} dir out tmpl proto esp mode transport", "peer", "takes WireGuard's packets"),
        (
            "src {cluster} dst {cluster} dir out tmpl src {here} dst {there} proto esp mode tunnel",
            "peer",
            "takes the overlay's packets",
        ),
    ],
)
def test_ipsec(way: Way, policy: str, lost: str, words: str) -> None:
    told(way, (f"ip xfrm policy add {policy}", "ip xfrm policy flush"), lost, "ipsec-diverted", words)


@pytest.mark.parametrize("direction", ["in", "fwd", "out"])
def test_ipsec_that_blocks_by_default(way: Way, direction: str) -> None:
    put, taken = (f"ip xfrm policy setdefault {direction} {action}" for action in ("block", "accept"))
    told(way, (put, taken), "peer", "ipsec-diverted", taken)


def test_ipsec_for_others_is_nothing_to_us(way: Way) -> None:
    way.do("{ip} xfrm policy add dst {strange} dir out action block; ip xfrm policy add proto tcp sport 22 dir fwd")
    assert way.findings() == []
    way.do("ip xfrm policy flush")


CHAIN = "nft 'add table {0} x; add chain {0} x y {{{{ type {1}; {2} }}}}; add rule {0} x y {3}'; conntrack -F"


def chain(family: str, hook: str, rule: str, policy: str = "") -> tuple[str, str]:
    return CHAIN.format(family, hook, policy, rule), f"nft delete table {family} x; conntrack -F"


@pytest.mark.parametrize(
    ("change", "lost", "code"),
    [
        (chain("inet", "filter hook prerouting priority -300", "notrack"), "outside", "connections-untracked"),
        (chain("inet", "filter hook forward priority 0", "meta mark != 1 drop"), "peer", "forward-blocked"),
        (
            chain("inet", "filter hook postrouting priority 200", "oifname uplink iifname zl-* drop"),
            "outside",
            "forward-blocked",
        ),
        (
            chain(
                "inet",
                "filter hook postrouting priority 200",
                "ct mark 7 drop; add chain inet x z {{ type filter hook prerouting priority -150; }};"
                " add rule inet x z ct mark set 7",
            ),
            "outside",
            "forward-blocked",
        ),
        (
            chain("bridge", "filter hook prerouting priority -400", "ether type {family} drop"),
            "peer",
            "forward-blocked",
        ),
        (
            chain("{family}", "nat hook prerouting priority -101", "{family} daddr {cluster} redirect"),
            "peer",
            "overlay-translated",
        ),
    ],
)
def test_rules_that_drop_nothing_by_themselves(way: Way, change: tuple[str, str], lost: str, code: str) -> None:
    if code == "overlay-translated":
        # The host answers in the peer's place, so nothing is missed.
        way.do(change[0])
        try:
            assert [each["code"] for each in way.findings()] == [code]
        finally:
            way.do(change[1])
        return
    told(way, change, lost, code, "x chain y")


def test_masquerade_of_everything(way: Way) -> None:
    """As of a CNI plugin that takes the cluster's addresses for its own; the advice spares the overlay."""
    put, taken = chain("{family}", "nat hook postrouting priority 99", "{family} saddr {cluster} masquerade")
    way.do(put)
    try:
        (found,) = way.findings()
        assert (found["code"], found["severity"]) == ("overlay-translated", "warning")
        for command in found["remedy"].split("; "):
            way.do(command.replace("{", "{{").replace("}", "}}"))
        assert way.findings() == []
    finally:
        way.do(taken)


PREROUTING, OUTPUT = "filter hook prerouting priority -150", "route hook output priority -150"
MARKS = "{ip} rule add pref 40 fwmark {0} lookup 77; {1}", "{ip} rule del pref 40; {0}"
SETS = "mark 0x7, which table inet x chain y sets"


def marked(hook: str, rule: str, mark: str = "7") -> tuple[str, str]:
    """A chain that marks packets, and a policy rule that leads these into a blackhole."""
    put, taken = chain("inet", hook, rule)
    return MARKS[0].replace("{0}", mark).replace("{1}", put), MARKS[1].replace("{0}", taken)


@pytest.mark.parametrize(
    ("change", "lost", "words"),
    [
        (marked(PREROUTING, "iifname {bridge} meta mark set 7"), "peer", SETS),
        (marked(PREROUTING, "iifname {device} meta l4proto {icmp} meta mark set 7", "7/0xf"), "peer", SETS),
        (marked(PREROUTING, "{family} daddr {cluster} ct state new meta mark set 7"), "peer", SETS),
        (marked(PREROUTING, "meta mark set {family} saddr map {{ {web} : 7 }}"), "peer", SETS),
        (marked(PREROUTING, "ct mark set 3; add rule inet x y meta mark set ct mark | 4"), "peer", SETS),
        (marked(PREROUTING, "ct mark set 7; add rule inet x y meta mark set ct mark"), "outside", SETS),
    ],
)
def test_marks_that_a_policy_rule_is_for(way: Way, change: tuple[str, str], lost: str, words: str) -> None:
    told(way, change, lost, "route-diverted", words)
    assert way.control("doctor") and way.findings() == []


def test_marks_of_connections_lose_all_but_the_first_packet(way: Way) -> None:
    put, taken = marked(PREROUTING, "meta mark set ct mark")
    put = put.replace("; conntrack -F", "") + (
        "; nft 'add chain inet x z {{ type filter hook postrouting priority 0; }};"
        " add rule inet x z oifname {device} ct mark set 7'; conntrack -F; ping -c 1 -W 1 {there} > /dev/null"
    )
    way.do(put)
    try:
        (found, *_) = way.findings()
        assert (found["code"], found["severity"]) == ("route-diverted", "error")
        assert "mark 0x7, which table inet x chain y or table inet x chain z sets" in found["object"]
    finally:
        way.do(taken)
    assert way.findings() == []


@pytest.mark.parametrize(
    "put",
    [
        "nft 'add table inet x; add map inet x m {{ type inet_service : mark; }}; add chain inet x y"
        " {{ type filter hook prerouting priority -150; }}; add rule inet x y meta mark set tcp dport map @m'",
        "nft 'add table inet x; add chain inet x y {{ type filter hook prerouting priority -150; }};"
        " add rule inet x y limit rate 1/hour meta mark set 7'",
    ],
)
def test_marks_that_nobody_can_tell_are_a_hint(way: Way, put: str) -> None:
    way.do("{ip} rule add pref 40 fwmark 7 lookup 77; " + put)
    try:
        found = way.findings()
        assert {(each["code"], each["severity"]) for each in found} == {("route-diverted", "hint")}, found
        assert "rule 40" in found[0]["object"] and "table inet x chain y sets that mark" in found[0]["symptom"]
    finally:
        way.do("nft delete table inet x; {ip} rule del pref 40")
    assert way.findings() == []


@pytest.mark.parametrize(("table", "code"), [("77", "endpoint-unreachable"), ("78", "endpoint-diverted")])
def test_marks_of_what_wireguard_sends(way: Way, table: str, code: str) -> None:
    put, taken = marked(OUTPUT, "udp sport 51820 meta mark set 7")
    put = "{ip} route replace default dev veth-astray table 78; " + put.replace("lookup 77", f"lookup {table}")
    put = "ip link add veth-astray type veth peer name veth-astray2; ip link set veth-astray up; " + put
    told(way, (put, f"{taken}; ip link del veth-astray"), "peer", code, SETS)


def test_rules_and_marks_of_a_healthy_host_are_nothing_to_us(way: Way) -> None:
    """As wg-quick, Tailscale, the VPC CNI of AWS and kube-proxy have them."""
    way.do(
        "{ip} rule add pref 41 not fwmark 51820 table 79; {ip} rule add pref 40 table main suppress_prefixlength 0;"
        " {ip} rule add pref 5210 fwmark 0x80000/0xff0000 lookup main;"
        " {ip} rule add pref 5230 fwmark 0x80000/0xff0000 lookup default;"
        " {ip} rule add pref 5250 fwmark 0x80000/0xff0000 unreachable; {ip} rule add pref 5270 lookup 52;"
        " {ip} rule add pref 1024 fwmark 0x80/0x80 lookup main;"
        " nft 'add table inet x; add chain inet x y {{ type filter hook prerouting priority -150; }};"
        " add rule inet x y meta l4proto udp meta mark set ct mark;"
        " add rule inet x y meta mark set meta mark | 0x4000; add rule inet x y meta mark set meta mark | 0x80;"
        " add chain inet x z {{ type filter hook postrouting priority -150; }};"
        " add rule inet x z meta l4proto udp meta mark 51820 ct mark set meta mark'"
    )
    try:
        assert way.findings() == []
        until(lambda: way.reaches("peer"), way.node.log_tail)
    finally:
        way.do("nft delete table inet x; for pref in 40 41 1024 5210 5230 5250 5270; do {ip} rule del pref $pref; done")
    assert way.findings() == []


def test_a_source_that_peers_do_not_take(way: Way) -> None:
    change = chain("{family}", "nat hook postrouting priority 99", "oifname zl-* snat to {here}")
    told(way, change, "peer", "overlay-translated", "table {family} x chain y")


def test_masquerade_behind_a_match_of_xtables_is_a_hint(way: Way) -> None:
    program = "ip6tables-nft" if way.names["family"] == "ip6" else "iptables-nft"
    way.do(program + " -t nat -A POSTROUTING -m addrtype ! --src-type LOCAL -j MASQUERADE")
    try:
        assert [(each["code"], each["severity"]) for each in way.findings()] == [("overlay-translated", "hint")]
    finally:
        way.do("nft delete table {family} nat; conntrack -F")
    assert way.findings() == []


@pytest.mark.parametrize("hook", ["input", "output"])
def test_arp_that_is_dropped(way: Way, hook: str) -> None:
    if way.names["family"] == "ip6":
        pytest.skip("IPv6 has no ARP")
    put, taken = chain("arp", f"filter hook {hook} priority 0", "counter", "policy drop;")
    told(way, (f"{put}; ip neigh flush all", taken), "peer", "arp-blocked", "table arp x chain y")


TC = "tc qdisc add dev {0} clsact; tc filter add dev {0} {1} protocol all prio 8 {2}", "tc qdisc del dev {0} clsact"
ALL = "u32 match u32 0 0 action mirred egress redirect dev lo"
BLACKHOLE = "tc qdisc add dev {0} root blackhole", "tc qdisc del dev {0} root"


def test_a_queueing_discipline_without_room(way: Way) -> None:
    change = "tc qdisc add dev {device} root pfifo limit 0", "tc qdisc del dev {device} root"
    told(way, change, "peer", "link-filtered", "(pfifo) that has dropped more packets than it let pass")


@pytest.mark.parametrize("link", ["{device}", "{bridge}", "{port}", "uplink"])
def test_a_blackhole(way: Way, link: str) -> None:
    put, taken = (each.replace("{0}", link) for each in BLACKHOLE)
    told(way, (put, taken), "peer", "link-closed", f"link {link} has a queueing discipline")


@pytest.mark.parametrize(("link", "side"), [("{device}", "egress"), ("{bridge}", "egress"), ("{port}", "ingress")])
def test_filters_of_our_links(way: Way, link: str, side: str) -> None:
    put, taken = (each.replace("{0}", link).replace("{1}", side).replace("{2}", ALL) for each in TC)
    told(way, (put, taken), "peer", "link-filtered", f"link {link} has a tc filter that leads packets to lo")


def test_a_filter_of_the_uplink_is_a_hint(way: Way) -> None:
    put, taken = (each.replace("{0}", "uplink").replace("{1}", "ingress").replace("{2}", ALL) for each in TC)
    way.do(put)
    assert [(each["code"], each["severity"]) for each in way.findings()] == [("link-filtered", "hint")]
    way.do(taken)
    assert way.findings() == []


def test_what_shapes_a_container_is_no_filter(way: Way) -> None:
    """As the CNI plugin bandwidth does."""
    redirect = ALL.replace("dev lo", "dev ifb7")
    put = TC[0].replace("{0}", "{port}").replace("{1}", "ingress").replace("{2}", redirect)
    way.do(
        "ip link add ifb7 type ifb; ip link set ifb7 up;"
        " tc qdisc add dev {port} root tbf rate 1gbit burst 1m latency 9ms"
    )
    way.do(put)
    assert way.findings() == []
    until(lambda: way.reaches("peer"), way.node.log_tail)
    way.do("tc qdisc del dev {port} clsact; tc qdisc del dev {port} root; ip link del ifb7")
