"""Bad days of a cluster on an etcd: whatever becomes of etcd or of a node, no tunnel between living nodes is lost, and
what is wrong can be read.
"""

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from lab import Lab, Ping, Refused, ping
from lab.cluster import CLUSTER
from lab.etcd import Etcd, EtcdMember
from lab.patience import until
from lab.processes import stop
from lab.sites import Site, serve, sites

TTL = 60  # seconds that the presence of a node lives without it


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Iterator[list[Site]]:
    with Etcd(lab, 3) as etcd:
        made = sites(lab, etcd, ["alpha", "beta", "gamma"])
        serve(made)
        yield made


@contextmanager
def under_ping(one: Site, other: Site) -> Iterator[None]:
    """Nothing is lost between their containers, and the peers are those of before."""
    before, running = one.device_peers(), Ping(one.container, other.address)
    running.wait_for(5)
    yield
    running.wait_for(5)
    assert running.stop() == []
    assert one.device_peers() == before


def codes(site: Site) -> list[str]:
    return [str(each["code"]) for each in site.request("doctor")["findings"]]


def watched(site: Site) -> EtcdMember:
    """The member that a node follows."""
    endpoint = site.part["endpoint"]
    return next(each for each in site.etcd.members if each.url == endpoint)


def test_a_daemon_that_is_stopped_for_longer_than_its_lease_lives(nodes: list[Site]) -> None:
    alpha, beta, gamma = nodes
    with under_ping(beta, alpha), under_ping(beta, gamma):
        assert alpha.node.daemon is not None
        stop(alpha.node.daemon.pid)
        try:
            alpha.lose_presence()
            gamma.request("register_dns", name="meanwhile", ip=gamma.address)
            until(lambda: beta.resolve("meanwhile") == gamma.address, beta.node.log_tail)
            assert beta.resolve("alpha-web") == alpha.address
            listed = json.loads(beta.node.overlayctl("cluster", "nodes", "-o", "json"))
            shown = {each["name"]: each["present"] for each in listed}
            assert shown == {"alpha": False, "beta": True, "gamma": True}
        finally:
            alpha.node.daemon.send_signal(signal.SIGCONT)
        until(lambda: alpha.resolve("meanwhile") == gamma.address, alpha.node.log_tail)
        alpha.state("connected")


def test_a_member_that_is_stopped_is_left_for_another_one(nodes: list[Site]) -> None:
    """Its host answers for it, so that the stream does not break; what a node writes itself shows it."""
    alpha, beta, _ = nodes
    member = watched(alpha)
    with under_ping(alpha, beta):
        member.stop()
        try:
            alpha.request("register_dns", name="written", ip=alpha.address)
            until(lambda: watched(alpha) is not member and alpha.part["state"] == "connected", lambda: alpha.part)
            beta.request("register_dns", name="heard", ip=beta.address)
            until(lambda: alpha.resolve("heard") == beta.address, alpha.node.log_tail)
        finally:
            member.signal(signal.SIGCONT)


def test_a_member_without_a_quorum_is_left_for_another_one(nodes: list[Site]) -> None:
    alpha, beta, _ = nodes
    member = watched(alpha)
    cut = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; "
    cut += "add rule inet cut in tcp dport 2380 drop; add rule inet cut in tcp sport 2380 drop"
    with under_ping(alpha, beta):
        member.node.run(["nft", cut])
        try:
            until(
                lambda: watched(alpha) is not member and alpha.part["state"] == "connected",
                lambda: alpha.part,
            )
        finally:
            member.node.run(["nft", "delete", "table", "inet", "cut"])
    alpha.etcd.start()


