"""What is said of other people's chains, as nft and both kinds of iptables list them; and the advice, taken."""

import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest
from throwaway import Namespace

from overlayd.linux import iptables, packet_queues
from overlayd.linux.nft import Nft
from overlayd.model.blockers import Traffic, blockers, unseen
from overlayd.model.findings import Finding
from overlayd.model.firewall import Link
from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH
from overlayd.model.queues import resolved

DEVICE, BRIDGE, OTHER = (
    Link("zl-a-g", GROUP_DEVICE),
    Link("zl-a-web-b", GROUP_BRIDGE),
    Link("zl-a-db-b", GROUP_BRIDGE),
)
TRAFFIC = Traffic(
    cluster=ip_network("10.200.0.0/16"),
    links=(BRIDGE, OTHER, DEVICE),
    way_out="eth0",
    underlay=frozenset({4}),
    wireguard=(51820,),
    dns=53,
)
Look = Callable[..., list[Finding]]


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def look(space: Namespace) -> Iterator[Look]:
    with space.entered():
        nft = Nft()

    def look(traffic: Traffic = TRAFFIC) -> list[Finding]:
        with space.entered():
            shown = (iptables.ruleset(family, tables) for family, tables in iptables.tables().items())
            rulesets = [nft.chains(), *(found for found in shown if found is not None)]
            read = packet_queues.being_read()
        return blockers([resolved(each, read) for each in rulesets], traffic)

    yield look
    nft.close()


def run(space: Namespace, script: str) -> None:
    with space.entered():
        subprocess.run(["sh", "-ec", script], check=True)


def take(space: Namespace, finding: Finding) -> None:
    """Do what the remedy says, as an operator would who pastes it into a shell."""
    run(space, finding.remedy.partition(" (or")[0])


needs_iptables = pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="iptables is not installed")


def test_a_clean_host_and_harmless_rules(look: Look, space: Namespace) -> None:
    assert look() == []
    space.nft(
        """
        table inet other {
            chain f { type filter hook forward priority 0; policy accept; iifname "x" drop; ip daddr 192.0.2.1 drop; }
            chain i { type filter hook input priority 0; policy accept; ip saddr 192.0.2.1 drop; tcp dport 22 drop; }
            chain o { type filter hook output priority 0; policy accept; tcp dport 25 drop; }
            chain p { type filter hook prerouting priority -300; ip daddr 192.0.2.1 iifname != "x" drop; }
            chain n { type nat hook prerouting priority -100; policy accept; ip daddr 192.0.2.1 dnat ip to 10.9.9.9; }
        }
        """
    )
    assert look() == []


def test_what_drops_some_packets_and_nobody_knows_which_is_a_hint(look: Look, space: Namespace) -> None:
    space.nft(
        """
        table inet other {
            set some { type ipv4_addr; elements = { 192.0.2.1 }; }
            map marked { type ipv4_addr : mark; flags interval; elements = { 10.200.0.0/16 : 0x99 }; }
            chain a { type filter hook prerouting priority -150; meta mark set ip saddr map @marked; }
            chain p { type filter hook prerouting priority -140; ip saddr @some drop; }
            chain f { type filter hook forward priority 5; meta mark 0x99 drop; }
            chain m { type filter hook forward priority 6; meta length > 1000 drop; }
            chain o { type filter hook postrouting priority 5; limit rate over 1/minute drop; }
        }
        """
    )
    hints = look()
    assert {(each.code, each.severity) for each in hints} == {("forward-blocked", "hint")}
    assert sorted(each.object[-1] for each in hints) == ["f", "m", "o", "p"]
    for hint in hints:
        take(space, hint)
    assert look() == []


def test_a_rule_against_the_clusters_addresses_on_other_links(look: Look, space: Namespace) -> None:
    """As those that keep strangers away from another program's containers."""
    space.nft(
        "table ip raw { chain PREROUTING { type filter hook prerouting priority -300; policy accept;"
        ' iifname != "cali*" ip daddr 10.200.0.0/16 drop; }; }'
    )
    (found,) = look()
    assert (found.code, found.severity, found.object) == ("forward-blocked", "error", "table ip raw chain PREROUTING")
    space.nft(found.remedy.partition("same, nft ")[2].rstrip(")"))
    assert look() == []


