"""A neighbour that does not answer, or whose MAC somebody told wrongly, between this host and its peers is named."""

import subprocess
from collections.abc import Iterator

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, PORT, Member, Pair
from lab.patience import until

BOGUS = "02:00:00:00:00:99"
SILENT, TOLD = "neighbour-silent", "neighbour-told"
KEY = "C" * 42 + "A="


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        pair = Pair(lab, request.param)
        ping(pair.web, pair.db_address)
        yield pair


def shell(member: Member, command: str) -> None:
    member.node.run(["sh", "-ec", command])


def remedy(member: Member, code: str, address: str) -> str:
    """What the doctor says to do of a neighbour, once it does."""

    def told() -> str:
        named = f"neighbour {address} of uplink"
        return next(
            (each["remedy"] for each in member.findings() if (each["code"], each["object"]) == (code, named)), ""
        )

    return until(told, lambda: f"{member.findings()} {member.node.log_tail()}")


def keep_alive(member: Member, key: str, endpoint: str) -> None:
    member.request("add_peer", public_key=key, endpoint=endpoint, allowed_ips="", persistent_keepalive_secs=1)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_wrong_mac_of_a_peer_that_somebody_told(pair: Pair, restarted: bool) -> None:
    alpha, there = pair.alpha, str(pair.beta.node.address)
    shell(alpha, f"ip neigh replace {there} lladdr {BOGUS} nud permanent dev uplink")
    alpha.request("remove_peer", pubkey=pair.beta.public_key)
    keep_alive(alpha, pair.beta.public_key, pair.beta.node.endpoint(PORT))
    if restarted:
        alpha.node.stop()
        alpha.start()
    command = remedy(alpha, TOLD, there).partition(": ")[2]
    assert command == f"ip neigh del {there} dev uplink"
    shell(alpha, command)
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))


def test_a_right_mac_that_somebody_told_is_fine_while_the_peer_answers(pair: Pair) -> None:
    alpha, there = pair.alpha, str(pair.beta.node.address)
    mac = pair.beta.node.run(["cat", "/sys/class/net/uplink/address"]).strip()
    shell(alpha, f"ip neigh replace {there} lladdr {mac} nud permanent dev uplink")
    keep_alive(alpha, pair.beta.public_key, pair.beta.node.endpoint(PORT))
    until(lambda: alpha.request("status")["peers"][0]["last_handshake_unix_secs"], alpha.node.log_tail)
    assert alpha.findings() == []
    shell(alpha, f"ip neigh del {there} dev uplink")


def test_a_peer_and_a_router_that_nobody_has(pair: Pair) -> None:
    alpha = pair.alpha
    ipv6 = pair.lab.ipv6
    nobody, router = (str(pair.lab.underlay.network[each]) for each in (77, 79))
    keep_alive(alpha, KEY, f"[{nobody}]:{PORT}" if ipv6 else f"{nobody}:{PORT}")
    assert "see whether that host runs" in remedy(alpha, SILENT, nobody)
    alpha.request("remove_peer", pubkey=KEY)
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))
    far = "2001:db8:7::7" if ipv6 else "203.0.113.7"
    shell(alpha, f"ip route add {far} via {router} dev uplink")
    keep_alive(alpha, KEY, f"[{far}]:{PORT}" if ipv6 else f"{far}:{PORT}")
    assert "see whether that router runs" in remedy(alpha, SILENT, router)
    (found,) = [each for each in alpha.findings() if router in each["object"]]
    assert (found["severity"], "peer CCCCCCCC" in found["symptom"]) == ("error", True)
    shell(alpha, f"ip route del {far}")
    alpha.request("remove_peer", pubkey=KEY)
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))


def test_a_default_router_that_does_not_answer(pair: Pair) -> None:
    alpha, outside = pair.alpha, str(pair.lab.outside_address.ip)
    usual, nobody = pair.lab.underlay.ip, str(pair.lab.underlay.network[78])
    shell(alpha, f"ip route replace default via {nobody} dev uplink")
    shell(alpha, f"ping -c 1 -W 1 {outside} || true")
    assert "see whether that router runs" in remedy(alpha, SILENT, nobody)
    shell(alpha, f"ip route replace default via {usual} dev uplink")
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))


def test_a_router_that_answers_again_though_nothing_was_sent_since(pair: Pair) -> None:
    alpha, router, outside = pair.alpha, str(pair.lab.underlay.ip), str(pair.lab.outside_address.ip)
    port = ["ip", "-n", pair.lab.router, "link", "set", "alpha"]
    subprocess.run([*port, "down"], check=True)
    until(lambda: "NO-CARRIER" in alpha.node.run(["ip", "link", "show", "uplink"]))
    shell(alpha, f"ping -c 1 -W 1 {outside} || true")
    remedy(alpha, SILENT, router)
    subprocess.run([*port, "up"], check=True)
    until(lambda: "state UP" in alpha.node.run(["ip", "link", "show", "uplink"]))
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))


def test_an_uplink_whose_arp_is_off(pair: Pair) -> None:
    alpha = pair.alpha
    shell(alpha, "ip link set uplink arp off")
    shell(alpha, f"ping -c 1 -W 1 {pair.lab.outside_address.ip} || true")
    command = remedy(alpha, TOLD, str(pair.lab.underlay.ip))
    assert command == "ip link set dev uplink arp on"
    shell(alpha, command)
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))


def test_one_of_two_routers_that_does_not_answer(pair: Pair) -> None:
    alpha, usual, nobody = pair.alpha, pair.lab.underlay.ip, str(pair.lab.underlay.network[80])
    shell(alpha, f"ip route replace default nexthop via {usual} dev uplink nexthop via {nobody} dev uplink")
    shell(alpha, f"ping -c 1 -W 1 -I uplink {usual}; ping -c 1 -W 1 {nobody} || true")
    assert "see whether that router runs" in remedy(alpha, SILENT, nobody)
    (found,) = alpha.findings()
    assert (found["severity"], ", not by other routers" in found["symptom"]) == ("warning", True)
    shell(alpha, f"ip route replace default via {usual} dev uplink")
    until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))


def test_a_router_of_the_other_family_that_does_not_answer() -> None:
    with Lab() as lab:
        alpha, nobody = Member(lab, 1, "alpha"), "fe80::51"
        alpha.start()
        alpha.set_up()
        for each in ("uplink", "lo"):
            alpha.node.write_sysctl(f"net/ipv6/conf/{each}/disable_ipv6", "0")
        until(lambda: "tentative" not in alpha.node.run(["ip", "-6", "addr", "show", "dev", "uplink"]))
        shell(alpha, f"ip -4 route replace default via inet6 {nobody} dev uplink")
        shell(alpha, f"ping -c 1 -W 1 {lab.outside_address.ip} || true")
        assert "see whether that router runs" in remedy(alpha, SILENT, nobody)


def test_an_uplink_that_was_made_a_port_of_a_bridge_names_the_bridge() -> None:
    with Lab() as lab:
        alpha, router = Member(lab, 1, "alpha"), str(lab.underlay.ip)
        alpha.start()
        alpha.set_up()
        shell(alpha, "ip link add brlan type bridge; ip link set brlan up; ip link set uplink master brlan")
        shell(alpha, f"ip neigh flush dev uplink; ping -c 1 -W 1 {lab.outside_address.ip} || true")
        command = "ip" + remedy(alpha, SILENT, router).partition("(ip")[2].rstrip(")")
        assert command == "ip link set dev uplink nomaster"
        shell(alpha, f"{command}; ip link set uplink up")
        until(lambda: alpha.findings() == [], lambda: str(alpha.findings()))