@contextmanager
def beats(etcd: Etcd) -> Iterator[None]:
    """All members are stopped four fifths of the time."""
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            etcd.stop()
            over.wait(0.8)
            etcd.go_on()
            over.wait(0.2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_an_etcd_that_is_slow_is_followed_all_the_same(nodes: list[Site]) -> None:
    alpha, beta, _ = nodes
    alpha.state("connected")
    with under_ping(alpha, beta), beats(alpha.etcd):
        beta.request("register_dns", name="slowly", ip=beta.address)
        until(lambda: alpha.resolve("slowly") == beta.address, alpha.node.log_tail)
        alpha.attach().kill()
        alpha.state("connected")  # not at each moment where it waits for a processor, too


def test_two_removals_and_a_block_that_somebody_else_took(nodes: list[Site]) -> None:
    """A node whose record was removed while it was down, and whose block is another's, keeps its containers."""
    alpha, beta, gamma = nodes
    block = gamma.part["block"].replace("/", "-")
    gamma.is_present()
    gamma.node.kill()
    gamma.lose_presence()
    alpha.request("cluster_remove_node", node="gamma")
    alpha.knows(1)
    gamma.etcd.ctl("put", f"/overlayd/prod/b/{block}", json.dumps({"node": "delta", "instance": "d"}))
    gamma.start()
    gamma.state("conflict")
    assert "is held by node delta in the store, and by this node (gamma)" in gamma.part["error"]
    assert "cluster-conflict" in codes(gamma)
    assert gamma.status["peer_count"] == 2  # nobody told it to forget them
    gamma.etcd.ctl("put", f"/overlayd/prod/b/{block}", json.dumps({"freed": 1}))
    gamma.node.stop()
    gamma.start()
    gamma.state("connected")
    alpha.knows(2)
    beta.knows(2)
    ping(alpha.container, gamma.address, count=2)
    ping(beta.container, gamma.address, count=2)


def test_a_name_that_another_installation_took_meanwhile_is_a_conflict_and_no_end(nodes: list[Site]) -> None:
    alpha, beta, gamma = nodes
    key = "/overlayd/prod/s/node/gamma"
    record = json.loads(gamma.etcd.ctl("get", "--print-value-only", key))
    with under_ping(gamma, alpha):
        gamma.etcd.ctl("put", key, json.dumps(record | {"instance": "another"}))
        gamma.state("conflict")
        assert "gamma" in gamma.part["error"]
        assert "another installation" in gamma.part["error"]
        gamma.etcd.ctl("put", key, json.dumps(record))
        gamma.state("connected")
    knows = beta.status["peer_count"]
    assert knows == 2


def test_a_journal_that_was_put_back_from_before_a_further_block_finds_that_again(nodes: list[Site]) -> None:
    alpha, _, gamma = nodes
    gamma.node.stop()
    kept = gamma.node.data_dir.with_name("kept")
    shutil.copytree(gamma.node.data_dir, kept)
    gamma.start()
    gamma.state("connected")
    further = grow(gamma)
    until(lambda: any(further[0] in peer for peer in alpha.device_peers()), alpha.device_peers)
    gamma.node.stop()
    shutil.rmtree(gamma.node.data_dir)
    kept.rename(gamma.node.data_dir)
    with under_ping(alpha, gamma):
        gamma.start()
        gamma.state("connected")
        until(lambda: gamma.part.get("blocks") == further, lambda: gamma.part)
        until(lambda: any(further[0] in peer for peer in alpha.device_peers()), alpha.device_peers)


def test_an_etcd_that_went_back_to_a_backup_removes_nobody(nodes: list[Site]) -> None:
    """Those who came after the backup are in no store, and what was told since is not there; all comes back by itself,
    and is known meanwhile.
    """
    alpha, beta, _ = nodes
    backup = alpha.etcd.back_up()
    further = grow(beta)[-1]
    until(lambda: any(further in peer for peer in alpha.device_peers()), alpha.device_peers)
    delta = Site(alpha.lab, alpha.etcd, "delta")
    delta.start()
    delta.join()
    delta.serve()
    for site in (*nodes, delta):
        site.knows(3)
    beta.request("register_dns", name="since", ip=beta.address)
    until(lambda: alpha.resolve("since") == beta.address, alpha.node.log_tail)
    with under_ping(alpha, delta), under_ping(alpha, beta):
        alpha.etcd.restore(backup)
        assert alpha.resolve("since") == beta.address
        for site in (*nodes, delta):
            site.state("connected")
            site.knows(3)
            assert site.resolve("since") == beta.address
        until(
            lambda: "delta" in alpha.etcd.ctl("get", "--keys-only", "--prefix", "/overlayd/prod/s/node/"),
            "delta has no record",
        )
        until(lambda: "since" in alpha.etcd.ctl("get", "/overlayd/prod/s/name/beta"), "beta's names are not there")
    # Whoever lists first misses somebody or something, and puts its own back.
    assert any("was a backup put back?" in site.node.log.read_text() for site in (*nodes, delta))
    until(lambda: not {"cluster-guarded", "cluster-record"} & {*codes(alpha)}, lambda: codes(alpha))


def grow(site: Site) -> list[str]:
    """Services until it needs one block more; returns its further blocks."""
    before = site.part.get("blocks", [])
    for number in range(20):
        with suppress(Refused):  # until it has that
            site.request("setup_service_overlay", service=f"s{len(before)}-{number}", mode="auto")
        if site.part.get("blocks", []) != before:
            break
    until(lambda: site.part.get("blocks", []) != before, lambda: site.part)
    found: list[str] = site.part.get("blocks", [])
    return found


def test_an_etcd_without_space_is_named_and_taken_up_again(lab: Lab) -> None:
    with Etcd(lab, options=["--quota-backend-bytes", "1000000"], name="q") as etcd:
        alpha, beta = sites(lab, etcd, ["small", "other"])
        alpha.serve()
        beta.serve()
        until(lambda: alpha.resolve("other-web") == beta.address, alpha.node.log_tail)
        with under_ping(alpha, beta):
            filling = "x" * 100_000
            while True:
                try:
                    etcd.ctl("put", "filling", filling)
                except Exception as error:
                    assert "space" in str(error), error
                    break
            alpha.request("register_dns", name="more", ip=alpha.address)
            until(lambda: "database space exceeded" in _untold(alpha), lambda: alpha.request("doctor"))
            until(lambda: "database space exceeded" in alpha.node.log_tail(), alpha.node.log_tail)
            assert alpha.part["state"] == "connected"
            alpha.attach().kill()
            etcd.compact()
            etcd.ctl("del", "filling")
            etcd.ctl("defrag")
            etcd.ctl("alarm", "disarm")
            until(lambda: beta.resolve("more") == alpha.address, alpha.node.log_tail)
            until(lambda: not _untold(alpha), lambda: _untold(alpha))


def _untold(site: Site) -> str:
    findings = site.request("doctor")["findings"]
    return next((str(each["problem"]) for each in findings if each["code"] == "cluster-untold"), "")


def test_two_daemons_of_one_name_that_start_at_once(lab: Lab) -> None:
    with Etcd(lab, name="n") as etcd:
        first = Site(lab, etcd, "one")
        second = Site(lab, etcd, "two")
        for site in (first, second):
            site.options[site.options.index("--node") + 1] = "same"
            site.start("--cluster-cidr", CLUSTER)
        until(lambda: _is_over(first) or _is_over(second), lambda: first.node.log_tail() + second.node.log_tail())
        lost, kept = (first, second) if _is_over(first) else (second, first)
        assert lost.node.wait() == 78
        assert "registered by another installation" in lost.node.log_tail()
        kept.join()
        kept.state("connected")
        held = etcd.ctl("get", "--prefix", "--print-value-only", "/overlayd/prod/b/").split()
        assert len(held) == 1


def _is_over(site: Site) -> bool:
    return site.node.daemon is not None and site.node.daemon.poll() is not None
