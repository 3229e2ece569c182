"""A filter of reverse paths in the host's firewall is named when it cuts a container with two addresses off."""

from contextlib import suppress

import pytest
from lab import Lab, ping
from lab.cluster import CLUSTER, CLUSTER6, Pair
from lab.container import Container
from lab.patience import until

FIREWALLD = (
    "add table inet {table}; add chain inet {table} p {{ type filter hook prerouting priority -290; }};"
    " add rule inet {table} p {rule} drop"
)


def reaches(one: Container, address: str) -> bool:
    with suppress(AssertionError):
        ping(one, address, 1, ["-W", "1", "-w", "1"])
        return True
    return False


@pytest.mark.parametrize("cluster", [CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def test_a_container_of_which_one_address_is_cut_off(cluster: str) -> None:
    with Lab(ipv6=cluster == CLUSTER6) as lab:
        pair = Pair(lab, cluster)
        alpha, both = pair.alpha, lab.container()
        strict, loose = (f"fib saddr . mark{each} oif missing" for each in (" . iif", ""))
        if cluster == CLUSTER6:
            strict, loose = f"meta nfproto ipv6 {strict}", f"meta nfproto ipv6 {loose}"

        def filter(rule: str, table: str = "firewalld") -> None:
            alpha.node.run(["nft", FIREWALLD.format(table=table, rule=rule)])

        def codes() -> list[str]:
            return [each["code"] for each in alpha.findings()]

        filter(strict)
        assert codes() == [], "nobody has two addresses"
        address = alpha.attach(both, "web", join_global=True)
        assert not reaches(pair.db, address)
        until(lambda: codes() == ["reverse-path-filtered"], lambda: str(alpha.findings()))
        (found,) = alpha.findings()
        assert found["severity"] == "error" and "IPv6_rpfilter=loose" in found["remedy"]
        alpha.node.stop()
        alpha.start()
        assert codes() == ["reverse-path-filtered"]
        alpha.node.run(["nft", "delete table inet firewalld"])
        filter(loose)
        assert reaches(pair.db, address) and codes() == []
        filter(strict, "other")
        assert not reaches(pair.db, address)
        (found,) = alpha.findings()
        alpha.node.run(["sh", "-ec", found["remedy"].replace("{", "'{").replace("}", "}'")])
        assert reaches(pair.db, address) and reaches(pair.web, address) and codes() == []