def test_nft_speaks_nft_and_its_advice_helps(look: Look, space: Namespace) -> None:
    space.nft("table inet walls { chain f { type filter hook forward priority 0; policy drop; }; }")
    (found,) = look()
    assert (found.code, found.severity, found.object) == ("forward-blocked", "error", "table inet walls chain f")
    assert found.problem.startswith("has policy drop")
    assert len(re.findall("nft insert rule inet walls f [io]ifgroup", found.remedy)) == 2
    take(space, found)
    assert look() == []


@needs_iptables
def test_iptables_speaks_iptables_and_its_advice_survives_a_save_and_a_restore(look: Look, space: Namespace) -> None:
    run(space, "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER")
    (found,) = look()
    assert found.remedy.startswith("iptables -I FORWARD -i zl-+ -j ACCEPT; iptables -I FORWARD -o zl-+ -j ACCEPT (or")
    run(space, found.remedy.partition("same, ")[2].rstrip(")"))
    assert look() == []
    run(space, "iptables-nft-save > /run/$$; iptables-nft-restore < /run/$$; rm /run/$$")
    with space.entered():
        kept = subprocess.check_output(["iptables-nft", "-S", "FORWARD"], text=True).splitlines()
    assert "-A FORWARD -i zl-+ -j ACCEPT" in kept and "-A FORWARD -j ACCEPT" not in kept
    assert look() == []


@needs_iptables
@pytest.mark.parametrize(
    "cure",
    [
        "for n in zl-a-g zl-a-web-b zl-a-db-b; do iptables-nft -I DOCKER-USER -i $n -j ACCEPT;"
        " iptables-nft -I DOCKER-USER -o $n -j ACCEPT; done",
        "iptables-nft -A DOCKER-USER -i zl-+ -j ACCEPT; iptables-nft -A DOCKER-USER -m conntrack"
        " --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "iptables-nft -I FORWARD -s 10.200.0.0/16 -j ACCEPT; iptables-nft -I FORWARD -d 10.200.0.0/16 -j ACCEPT",
        "iptables-nft -I FORWARD -s 10.0.0.0/8 -m comment --comment overlay -j ACCEPT;"
        " iptables-nft -I FORWARD -m state --state ESTABLISHED -j ACCEPT",
    ],
)
def test_a_cure_is_one_by_whatever_it_goes(look: Look, space: Namespace, cure: str) -> None:
    run(space, "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER")
    assert [each.code for each in look()] == ["forward-blocked"]
    run(space, cure)
    assert look() == []


@needs_iptables
@needs_iptables
@pytest.mark.parametrize(
    ("rules", "severities"),
    [
        ("nft add rule ip raw PREROUTING iifgroup 0x6f760002 ct zone set 7", ["error"]),
        ("nft add rule ip raw PREROUTING ct zone set 7", []),
        ("iptables-nft -t raw -A PREROUTING -i zl-+ -j CT --notrack", ["warning"]),
        ("iptables-nft -t raw -A PREROUTING -i zl-+ -j CT --zone 7", ["warning"]),
    ],
)
def test_tracking_that_takes_the_way_back_from_containers(
    look: Look, space: Namespace, rules: str, severities: list[str]
) -> None:
    space.nft("table ip raw { chain PREROUTING { type filter hook prerouting priority -300; }; }")
    run(space, rules)
    found = look()
    assert [(each.code, each.severity) for each in found] == [("connections-untracked", each) for each in severities]
    if severities:
        take(space, found[0])
        assert look() == []


def test_a_cure_for_one_bridge_is_none_for_another(look: Look, space: Namespace) -> None:
    run(space, "iptables-nft -P FORWARD DROP; for n in zl-a-g zl-a-web-b; do for d in i o; do"
        " iptables-nft -I FORWARD -$d $n -j ACCEPT; done; done")  # fmt: skip
    assert [each.code for each in look()] == ["forward-blocked"]
    assert look(replace(TRAFFIC, links=(DEVICE, BRIDGE))) == []


@needs_iptables
def test_containers_of_the_global_overlay_need_their_own_links(look: Look, space: Namespace) -> None:
    run(space, "iptables-nft -P FORWARD DROP; iptables-nft -I FORWARD -i zl-+ -j ACCEPT;"
        " iptables-nft -I FORWARD -o zl-+ -j ACCEPT")  # fmt: skip
    legs = (Link("veth-7-g", GROUP_VETH), Link("veth-8-g", GROUP_VETH))
    assert look(replace(TRAFFIC, links=(*TRAFFIC.links, *legs))) == [], "each end meets a zl- link on the other side"


