"""A host's own firewall in the overlay's way: it is named, and the printed commands open it for the overlay alone."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair, besides_version

PROGRAM = {4: "iptables", 6: "ip6tables"}
FAMILY = {4: "ip", 6: "ip6"}

pytestmark = pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="iptables is not installed")


def doctor(member: Member) -> list[dict[str, str]]:
    code, printed, _ = member.node.try_overlayctl("doctor", "-o", "json")
    found: list[dict[str, str]] = json.loads(printed)
    assert code == (4 if any(each["severity"] == "error" for each in found) else 0)
    return besides_version(found)


def shell(member: Member, script: str) -> str:
    return member.node.run(["sh", "-ec", script])


def reaches(pair: Pair) -> bool:
    try:
        ping(pair.web, pair.db_address, count=1, seconds=5)
    except AssertionError:
        return False
    return True


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(version: int) -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab, CLUSTER if version == 4 else CLUSTER6)


def test_the_advice_opens_iptables_for_the_overlay_and_for_nothing_else(pair: Pair, version: int) -> None:
    program, alpha = PROGRAM[version], pair.alpha
    shell(
        alpha, f"{program}-nft -P FORWARD DROP; {program}-nft -N DOCKER-USER; {program}-nft -A FORWARD -j DOCKER-USER"
    )
    assert not reaches(pair)
    (found,) = doctor(alpha)
    assert found["code"] == "forward-blocked"
    shell(alpha, found["remedy"].partition(" (or")[0])
    assert reaches(pair)
    assert doctor(alpha) == []
    shell(alpha, f"{program}-nft-save > /run/saved; {program}-nft-restore < /run/saved")
    assert reaches(pair)
    # Between two bridges that are not ours: iptables' policy still drops.
    assert "-A FORWARD -i zl-+ -j ACCEPT\n-A FORWARD -j DOCKER-USER" in shell(alpha, f"{program}-nft -S FORWARD")
    alpha.node.kill()
    alpha.start()
    assert doctor(alpha) == [], "nor after a restart"


def test_legacy_iptables_is_seen(pair: Pair, version: int) -> None:
    program = f"{PROGRAM[version]}-legacy"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    shell(pair.alpha, f"{program} -P FORWARD DROP")
    assert not reaches(pair)
    (found,) = doctor(pair.alpha)
    assert (found["code"], found["severity"]) == ("forward-blocked", "error")
    assert f"legacy {PROGRAM[version]}" in found["object"]
    shell(pair.alpha, found["remedy"])
    assert reaches(pair)
    assert doctor(pair.alpha) == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("-t raw -I PREROUTING -i zl-+ -j DROP", "forward-blocked"),
        ("-t mangle -I POSTROUTING -o zl-+ -j DROP", "forward-blocked"),
        ("-t mangle -I PREROUTING -i zl-+ -j MARK --set-xmark 0x7/0xff", "route-diverted"),
    ],
)
def test_every_table_of_legacy_iptables_is_seen(pair: Pair, version: int, rule: str, code: str) -> None:
    program, ip = f"{PROGRAM[version]}-legacy", "ip -6" if version == 6 else "ip"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    shell(pair.alpha, f"{ip} route add blackhole default table 77; {ip} rule add pref 40 fwmark 7 lookup 77")
    assert doctor(pair.alpha) == []
    shell(pair.alpha, f"{program} {rule}")
    assert not reaches(pair)
    assert {(each["code"], each["severity"]) for each in doctor(pair.alpha)} == {(code, "error")}


def test_a_closed_host_says_which_ports_the_overlay_needs(pair: Pair, version: int) -> None:
    beta = pair.beta
    shell(
        beta,
        "nft 'add table inet fw; add chain inet fw input { type filter hook input priority 0; policy drop; };"
        " add rule inet fw input ct state established,related accept;"
        " add rule inet fw input meta l4proto ipv6-icmp accept'",
    )
    found = {each["code"]: each for each in doctor(beta)}
    assert found.keys() == {"wireguard-blocked", "dns-blocked"}
    assert not reaches(pair), "nobody gets in first"
    for each in found.values():
        assert re.search("51820|port 53 ", each["problem"])
        for command in each["remedy"].split("; "):
            shell(beta, command)
    assert doctor(beta) == []
    assert any(reaches(pair) for _ in range(10)), "once WireGuard tries again, every five seconds"
