"""A cluster without an orchestrator: real daemons, a real etcd of three members."""

import itertools
import json
import shutil
import socket
import statistics
import time
from collections.abc import Iterator

import pytest
from lab import DaemonExited, Lab, Ping, Refused, ping
from lab.cluster import CLUSTER
from lab.etcd import Etcd
from lab.patience import LIMIT, until
from lab.sites import Site, serve, sites


class Cluster:
    """Three members of etcd, and three nodes with a container each."""

    def __init__(self, lab: Lab, etcd: Etcd) -> None:
        self.lab = lab
        self.etcd = etcd
        self.sites = sites(lab, etcd, ["alpha", "beta", "gamma"])
        serve(self.sites)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab() as lab, Etcd(lab, 3) as etcd:
        yield Cluster(lab, etcd)


def test_containers_of_all_nodes_reach_each_other_by_address_and_name(cluster: Cluster) -> None:
    for one, other in itertools.permutations(cluster.sites, 2):
        ping(one.container, other.address, count=2)
        until(lambda one=one, other=other: one.resolve(f"{other.node.name}-web") == other.address, "no name")
    blocks = {site.part["block"] for site in cluster.sites}
    assert len(blocks) == 3
    for site in cluster.sites:
        assert json.loads(site.node.overlayctl("cluster", "check", "-o", "json")) == []
        shown = json.loads(site.node.overlayctl("cluster", "nodes", "-o", "json"))
        assert [each["name"] for each in shown] == ["alpha", "beta", "gamma"]
        assert all(each["present"] for each in shown)
    alpha, beta, _ = cluster.sites
    for one, other in (("alpha", "beta"), ("alpha-web", "gamma-web")):
        assert "all is well on this way" in alpha.node.overlayctl("why", one, other)
    code, said, _ = beta.node.try_overlayctl("why", "alpha", "gamma-web")
    assert (code, "remedy: ask the node of an end: on alpha, overlayctl why alpha gamma-web" in said) == (4, True), said


def test_a_name_that_goes_is_gone_everywhere(cluster: Cluster) -> None:
    alpha, beta, _ = cluster.sites
    alpha.request("register_dns", name="both", ip=alpha.address)
    beta.request("register_dns", name="both", ip=beta.address)
    both = {alpha.address, beta.address}
    until(lambda: {*beta.resolve("both").split()} == both, lambda: beta.resolve("both"))
    alpha.request("unregister_dns", name="both")
    until(lambda: beta.resolve("both") == beta.address, lambda: beta.resolve("both"))
    beta.request("unregister_dns", name="both")
    until(lambda: not alpha.resolve("both"), lambda: alpha.resolve("both"))


def test_what_the_cluster_owns_an_orchestrator_does_not_change(cluster: Cluster) -> None:
    alpha, beta, _ = cluster.sites
    key = beta.status["public_key"]
    with pytest.raises(Refused, match="node beta of cluster prod"):
        alpha.request("remove_peer", pubkey=key)
    with pytest.raises(Refused, match="node beta of cluster prod"):
        alpha.request("add_peer", public_key=key, endpoint="", allowed_ips="", persistent_keepalive_secs=0)
    same = {"deployment": "prod", "instance_id": "alpha", "cluster_cidr": CLUSTER, "wg_port": 51820}
    with pytest.raises(Refused, match="slice comes from cluster prod"):
        alpha.request("setup_global_overlay", **same, slice_cidr="10.200.1.0/24")
    alpha.request("setup_global_overlay", **same, slice_cidr=alpha.status["slice_cidr"])
    with pytest.raises(Refused, match="not in this node's part"):
        alpha.request("setup_service_overlay", service="else", mode="auto", subnet=beta.part["block"])


def test_nothing_stops_when_members_and_then_all_of_etcd_are_killed(cluster: Cluster) -> None:
    alpha, beta, gamma = cluster.sites
    running = Ping(alpha.container, beta.address)
    running.wait_for(20)
    for member in cluster.etcd.members:
        member.kill()
        alpha.attach().kill()
        running.wait_for(20)
    before = beta.device_peers()
    alpha.state("disconnected")
    gamma.node.stop()
    gamma.start()  # the network of yesterday
    assert gamma.status["peer_count"] == 2
    ping(gamma.container, alpha.address, count=2)
    assert gamma.resolve("alpha-web") == alpha.address
    gamma.attach("web").kill()
    assert "cluster-disconnected" in [each["code"] for each in alpha.request("doctor")["findings"]]
    with pytest.raises(Refused, match="the store of cluster prod"):
        alpha.request("cluster_check")
    running.wait_for(20)
    assert running.stop() == []
    cluster.etcd.start()
    for site in cluster.sites:
        site.state("connected")
    assert beta.device_peers() == before