@needs_iptables
@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
def test_legacy_iptables(look: Look, space: Namespace, program: str) -> None:
    family, traffic = ("ip", TRAFFIC)
    if program.startswith("ip6"):
        family, traffic = "ip6", replace(TRAFFIC, cluster=ip_network("fd00::/48"), underlay=frozenset({6}))
    with space.entered():
        assert iptables.tables() == {}
    run(space, f"{program} -P FORWARD DROP; {program} -P INPUT DROP; {program} -A INPUT -i lo -j ACCEPT")
    with space.entered():
        assert iptables.tables() == {family: ["filter"]}
    found = look(traffic)
    codes = ["forward-blocked", "wireguard-blocked", "dns-blocked"]
    assert [each.code for each in found] == codes + ["discovery-blocked"] * (family == "ip6")
    assert all(program in each.remedy for each in found)
    for each in found:
        take(space, each)
    assert look(traffic) == []
    assert look(replace(TRAFFIC, cluster=ip_network("fd00::/48"))) == [] or family == "ip6"


@needs_iptables
@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
@pytest.mark.parametrize(
    ("rule", "codes"),
    [
        ("-t raw -I PREROUTING -i zl-+ -j DROP", ["forward-blocked"]),
        ("-t raw -I PREROUTING -i zl-+ -j CT --notrack", ["connections-untracked"]),
        ("-t raw -I PREROUTING -i zl-+ -j CT --zone 7", ["connections-untracked"]),
        ("-t mangle -I POSTROUTING -o zl-+ -j DROP", ["forward-blocked"]),
        ("-t mangle -I INPUT -p udp --dport 51820 -j DROP", ["wireguard-blocked"]),
        ("-t security -I FORWARD -j DROP", ["forward-blocked"]),
        ("-t nat -I POSTROUTING -j MASQUERADE", ["overlay-translated"]),
        ("-t nat -I PREROUTING -p udp --dport 53 -j REDIRECT --to-ports 5353", ["dns-blocked"]),
    ],
)
def test_every_table_of_legacy_iptables(
    look: Look, space: Namespace, program: str, rule: str, codes: list[str]
) -> None:
    traffic = TRAFFIC
    if program.startswith("ip6"):
        traffic = replace(TRAFFIC, cluster=ip_network("fd00::/48"), underlay=frozenset({6}))
    run(space, f"{program} {rule}")
    found = look(traffic)
    assert [each.code for each in found] == codes
    assert all(f"{program} {rule[:6]}" in each.remedy for each in found)
    take(space, found[0])
    assert look(traffic) == []


def test_legacy_iptables_without_its_program(space: Namespace) -> None:
    finding = unseen("ip6", ["filter"], "ip6tables-legacy")
    assert finding.severity == "warning"
    assert "legacy ip6tables is loaded, and cannot be judged: ip6tables-legacy is not installed" in finding.line


@pytest.mark.parametrize(
    ("rules", "codes"),
    [
        ("", ["wireguard-blocked", "dns-blocked"]),
        ("ct state established accept; tcp dport { 22, 53 } accept", ["wireguard-blocked", "dns-blocked"]),
        ("udp dport 51820 accept", ["dns-blocked"]),
        ("udp dport 51000-52000 accept; iifgroup 0x6f760002 accept", []),
        (
            'iifname "eth*" udp dport { 1, 51820 } accept; iifname "zl-*" meta l4proto { tcp, udp } th dport 53 accept',
            [],
        ),
        ('iifname "eth1" udp dport 51820 accept; iifname "zl-*" accept', ["wireguard-blocked"]),
        ("meta l4proto udp accept", ["dns-blocked"]),
        ("ip saddr 10.200.0.0/16 accept; meta nfproto ipv4 udp dport 51820 accept", []),
        ("reject with icmpx admin-prohibited; udp dport 51820 accept", ["wireguard-blocked", "dns-blocked"]),
    ],
)
def test_input(look: Look, space: Namespace, rules: str, codes: list[str]) -> None:
    space.nft(f"table inet fw {{ chain input {{ type filter hook input priority 0; policy drop; {rules}; }}; }}")
    found = look()
    assert [each.code for each in found] == codes
    assert all(each.severity == "error" for each in found)
    for each in found:
        take(space, each)
    assert look() == []


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        (
            "inet fw { chain c { type filter hook output priority 0; policy drop; }; }",
            ["wireguard-blocked", "dns-blocked"],
        ),
        (
            "inet fw { chain c { type route hook output priority 0; policy drop; udp sport 51820 accept; }; }",
            ["dns-blocked"],
        ),
        (
            "inet fw { chain c { type filter hook prerouting priority -300; policy drop; iifname eth0 accept; }; }",
            ["forward-blocked"],
        ),
        (
            "inet fw { chain c { type filter hook postrouting priority 300; oifname zl-a-db-b drop; }; }",
            ["forward-blocked"],
        ),
        ("bridge fw { chain c { type filter hook output priority 0; policy drop; }; }", ["forward-blocked"]),
        (
            "netdev fw { chain c { type filter hook ingress device lo priority 0; policy drop; }; }",
            ["wireguard-blocked", "arp-blocked"],
        ),
    ],
)
def test_other_hooks(look: Look, space: Namespace, table: str, codes: list[str]) -> None:
    run(space, "ip link set lo up")
    space.nft(f"table {table}")
    traffic = replace(TRAFFIC, way_out="lo" if "device lo" in table else "eth0")
    found = look(traffic)
    assert [each.code for each in found] == codes
    for each in found:
        take(space, each)
    assert look(traffic) == []


