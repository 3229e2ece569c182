"""Who we are to etcd: TLS with certificates that are renewed, users whose tokens expire, roles that forbid."""

import re
import time
from pathlib import Path

from lab import Lab, run
from lab.certificates import OPENSSL, certify
from lab.etcd import Etcd
from lab.patience import until
from lab.sites import Site


def test_certificates_are_read_anew_for_each_connection(lab: Lab) -> None:
    directory = lab.directory / "tls"
    directory.mkdir()
    ca, stranger = certify(directory, "ca", None), certify(directory, "stranger-ca", None)
    etcd = Etcd(lab, scheme="https", name="t")
    member = etcd.members[0]
    server = certify(directory, "server", ca, str(member.node.address))
    client = certify(directory, "client", ca)
    member.options += ["--client-cert-auth", "--trusted-ca-file", str(ca), "--cert-file", str(server)]
    member.options += ["--key-file", str(server.with_suffix(".key"))]
    etcd.ctl_options = ["--cacert", str(ca), "--cert", str(client), "--key", str(client.with_suffix(".key"))]
    ours = directory / "ours.pem"
    ours.write_text(client.read_text() + client.with_suffix(".key").read_text())
    with etcd:
        site = Site(lab, etcd, "alpha", ["--etcd-ca", str(ca), "--etcd-cert", str(ours)])
        site.start("--cluster-cidr", "10.200.0.0/16")
        site.join()
        site.state("connected")
        # A certificate of nobody whom etcd trusts: the stream that is open goes on, the next connection is refused.
        other = certify(directory, "other", stranger)
        ours.write_text(other.read_text() + other.with_suffix(".key").read_text())
        member.kill()
        site.state("disconnected")
        etcd.start()
        until(lambda: "TLS" in site.part.get("error", "") or "closed" in site.part.get("error", ""), lambda: site.part)
        renewed = certify(directory, "renewed", ca)
        ours.write_text(renewed.read_text() + renewed.with_suffix(".key").read_text())
        site.state("connected")
        # An etcd that is not the one we trust.
        site.node.stop()
        site.node.start(*site.options, "--etcd-ca", str(stranger))
        until(lambda: "TLS" in site.part.get("error", ""), lambda: site.part)
        site.node.stop()


def test_a_user_whose_token_expires_and_one_who_may_not(lab: Lab) -> None:
    directory = lab.directory / "users"
    directory.mkdir()
    private, public = directory / "jwt.key", directory / "jwt.pub"
    run([OPENSSL, "genrsa", "-out", str(private), "2048"])
    run([OPENSSL, "rsa", "-in", str(private), "-pubout", "-out", str(public)])
    token = f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=3s"
    with Etcd(lab, options=["--auth-token", token], name="u") as etcd:
        etcd.ctl("user", "add", "root:r")
        etcd.ctl("user", "grant-role", "root", "root")
        etcd.ctl("role", "add", "overlayd")
        etcd.ctl("role", "grant-permission", "overlayd", "--prefix=true", "readwrite", "/overlayd/prod/")
        etcd.ctl("user", "add", "node:secret")
        etcd.ctl("user", "grant-role", "node", "overlayd")
        etcd.ctl("auth", "enable")
        password = directory / "password"
        password.write_text("wrong\n")
        user = ["--etcd-user", "node", "--etcd-password-file", str(password)]
        site = Site(lab, etcd, "beta", user)
        site.start("--cluster-cidr", "10.200.0.0/16")
        until(lambda: "authentication failed" in site.part.get("error", ""), lambda: site.part)
        password.write_text("secret\n")
        site.join()
        site.state("connected")
        for number in range(4):  # longer than a token lives
            site.request("register_dns", name=f"n{number}", ip="10.200.0.9")
            until(
                lambda number=number: f"n{number}" in etcd.ctl("--user", "root:r", "get", "/overlayd/prod/s/name/beta"),
                site.node.log_tail,
            )
            time.sleep(1)
        assert site.part["state"] == "connected"
        forbidden = Site(lab, etcd, "gamma", user)
        forbidden.options[forbidden.options.index("prod")] = "other"
        forbidden.start("--cluster-cidr", "10.200.0.0/16")
        until(lambda: "permission denied" in forbidden.part.get("error", ""), lambda: forbidden.part)


def test_a_role_for_each_node_as_the_page_has_it(lab: Lab) -> None:
    """All that a node does for itself; only what removes others takes more, and is told."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    (block,) = re.findall(r"```\n(etcdctl role add node-1\n.*?)```", page, re.DOTALL)
    password = lab.directory / "of-each"
    password.write_text("PASSWORD\n")
    with Etcd(lab, name="r") as etcd:
        for words in (["user", "add", "root:r"], ["user", "grant-role", "root", "root"]):
            etcd.ctl(*words)
        for name in ("node-1", "node-2"):
            where = f"export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={etcd.members[0].url}\n"
            etcd.members[0].node.run(["sh", "-ec", where + block.replace("node-1", name)])
        etcd.ctl("auth", "enable")
        etcd.ctl_options = ["--user", "root:r"]
        one, two = (
            Site(lab, etcd, name, ["--etcd-user", name, "--etcd-password-file", str(password)])
            for name in ("node-1", "node-2")
        )
        one.start("--cluster-cidr", "10.200.0.0/16")
        two.start()
        for site in (one, two):
            site.join()
            site.knows(1)
            site.serve()
        until(lambda: one.resolve("node-2-web") == two.address, one.node.log_tail)
        for number in range(600):  # more than one entry of the store takes
            two.request("register_dns", name=f"{number}-{'long.' * 12}example", ip=two.address)
        until(lambda: one.resolve(f"599-{'long.' * 12}example") == two.address, one.node.log_tail)
        assert "/s/name/node-2/1" in etcd.ctl("get", "--prefix", "--keys-only", "/overlayd/prod/s/name/")
        one.node.overlayctl("cluster", "set", "node_ttl_secs=4")
        until(
            lambda: "cluster-janitor" in [each["code"] for each in one.request("doctor")["findings"]], one.node.log_tail
        )
        assert "nodes that are gone are not removed: " in one.node.log.read_text()
        one.node.overlayctl("cluster", "set", "node_ttl_secs=0")
        two.node.overlayctl("cluster", "leave", "--force")
        one.knows(0)
        for site in (one, two):
            site.node.stop()