def test_attach_takes_no_longer_while_etcd_is_silent_or_gone(cluster: Cluster) -> None:
    """A request that waited for a member that is there and does not answer would take seconds."""
    alpha = cluster.sites[0]

    def attach() -> float:
        container = cluster.lab.container()
        began = time.monotonic()
        alpha.request("attach_container", handle=container.handle, service="web", join_global=False)
        took = time.monotonic() - began
        alpha.request("detach_container", handle=container.handle)
        container.kill()
        return took

    taken: dict[str, list[float]] = {"up": [], "silent": [], "gone": []}
    for _ in range(3):
        taken["up"] += [attach() for _ in range(5)]
        cluster.etcd.stop()
        try:
            taken["silent"] += [attach() for _ in range(5)]
        finally:
            cluster.etcd.go_on()
        cluster.etcd.kill()
        taken["gone"] += [attach() for _ in range(5)]
        cluster.etcd.start()
    print({state: f"{statistics.median(times) * 1000:.1f} ms" for state, times in taken.items()})
    for state in ("silent", "gone"):
        assert min(taken[state]) < 2 * min(taken["up"]), taken
    alpha.state("connected")


def test_history_that_was_compacted_meanwhile_is_listed_and_no_peer_flaps(cluster: Cluster) -> None:
    alpha, beta, _ = cluster.sites
    before, resyncs = alpha.device_peers(), alpha.part["resyncs"]
    cut = "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "
    cut += "add rule inet cut out tcp dport 2379 reject with tcp reset; "
    cut += "add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in tcp sport 2379 drop"
    alpha.node.run(["nft", cut])
    ping(alpha.container, beta.address, count=2)
    beta.request("register_dns", name="late", ip=beta.address)
    until(lambda: "late" in cluster.etcd.ctl("get", "--prefix", "/overlayd/prod/s/name/beta"), "no name in the store")
    for number in range(3):
        cluster.etcd.ctl("put", "unrelated", str(number))
    cluster.etcd.compact()
    alpha.state("disconnected")
    alpha.node.run(["nft", "delete", "table", "inet", "cut"])
    until(lambda: alpha.resolve("late") == beta.address, alpha.node.log_tail)
    assert alpha.part["resyncs"] > resyncs
    assert alpha.device_peers() == before


def test_an_etcd_that_lost_everything_and_then_went_back_removes_nobody(cluster: Cluster) -> None:
    alpha, beta, _ = cluster.sites
    before = alpha.device_peers()
    member = cluster.etcd.members[0]
    running = Ping(alpha.container, beta.address)
    running.wait_for(10)
    cluster.etcd.wipe()
    guarded = until(
        lambda: any("lacks" in site.node.log.read_text() for site in cluster.sites), "no node told that the store lacks"
    )
    assert guarded
    for site in cluster.sites:
        site.state("connected")
        site.knows(2)

    def found() -> list[int]:
        keys = cluster.etcd.ctl("get", "--prefix", "--keys-only", "/overlayd/prod/").split()
        return [sum(part in key for key in keys) for part in ("/b/", "/s/node/")]

    until(lambda: found() == [3, 3], found)  # one that has not heard yet is connected, too
    assert running.stop() == []
    assert alpha.device_peers() == before
    assert member.process is not None


def test_every_node_serves_the_zone_of_the_cluster_and_one_that_was_given_another_is_named(cluster: Cluster) -> None:
    alpha, beta, _ = cluster.sites

    def told(site: Site) -> list[str]:
        findings = site.request("doctor")["findings"]
        return [each["problem"] for each in findings if each["code"] == "cluster-zone"]

    assert beta.resolve("alpha-web.overlay.local") == alpha.address
    with pytest.raises(Refused, match="is not a DNS name"):
        alpha.request("cluster_set", key="zone", value="corp..example")
    alpha.request("cluster_set", key="zone", value="Corp.Example.")
    for site in cluster.sites:
        until(lambda site=site: site.resolve("alpha-web.corp.example") == alpha.address, site.node.log_tail)
        assert site.resolve("alpha-web") == alpha.address
        assert not site.resolve("alpha-web.overlay.local")
    beta.node.stop()
    beta.start("--dns-zone", "other.example")
    (problem,) = until(lambda: told(beta))
    assert problem == "has the zone corp.example, and the name server of this node has other.example"
    assert beta.resolve("alpha-web.other.example") == alpha.address
    beta.node.stop()
    beta.start()
    assert beta.resolve("alpha-web.corp.example") == alpha.address
    alpha.request("cluster_set", key="zone", value="overlay.local")
    until(lambda: beta.resolve("alpha-web.overlay.local") == alpha.address, beta.node.log_tail)
    assert not told(beta)


