"""What somebody reads who has just written down where the etcd is, and is wrong: each mistake is told by `cluster
status`, the doctor and the log, with what to do, and nothing but the store is waited for.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import DaemonExited, Lab, Refused, ping
from lab.certificates import certify
from lab.etcd import Etcd
from lab.node import Node
from lab.patience import until
from lab.sites import Site


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def plain(lab: Lab) -> Iterator[Etcd]:
    with Etcd(lab, name="p") as etcd:
        yield etcd


class Secure:
    """An etcd with TLS that wants certificates of its clients, and files of all kinds for one."""

    def __init__(self, lab: Lab) -> None:
        self.directory = lab.directory / "newcomers"
        self.directory.mkdir()
        self.ca, self.stranger = certify(self.directory, "ca", None), certify(self.directory, "stranger", None)
        self.etcd = Etcd(lab, scheme="https", name="t")
        self.member = self.etcd.members[0]
        self.client = certify(self.directory, "client", self.ca)
        ours = ["--cacert", self.ca, "--cert", self.client, "--key", self.client.with_suffix(".key")]
        self.etcd.ctl_options = list(map(str, ours))
        self.member.options += ["--client-cert-auth", "--trusted-ca-file", str(self.ca)]
        self.present(certify(self.directory, "server", self.ca, self.address))

    @property
    def address(self) -> str:
        return str(self.member.node.address)

    def present(self, certificate: Path) -> None:
        """Have etcd present this certificate, from its next start on."""
        options = self.member.options
        if "--cert-file" in options:
            del options[options.index("--cert-file") :]
        options += ["--cert-file", str(certificate), "--key-file", str(certificate.with_suffix(".key"))]

    def start_again(self) -> None:
        self.member.kill()
        self.member.start(self.etcd.initial)
        until(lambda: "ready to serve client requests" in self.member.node.log.read_text())


@pytest.fixture(scope="module")
def secure(lab: Lab) -> Iterator[Secure]:
    made = Secure(lab)
    with made.etcd:
        yield made


def told(lab: Lab, etcd: Etcd, options: list[str], failing: str) -> None:
    """A daemon with these options says `failing`, a regular expression, wherever a person looks."""
    site = Site(lab, etcd, f"new{len(lab.nodes)}")
    site.node.start("--cluster", "prod", "--node", "new", "--cluster-cidr", "10.200.0.0/16", *options)
    try:
        until(lambda: re.search(failing, site.part.get("error") or ""), lambda: site.part)
        assert site.part["state"] == "disconnected"
        (finding,) = [each for each in site.request("doctor")["findings"] if each["code"] == "cluster-disconnected"]
        assert re.search(failing, finding["problem"]), finding
        assert "\n" not in finding["problem"]
        assert re.search(failing, site.node.log_tail())
        assert re.search(failing, site.node.overlayctl("cluster", "status"))
    finally:
        site.node.stop()


@contextmanager
def web_server(node: Node) -> Iterator[None]:
    program = node.command(["python3", "-m", "http.server", "8000"])
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            until(lambda: node.run(["ss", "-Hltn", "sport = :8000"]))
            yield
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("scheme", "port", "failing"),
    [
        ("http", 2399, r"http://\S+:2399: Connection refused"),
        ("http", 2380, r"http://\S+:2380: no answer of etcd, HTTP status 404: is this its port for clients\?"),
        ("http", 8000, r"http://\S+:8000: no answer of etcd, HTTP status 501: is this its port for clients\? \w"),
        ("https", 2379, r"https://\S+:2379: TLS: .*may be http://"),
    ],
    ids=["nobody listens", "the members' port", "a web server", "https to http"],
)
def test_a_wrong_url(lab: Lab, plain: Etcd, scheme: str, port: int, failing: str) -> None:
    node = plain.members[0].node
    url = f"{scheme}://{node.address}:{port}"
    with web_server(node):
        told(lab, plain, ["--etcd", url, "--etcd-insecure"], failing)


def test_a_name_that_is_none(lab: Lab, plain: Etcd) -> None:
    told(
        lab,
        plain,
        ["--etcd", "http://etcd.invalid:2379", "--etcd-insecure"],
        r"etcd\.invalid:2379: .*resolution|not known",
    )


def test_http_to_an_etcd_with_tls(lab: Lab, secure: Secure) -> None:
    url = f"http://{secure.address}:2379"
    told(lab, secure.etcd, ["--etcd", url, "--etcd-insecure"], r"may be https://|HTTP request to an HTTPS server")


# What is given, and what is said.  {d}: the directory of the files.
FILES: dict[str, tuple[str, str]] = {
    "nothing": ("", r"signed by nobody whom this host trusts, so give --etcd-ca \(unable to get local issuer"),
    "another authority": ("--etcd-ca {d}/stranger.pem", r"nobody whom --etcd-ca \S+/stranger\.pem trusts"),
    "no authority file": ("--etcd-ca /nowhere/ca.pem", r"--etcd-ca /nowhere/ca\.pem: No such file or directory"),
    "an authority that is none": ("--etcd-ca {d}/text", r"--etcd-ca \S+/text: there is no certificate in it"),
    "no certificate of ours": ("--etcd-ca {d}/ca.pem", r"wants a certificate of ours, so give --etcd-cert"),
    "no certificate file": (
        "--etcd-ca {d}/ca.pem --etcd-cert /nowhere/c.pem",
        r"--etcd-cert /nowhere/c\.pem: No such file or directory",
    ),
    "no key": ("--etcd-ca {d}/ca.pem --etcd-cert {d}/client.pem", r"its key is not in it, so it takes --etcd-key"),
    "a key that is none": (
        "--etcd-ca {d}/ca.pem --etcd-cert {d}/client.pem --etcd-key {d}/text",
        r"--etcd-key \S+/text: there is no key in it",
    ),
    "the key of another": (
        "--etcd-ca {d}/ca.pem --etcd-cert {d}/client.pem --etcd-key {d}/server.key",
        r"--etcd-key \S+/server\.key is not the key of --etcd-cert \S+/client\.pem",
    ),
    "an expired certificate": (
        "--etcd-ca {d}/ca.pem --etcd-cert {d}/old.pem --etcd-key {d}/old.key",
        r"refuses our certificate, --etcd-cert \S+/old\.pem: .*valid now\?",
    ),
    "a certificate of a stranger": (
        "--etcd-ca {d}/ca.pem --etcd-cert {d}/foreign.pem --etcd-key {d}/foreign.key",
        r"refuses our certificate, --etcd-cert \S+/foreign\.pem: is that signed by who",
    ),
}


@pytest.mark.parametrize("given", FILES)
def test_wrong_files_of_tls(lab: Lab, secure: Secure, given: str) -> None:
    options, failing = FILES[given]
    (secure.directory / "text").write_text("not PEM\n")
    match given:
        case "an expired certificate":
            certify(secure.directory, "old", secure.ca, days=("20200101000000Z", "20200201000000Z"))
        case "a certificate of a stranger":
            certify(secure.directory, "foreign", secure.stranger)
    files = options.format(d=secure.directory).split()
    told(lab, secure.etcd, ["--etcd", secure.etcd.urls, *files], failing)


LONG_AGO, LATER = ("20200101000000Z", "20200201000000Z"), ("20450101000000Z", "20460101000000Z")


@pytest.mark.parametrize(
    ("address", "days", "failing"),
    [
        ("", LONG_AGO, r"its certificate has expired, or the clock here is wrong: it says 20\d\d-"),
        ("", LATER, r"its certificate is not yet valid, or the clock here is wrong: it says 20\d\d-"),
        ("192.0.2.250", None, r"its certificate is another server's: .*not valid for"),
    ],
    ids=["expired", "not yet valid", "of another server"],
)
def test_a_certificate_of_the_server_that_does_not_count(
    lab: Lab, secure: Secure, address: str, days: tuple[str, str] | None, failing: str
) -> None:
    secure.present(certify(secure.directory, "wrong", secure.ca, address or secure.address, days=days))
    secure.start_again()
    ours = f"--etcd-ca {secure.ca} --etcd-cert {secure.client} --etcd-key {secure.client.with_suffix('.key')}".split()
    told(lab, secure.etcd, ["--etcd", secure.etcd.urls, *ours], failing)


def test_who_we_are_to_an_etcd_with_users(lab: Lab) -> None:
    with Etcd(lab, name="u") as etcd:
        store = ["--etcd", etcd.urls, "--etcd-insecure"]
        password = lab.directory / "password"
        password.write_text("x\n")
        nobody = [*store, "--etcd-user", "nobody", "--etcd-password-file", str(password)]
        told(lab, etcd, nobody, r"authentication is not enabled: leave --etcd-user out, or etcdctl auth enable")
        for command in ("user add root:r", "user grant-role root root", "user add nobody:x", "auth enable"):
            etcd.ctl(*command.split())
        told(lab, etcd, store, r"user name is empty: it wants a user: give --etcd-user and --etcd-password-file")
        told(lab, etcd, nobody, r"permission denied: to read and write /overlayd/prod/, for user nobody \(etcdctl role")
        password.write_text("wrong\n")
        told(lab, etcd, nobody, r"authentication failed, .*of --etcd-user nobody; the password is in \S+/password")
        told(lab, etcd, [*nobody[:-1], "/nowhere"], r"password file /nowhere: No such file or directory")


def test_a_node_that_has_another_name_now_is_told_its_old_one(lab: Lab, plain: Etcd) -> None:
    site = Site(lab, plain, "renamed")
    site.start("--cluster-cidr", "10.200.0.0/16")
    site.join()
    site.node.stop()
    name = site.options.index("--node") + 1
    options = [*site.options[:name], "another", *site.options[name + 1 :]]
    told = "this node is renamed in cluster prod, not another: leave first .* start with --node renamed"
    with pytest.raises(DaemonExited, match=told):
        site.node.start(*options)
    site.start()  # and nothing is lost
    site.state("connected")
    site.request("cluster_leave", force=True)
    site.node.stop()
    site.node.start(*options)
    site.join()
    assert site.part["node"] == "another"
    site.request("cluster_leave")
    site.node.stop()


def test_a_host_that_is_called_otherwise_by_now_stays_the_node_that_it_is(lab: Lab, plain: Etcd) -> None:
    site = Site(lab, plain, "cloud")
    program, at = site.node.program, site.options.index("--node")
    del site.options[at : at + 2]

    def start(host: str) -> None:
        site.node.program = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *program]
        site.start("--cluster-cidr", "10.200.0.0/16")
        site.state("connected")

    start("ip-10-0-0-7")
    site.join()
    block = site.part["block"]
    site.node.stop()
    start("ip-10-0-0-8")
    assert (site.part["node"], site.part["block"]) == ("ip-10-0-0-7", block)
    assert "this host is called ip-10-0-0-8 now, and stays node ip-10-0-0-7" in site.node.log.read_text()
    site.request("cluster_leave")
    site.node.stop()
    start("ip-10-0-0-8")
    site.join()
    assert site.part["node"] == "ip-10-0-0-8"
    site.request("cluster_leave")
    site.node.stop()


def test_a_machine_in_the_place_of_one_that_burned_is_told_how_to_take_its_name(lab: Lab, plain: Etcd) -> None:
    made = [Site(lab, plain, name) for name in ("keeper", "burned")]
    for site in made:
        site.start("--cluster-cidr", "10.200.0.0/16")
        site.join()
        site.serve()
    keeper, burned = made
    keeper.knows(1)
    until(lambda: keeper.resolve("burned-web") == burned.address, keeper.node.log_tail)
    burned.is_present()
    burned.node.kill()
    burned.node.run(["ip", "link", "set", "uplink", "down"])
    place = Site(lab, plain, "place")
    place.options[place.options.index("--node") + 1] = "burned"
    code, log = place.node.try_daemon(place.node.daemon_argv(*place.options))
    assert code == 78
    assert "node burned is registered by another installation" in log
    assert "choose --node, or `overlayctl cluster remove-node burned`" in log
    with pytest.raises(Refused, match=r"node burned lives at .*counts as gone after 60 s"):
        keeper.request("cluster_remove_node", node="burned")
    burned.lose_presence()
    keeper.node.overlayctl("cluster", "remove-node", "burned")
    keeper.knows(0)
    place.start()
    place.join()
    place.serve()
    place.knows(1)
    keeper.knows(1)
    until(lambda: not keeper.resolve("burned-web"), keeper.node.log_tail)
    until(lambda: keeper.resolve("place-web") == place.address, keeper.node.log_tail)
    ping(keeper.container, place.address, count=2)
    for site in (keeper, place):
        site.node.stop()


def test_addresses_that_this_host_lives_in_make_no_cluster(lab: Lab, plain: Etcd) -> None:
    """What is made once, for all nodes, is not made to fail: the next start may choose better."""
    site = Site(lab, plain, "maker")
    site.options[site.options.index("--cluster") + 1] = "choosing"
    code, log = site.node.try_daemon(site.node.daemon_argv(*site.options, "--cluster-cidr", "172.31.0.0/16"))
    assert code == 78, log
    assert re.search(r"choosing is not made: cluster_cidr 172\.31\.0\.0/16 overlaps with .* on uplink", log), log
    assert not plain.ctl("get", "--prefix", "/overlayd/choosing/s/")
    site.start("--cluster-cidr", "10.201.0.0/16")
    site.join()
    site.node.stop()


def test_a_start_that_forgets_the_etcd_is_told(lab: Lab, plain: Etcd) -> None:
    site = Site(lab, plain, "forgets")
    site.options[site.options.index("--cluster") + 1] = "forgotten"
    site.start("--cluster-cidr", "10.202.0.0/16")
    site.join()
    site.node.stop()
    site.node.start()
    told = "cluster forgotten is not followed, though this node is of it: overlayd was started without --etcd"
    assert f"warning daemon.main: {told}; news of other nodes" in site.node.log.read_text()
    (found,) = [each for each in site.request("doctor")["findings"] if each["code"] == "cluster-disconnected"]
    assert told == f"{found['object']} {found['problem']}"
    assert found["remedy"].startswith("start it with --etcd and --cluster forgotten")
    until(lambda: site.node.overlayctl("status").startswith("NOT well: 1 thing is wrong"), site.node.log_tail)
    site.node.stop()
    site.start()
    site.state("connected")
    assert "cluster-disconnected" not in [each["code"] for each in site.request("doctor")["findings"]]
    site.node.stop()


def test_a_node_that_left_with_addresses_held_joins_with_them_unless_another_has_its_block(
    lab: Lab, plain: Etcd
) -> None:
    site = Site(lab, plain, "again")
    site.options[site.options.index("--cluster") + 1] = "anew"
    site.start("--cluster-cidr", "10.203.0.0/16")
    site.join()
    block = site.part["block"]
    entry = f"/overlayd/anew/b/{block.replace('/', '-')}"
    site.request("setup_service_overlay", service="web", mode="auto")
    with lab.container() as container:
        attach = {"handle": container.handle, "service": "web", "join_global": True}
        address = site.request("attach_container", **attach)["ip"]
        site.node.overlayctl("cluster", "leave", "--force")
        remedies = {each["code"]: each["remedy"] for each in site.request("doctor")["findings"]}
        assert remedies["cluster-disconnected"] == "start overlayd without --etcd, or with it to join again"
        assert "freed" in plain.ctl("get", entry)
        site.node.stop()
        site.start()
        site.state("connected")
        assert site.part["block"] == block
        assert site.request("attach_container", **attach)["ip"] == address
        assert "again" in plain.ctl("get", entry)
        site.node.overlayctl("cluster", "leave", "--force")
        site.node.stop()
        plain.ctl("put", entry, '{"node":"other","instance":"0123456789abcdef0123456789abcdef"}')
        site.start()
        until(lambda: "would orphan live addresses" in site.part.get("error", ""), lambda: site.part)
        assert site.part["block"] != block
        (found,) = [each for each in site.request("doctor")["findings"] if each["code"] == "cluster-disconnected"]
        assert found["remedy"].startswith("do what it says")
        site.request("detach_container", handle=container.handle)
        site.request("teardown_service_overlay", service="web")
    site.state("connected")
    assert "error" not in site.part
    site.node.stop()