ND = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
OPENED = "udp dport { 53, 51820 } accept; tcp dport 53 accept; ct state established,related accept"


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        (
            f"inet fw {{ chain c {{ type filter hook input priority 0; policy drop; {OPENED}; }}; }}",
            ["discovery-blocked"],
        ),
        (f"inet fw {{ chain c {{ type filter hook input priority 0; policy drop; {OPENED}; {ND} accept; }}; }}", []),
        (
            f"inet fw {{ chain c {{ type filter hook input priority 0; policy drop; {OPENED};"
            " meta l4proto { icmp, ipv6-icmp } accept; }; }",
            [],
        ),
        (
            f"inet fw {{ chain c {{ type filter hook input priority 0; policy drop; {OPENED};"
            " ip6 saddr fe80::/10 accept; }; }",
            [],
        ),
        (
            "ip6 fw { chain c { type filter hook input priority 0;"
            " ct state untracked accept; meta l4proto ipv6-icmp drop; }; }",
            [],
        ),
        (f"ip6 fw {{ chain c {{ type filter hook output priority 0; {ND} drop; }}; }}", ["discovery-blocked"]),
        (
            "ip6 fw { chain c { type filter hook prerouting priority -300; icmpv6 type nd-neighbor-advert drop; }; }",
            ["discovery-blocked"],
        ),
        ("ip6 fw { chain c { type filter hook input priority 0; icmpv6 type { nd-redirect, 128 } drop; }; }", []),
        ("ip6 fw { chain c { type filter hook forward priority 0; meta l4proto ipv6-icmp drop; }; }", []),
        (f"bridge fw {{ chain c {{ type filter hook prerouting priority 0; {ND} drop; }}; }}", ["discovery-blocked"]),
        (
            "bridge fw { chain c { type filter hook forward priority 0; meta l4proto ipv6-icmp drop; }; }",
            ["discovery-blocked"],
        ),
        ("bridge fw { chain c { type filter hook prerouting priority 0; ether type arp drop; }; }", []),
    ],
)
def test_neighbour_discovery(look: Look, space: Namespace, table: str, codes: list[str]) -> None:
    space.nft(f"table {table}")
    traffic = replace(TRAFFIC, cluster=ip_network("fd00::/48"), underlay=frozenset({6}))
    found = look(traffic)
    assert [(each.code, each.severity) for each in found if each.severity != "hint"] == [
        (code, "error") for code in codes
    ]
    for each in found:
        take(space, each)
    assert look(traffic) == []


@pytest.mark.parametrize("hook", ["prerouting", "input", "forward", "output", "postrouting"])
def test_arp_between_the_ports_of_a_bridge(look: Look, space: Namespace, hook: str) -> None:
    space.nft(f"table bridge fw {{ chain c {{ type filter hook {hook} priority 0; ether type arp drop; }}; }}")
    (found,) = look()
    assert (found.code, found.severity) == ("arp-blocked", "error")
    take(space, found)
    assert look() == []