def test_a_second_node_of_a_name_is_refused_and_told_who_has_it(cluster: Cluster) -> None:
    alpha = cluster.sites[0]
    other = Site(cluster.lab, cluster.etcd, "impostor")
    options = [*cluster.etcd.options, "--cluster", "prod", "--node", "alpha"]
    alpha.is_present()
    code, log = other.node.try_daemon(other.node.daemon_argv(*options))
    assert code == 78
    assert "node alpha is registered by another installation (seen" in log
    assert f"at {alpha.node.address}" in log
    ping(alpha.container, cluster.sites[1].address, count=2)


def test_a_copied_data_directory_is_refused_and_its_device_goes(cluster: Cluster) -> None:
    alpha, beta, _ = cluster.sites
    alpha.is_present()
    twin = Site(cluster.lab, cluster.etcd, "twin")
    twin.node.machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    shutil.copytree(alpha.node.data_dir, twin.node.data_dir)
    argv = twin.node.daemon_argv(*cluster.etcd.options, "--cluster", "prod", "--node", "alpha")
    code, log = twin.node.try_daemon(argv)
    assert code == 78
    assert "node alpha runs on another machine with a copy of this data directory (seen" in log
    assert not twin.node.wireguard_pids()
    ping(alpha.container, beta.address, count=2)


def test_other_addresses_than_the_cluster_has_are_refused(cluster: Cluster) -> None:
    other = Site(cluster.lab, cluster.etcd, "delta")
    options = [*other.options, "--cluster-cidr", "10.201.0.0/16"]
    code, log = other.node.try_daemon(other.node.daemon_argv(*options))
    assert code == 78
    assert "cluster prod has 10.200.0.0/16 in blocks of /24, not 10.201.0.0/16" in log


