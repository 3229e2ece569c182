"""A node that dies at every point of its way into a cluster, and of taking over news, is the same node afterwards."""

from collections.abc import Iterator

import pytest
from lab import CommandFailed, DaemonExited, Lab
from lab.cluster import CLUSTER
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import Site


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Lab, Etcd, Site]]:
    with Lab() as lab, Etcd(lab) as etcd:
        first = Site(lab, etcd, "first")
        first.start("--cluster-cidr", CLUSTER)
        first.join()
        first.serve()
        yield lab, etcd, first


@pytest.mark.parametrize("point", ["claimed", "journaled", "listed", "applied", "published"])
def test_a_kill_leaves_one_block_that_is_kept(
    place: tuple[Lab, Etcd, Site], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, etcd, first = place
    site = Site(lab, etcd, f"at-{point}")
    with monkeypatch.context() as patch:
        patch.setenv("OVERLAYD_FAULT", f"cluster:{point}:1")
        try:
            site.start()
            if point == "published":
                site.join()
                site.request("register_dns", name="doomed", ip="10.200.0.9")
            site.node.wait()
        except (DaemonExited, OSError):
            site.node.daemon = None
    held = _held(etcd, site.node.name)
    assert len(held) == 1
    site.start()
    site.join()
    site.state("connected")
    site.knows(first.status["peer_count"])
    assert _held(etcd, site.node.name) == held
    assert site.part["block"] == held[0].rpartition("/")[2].replace("-", "/")
    until(lambda: _agrees(site), "the store, the journal and the device differ")


def _agrees(site: Site) -> bool:
    try:
        site.node.overlayctl("cluster", "check")
    except CommandFailed:
        return False
    return True


def _held(etcd: Etcd, name: str) -> list[str]:
    """The keys of the blocks of a node."""
    lines = etcd.ctl("get", "--prefix", "/overlayd/prod/b/").splitlines()
    return [key for key, value in zip(lines[::2], lines[1::2], strict=True) if f'"{name}"' in value]
