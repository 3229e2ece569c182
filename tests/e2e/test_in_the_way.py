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
    told(way, change, lost, code, "table inet x chain y")


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


@pytest.mark.parametrize("hook", ["input", "output"])
def test_arp_that_is_dropped(way: Way, hook: str) -> None:
    if way.names["family"] == "ip6":
        pytest.skip("IPv6 has no ARP")
    put, taken = chain("arp", f"filter hook {hook} priority 0", "counter", "policy drop;")
    told(way, (f"{put}; ip neigh flush all", taken), "peer", "arp-blocked", "table arp x chain y")


TC = "tc qdisc add dev {0} clsact; tc filter add dev {0} {1} protocol all prio 8 {2}", "tc qdisc del dev {0} clsact"
ALL = "u32 match u32 0 0 action mirred egress redirect dev lo"
BLACKHOLE = "tc qdisc add dev {0} root blackhole", "tc qdisc del dev {0} root"


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
    assert way.findings() == [] and way.reaches("peer")
    way.do("tc qdisc del dev {port} clsact; tc qdisc del dev {port} root; ip link del ifb7")