@pytest.mark.parametrize(
    "options, told",
    [
        (["--etcd", "http://192.0.2.1:2379"], "would send keys, names and passwords in the clear"),
        (["--etcd", "ftp://192.0.2.1"], "write http://HOST:PORT"),
        (["--etcd", "https://192.0.2.1", "--node", "No_Name"], "is not a name of lower-case letters"),
        (["--etcd", "https://192.0.2.1", "--cluster-cidr", "10.0.0.0/24"], "block_prefix 24 does not divide"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_touched(
    cluster: Cluster, options: list[str], told: str
) -> None:
    node = cluster.sites[0].node
    argv = [*node.program, "--data-dir", "/nonexistent", "--socket", "/nonexistent/s", "--cluster", "prod", *options]
    code, log = node.try_daemon(argv)
    assert (code, told in log) == (78, True), log


def test_a_node_that_is_killed_goes_when_the_cluster_wants_that_and_its_block_is_used_last(cluster: Cluster) -> None:
    alpha, beta, gamma = cluster.sites
    with pytest.raises(Refused, match=r"node_ttl_secs 1: 4 s is the shortest, 0 is never; .* \(86400 is a day\)"):
        alpha.request("cluster_set", key="node_ttl_secs", value="1")
    for key, value, told in (
        ("node_ttl_secs", "7d", "'7d' is not a value of node_ttl_secs: give a whole number of seconds, 0 for never"),
        ("node_ttl_secs", "-1", "'-1' is not a value of node_ttl_secs"),
        ("rate", "nan", "'nan' is not a value of rate: give a number of events a second, above 0"),
        ("node_ttl", "9", "'node_ttl' cannot be set; "),
    ):
        with pytest.raises(Refused, match=told):
            alpha.request("cluster_set", key=key, value=value)
    alpha.node.overlayctl("cluster", "set", "node_ttl_secs=4")
    block, peers = gamma.part["block"], alpha.device_peers()
    gamma.is_present()
    with pytest.raises(Refused, match="node gamma lives"):
        alpha.request("cluster_remove_node", node="gamma")
    with pytest.raises(Refused, match=r"there is no node gama in the store; did you mean gamma\?"):
        alpha.request("cluster_remove_node", node="gama")
    alpha.node.overlayctl("cluster", "nodes")
    log = alpha.node.log.read_text()
    for told in ("cluster_set node_ttl_secs 4: done", "cluster_remove_node gama: refused, there is no node"):
        assert f"audit: {told}" in log
    assert "audit: cluster_nodes" not in log, "who only looks is not told of"
    gamma.node.kill()
    gamma.lose_presence()
    alpha.knows(1)
    beta.knows(1)
    assert len(alpha.device_peers()) == len(peers) - 1
    until(lambda: not alpha.resolve("gamma-web"), alpha.node.log_tail)
    assert '"freed"' in cluster.etcd.ctl("get", f"/overlayd/prod/b/{block.replace('/', '-')}")
    alpha.node.overlayctl("cluster", "set", "node_ttl_secs=0")
    gamma.start()  # its block is free: it takes that again
    gamma.join()
    alpha.knows(2)
    assert gamma.part["block"] == block
    until(lambda: alpha.resolve("gamma-web"), "the name did not come back")


def test_a_node_that_leaves_is_gone(cluster: Cluster) -> None:
    alpha, beta, gamma = cluster.sites
    with pytest.raises(Refused, match="still has service web"):
        gamma.request("cluster_leave")
    gamma.request("cluster_leave", force=True)
    alpha.knows(1)
    beta.knows(1)
    assert gamma.status["peer_count"] == 0


def test_a_daemon_without_etcd_imports_nothing_of_it(lab: Lab) -> None:
    node = lab.node("alone")
    node.start()
    maps = node.run(["sh", "-c", "ls /proc"])
    assert maps
    found = "[m for m in sys.modules if m in ('h11', 'h2') or 'cluster.' in m]"
    code = f"import sys; import overlayd.daemon.main; print({found})"
    assert node.run([node.program[0], "-c", code]).strip() in ("[]", "['overlayd.wire.cluster']")
    node.stop()


def test_waiting_for_a_cluster_to_be_made(lab: Lab) -> None:
    with Etcd(lab, name="w") as etcd:
        site = Site(lab, etcd, "first")
        path = lab.directory / "notify"
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(path))
        told.settimeout(LIMIT)
        site.node.program = ["env", f"NOTIFY_SOCKET={path}", *site.node.program]
        site.start()
        until(lambda: "waiting for cluster init" in site.part.get("error", ""), lambda: site.part)
        waits = "not set up: cluster prod: waiting for cluster init (overlayctl cluster init, or --cluster-cidr)"
        assert site.node.overlayctl("status").startswith(f"{waits}\n")
        assert site.node.try_overlayctl("ready")[:2] == (4, f"not ready: {waits}\n")
        assert "; make it (overlayctl cluster init CIDR), or correct --cluster" in site.node.overlayctl("doctor")
        for words in (("why", "a", "b", "--json"), ("ping", "a")):
            code, printed, complained = site.node.try_overlayctl(*words)
            assert (code, printed, "not set up on this node" in complained) == (4, "", True)
        with pytest.raises(Refused, match="it comes with this node's block of cluster prod"):
            site.request("setup_service_overlay", service="web", mode="auto")
        for taken, told_so in (("172.31.0.0/16", "cut this host off"), ("127.0.0.0/8", "each host has for itself")):
            with pytest.raises(Refused, match=told_so):
                site.request("cluster_init", cluster_cidr=taken)
        # The service manager lets the start go on, for it takes a person.
        assert told.recv(200) == b"EXTEND_TIMEOUT_USEC=60000000\nSTATUS=has not joined the cluster yet"
        site.node.overlayctl("cluster", "init", "10.210.0.0/16", "--block-prefix", "25", "--service-share", "0")
        site.join()
        assert site.part["block"].endswith("/25")
        assert site.status["slice_cidr"] == site.part["block"]
        assert told.recv(200) == b"READY=1\nSTATUS="
        with pytest.raises(Refused, match="made already"):
            site.request("cluster_init", cluster_cidr="10.210.0.0/16")
        site.node.stop()
        told.close()


def test_daemon_exits_when_the_directory_is_of_another_cluster(lab: Lab) -> None:
    with Etcd(lab, name="d") as etcd:
        site = Site(lab, etcd, "mover")
        site.start("--cluster-cidr", "10.210.0.0/16")
        site.join()
        site.node.stop()
        with pytest.raises(DaemonExited, match="this node is in cluster prod, not test"):
            site.node.start(*etcd.options, "--cluster", "test", "--node", "mover")