@needs_iptables
@pytest.mark.parametrize(("program", "severity"), [("iptables-nft", "warning"), ("iptables-legacy", "error")])
def test_a_queue_that_no_program_reads(look: Look, space: Namespace, program: str, severity: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    run(space, f"{program} -I FORWARD -j NFQUEUE --queue-num 7")
    (found,) = look()
    assert (found.code, found.severity) == ("forward-blocked", severity)
    assert "a queue (NFQUEUE) that no program reads" in found.problem
    with space.entered():
        program_of_queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
    with program_of_queue:
        # NFQNL_MSG_CONFIG, of which NFQA_CFG_CMD binds (linux/netfilter/nfnetlink_queue.h)
        program_of_queue.send(struct.pack("=IHHIIBBHHHBxH", 28, 3 << 8 | 2, 5, 1, 0, 0, 0, socket.htons(7), 8, 1, 1, 0))
        assert struct.unpack_from("=i", program_of_queue.recv(100), 16) == (0,)
        assert look() == [], "it decides as it likes"
    take(space, found)
    assert look() == []
    run(space, f"{program} -F FORWARD; {program} -I FORWARD -j NFQUEUE --queue-num 7 --queue-bypass")
    assert [each.severity for each in look()] == ["warning"] * (severity == "warning"), "nft does not show it"


@needs_iptables
@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_output_of_iptables(look: Look, space: Namespace, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    run(space, f"{program} -P OUTPUT DROP; {program} -A OUTPUT -p tcp --sport 22 -j ACCEPT")
    found = look()
    assert [each.code for each in found] == ["wireguard-blocked", "dns-blocked"]
    for each in found:
        take(space, each)
    assert look() == []


def test_what_only_some_get_through_is_a_warning(look: Look, space: Namespace) -> None:
    space.nft(
        "table inet fw { set peers { type ipv4_addr; }; chain input { type filter hook input priority 0; policy drop;"
        " ip saddr @peers udp dport 51820 accept; iifgroup 0x6f760002 accept; }; }"
    )
    assert [(each.code, each.severity) for each in look()] == [("wireguard-blocked", "warning")]


def test_several_ports_and_another_family(look: Look, space: Namespace) -> None:
    space.nft(
        "table ip fw { chain i { type filter hook input priority 0; policy drop; iifgroup 0x6f760002 accept; }; }"
    )
    assert look(replace(TRAFFIC, underlay=frozenset({6}))) == [], "the tunnels come in IPv6"
    (found,) = look(replace(TRAFFIC, wireguard=(51820, 51821)))
    assert "port 51820,51821" in found.problem
    take(space, found)
    assert look(replace(TRAFFIC, wireguard=(51820, 51821))) == []


def test_firewalld_is_asked_by_its_own_program(look: Look, space: Namespace) -> None:
    space.nft(
        """
        table inet firewalld {
            chain forward { type filter hook forward priority filter + 10; policy accept; jump zones; reject; }
            chain zones { iifname "lo" accept; goto public; }
            chain public { counter; }
            chain input { type filter hook input priority filter + 10; policy accept; ct state established accept
                          iifname "lo" accept; reject with icmpx admin-prohibited; }
        }
        """
    )
    found = {each.code: each for each in look()}
    assert found["forward-blocked"].problem.startswith("rejects")
    assert found["forward-blocked"].remedy.startswith("firewall-cmd --permanent --zone=trusted --add-interface=zl-+;")
    assert "--add-port=51820/udp" in found["wireguard-blocked"].remedy
    space.nft('insert rule inet firewalld zones iifname "zl-*" accept; insert rule inet firewalld forward ct state'
              ' established accept')  # fmt: skip
    assert "forward-blocked" not in {each.code for each in look()}, "as the trusted zone does it"


def test_between_the_ports_of_a_bridge(look: Look, space: Namespace) -> None:
    space.nft("table bridge fw { chain f { type filter hook forward priority 0; policy drop; }; }")
    (found,) = look()
    assert (found.code, found.object) == ("forward-blocked", "table bridge fw chain f")
    assert found.symptom == "containers of one service do not reach each other"
    take(space, found)
    assert look() == []


def test_a_thousand_bridges_cost_no_more_than_the_rules_tell_apart(look: Look, space: Namespace) -> None:
    space.nft('table ip fw { chain f { type filter hook forward priority 0; policy drop; iifname "zl-7-b" accept; }; }')
    links = tuple(Link(f"zl-{number}-b", GROUP_BRIDGE) for number in range(1000))
    (found,) = look(replace(TRAFFIC, links=links))
    assert found.code == "forward-blocked"
