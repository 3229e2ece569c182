"""A cluster on an etcd that is newer than Debian's."""

from pathlib import Path

import pytest
from lab import Lab, ping
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import sites

ETCD = Path(__file__).parents[2] / "build" / "clients" / "go" / "etcd"


@pytest.mark.skipif(not ETCD.exists(), reason="etcd 3.6 comes through Go's proxy (make etcd-new), and is not there")
def test_nodes_join_tell_names_and_are_removed_on_etcd_3_6() -> None:
    with Lab() as lab, Etcd(lab, program=str(ETCD)) as etcd:
        assert "3.6." in etcd.members[0].node.run([str(ETCD), "--version"])
        alpha, beta = sites(lab, etcd, ["alpha", "beta"])
        alpha.serve()
        beta.serve()
        until(lambda: alpha.resolve("beta-web") == beta.address, alpha.node.log_tail)
        ping(alpha.container, beta.address, count=2)
        beta.request("cluster_leave", force=True)
        alpha.knows(0)
        until(lambda: not alpha.resolve("beta-web"), alpha.node.log_tail)
