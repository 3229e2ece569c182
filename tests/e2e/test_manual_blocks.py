"""Blocks of the manual that no other test pastes, as they stand there: docs/cluster.md, docs/operations.md, and what
docs/install.md says of a service without a package.  Addresses and directories are replaced, and what a host has and a
namespace has not: systemctl, networkctl, nmcli.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lab import Lab
from lab.certificates import certify
from lab.cluster import Member
from lab.etcd import Etcd
from lab.node import Node
from lab.patience import until
from lab.processes import ROOT, environment
from lab.root_copy import run_in_copy
from lab.sites import Site
from pages import blocks

OURS = """
overlayd() { "$PYTHON" -c 'from overlayd.cli import daemon; daemon()' "$@"; }
overlayctl() { "$PYTHON" -c 'from overlayd.cli import control; control()' "$@"; }
"""


def paste(node: Node, block: str, **variables: str) -> str:
    """Run a block in a shell of a node; what fails in it fails the test."""
    given = {"PYTHON": sys.executable, "OVERLAYD_SOCKET": str(node.socket), **variables}
    exports = "".join(f"export {name}='{value}'\n" for name, value in given.items())
    return node.run(["bash", "-euc", f"{exports}{OURS}{block}"])


# --- docs/cluster.md --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def etcd(lab: Lab) -> Iterator[Etcd]:
    """Three members with TLS at the addresses of the page."""
    directory = lab.directory / "etc"
    directory.mkdir()
    ca = certify(directory, "ca", None)
    certify(directory, "node", ca)
    etcd = Etcd(lab, 3, scheme="https")
    for number, member in enumerate(etcd.members, 1):
        server = certify(directory, f"server{number}", ca, f"10.0.0.{number}")
        member.node.run(["ip", "address", "add", f"10.0.0.{number}/24", "dev", "uplink"])
        member.url = f"https://10.0.0.{number}:2379"
        member.options += ["--client-cert-auth", "--trusted-ca-file", str(ca), "--cert-file", str(server)]
        member.options += ["--key-file", str(server.with_suffix(".key"))]
    node = directory / "node"
    etcd.ctl_options = ["--cacert", str(ca), "--cert", f"{node}.pem", "--key", f"{node}.key"]
    with etcd:
        yield etcd


def test_a_cluster_is_made_and_its_roles_are_given_as_the_page_says(lab: Lab, etcd: Etcd) -> None:
    start, init, roles, _ = (block.replace("/etc/overlayd", str(lab.directory / "etc")) for block in blocks("cluster"))
    readme = next(block for block in blocks("README") if block.startswith("overlayd --etcd"))
    assert readme.split()[:3] == start.split(",")[0].split()[:3], "the same etcd"
    made = [Site(lab, etcd, name) for name in ("alpha", "beta")]
    for number, site in enumerate(made, 11):
        site.node.run(["ip", "address", "add", f"10.0.0.{number}/24", "dev", "uplink"])
        site.node.program = ["bash", "-c", f'{OURS}{start.rstrip()} "$@"', "bash"]
        name, address = ["--node", site.node.name], ["--advertise", site.node.endpoint(51820)]
        with site.node.log.open("ab") as log:
            program = site.node.command(site.node.daemon_argv(*name, *address))
            settings = environment(site.node.prefix) | {"PYTHON": sys.executable}
            site.node.daemon = subprocess.Popen(program, stdout=log, stderr=log, env=settings, start_new_session=True)
        until(site.node.socket.exists, site.node.log_tail)
    until(lambda: "waiting for cluster init" in made[0].part.get("error", ""), lambda: made[0].part)
    assert "alpha *" in paste(made[0].node, init)
    for site in made:
        site.join()
        site.knows(1)
    member = etcd.members[0]
    tls = {
        "ETCDCTL_CACERT": etcd.ctl_options[1],
        "ETCDCTL_CERT": etcd.ctl_options[3],
        "ETCDCTL_KEY": etcd.ctl_options[5],
    }
    paste(member.node, roles, ETCDCTL_API="3", ETCDCTL_ENDPOINTS=member.url, **tls)
    assert "/overlayd/prod/" in etcd.ctl("role", "get", "overlayd")
    assert "overlayd" in etcd.ctl("user", "get", "node")


def test_the_readme_installs_the_plugin_as_its_page_does() -> None:
    """Which a test of container runtimes follows."""
    (install,) = [block for block in blocks("README") if block.startswith("overlayctl cni")]
    assert blocks("cni")[0].startswith(install)


# --- docs/operations.md -----------------------------------------------------------------------------------------------


def test_operations(lab: Lab) -> None:
    whoami, nat = blocks("operations")
    member = Member(lab, 1, "operated")
    identity = member.node.run_directory / "overlayd" / "identity.json"
    identity.parent.mkdir()
    member.start("--identity-file", "/run/overlayd/identity.json")
    assert "verified" in paste(member.node, whoami)
    shown = paste(member.node, f"overlayctl call set_local_node_id node_id=1\n{nat}")
    assert json.loads(shown.partition("}\n")[2].partition("\n}")[0] + "\n}")["result"] != "err"
    status = member.request("status")
    assert (status["node_ip"], status["wg_port"]) == ("10.200.1.1", 51820)
    assert "turn.example" in shown


# --- docs/install.md --------------------------------------------------------------------------------------------------


def test_a_service_without_a_package() -> None:
    """What pip installs is tested by `make deb` and tests/test_distribution.py; here stands a program for it."""
    service = blocks("install")[1]
    install, *rest = service.splitlines()
    assert install == "python3 -m venv /opt/overlayd && /opt/overlayd/bin/pip install ."
    shown = run_in_copy(
        f"""
        cd /run/checkout
        getent group overlayd > /dev/null && groupdel overlayd
        mkdir -p /opt/overlayd/bin && ln -s /bin/true /opt/overlayd/bin/overlayd
        systemctl() {{
          [ "$1" = daemon-reload ] || command systemctl --root=/ "$1" "$3"
        }}
        {chr(10).join(rest)}
        systemd-analyze verify overlayd.service overlayd.socket
        getent group overlayd
        stat -c '%n %a %G' /run/overlayd
        find /etc/systemd/system -name 'overlayd.*' -printf '%P\\n' | sort
        """,
        {"checkout/deploy": ROOT / "deploy"},
    )
    assert "\noverlayd:x:" in f"\n{shown}"
    enabled = {"multi-user.target.wants/overlayd.service", "sockets.target.wants/overlayd.socket"}
    assert enabled <= {*shown.splitlines()}


def test_networkd_and_networkmanager_are_told() -> None:
    shown = run_in_copy(
        f"""
        cd /run/checkout
        mkdir -p /etc/systemd/network /etc/NetworkManager/conf.d
        networkctl() {{ echo "networkctl $*"; }}
        nmcli() {{ echo "nmcli $*"; }}
        {blocks("install")[3]}
        cmp deploy/overlayd.network /etc/systemd/network/10-overlayd.network
        cmp deploy/overlayd.networkmanager.conf /etc/NetworkManager/conf.d/overlayd.conf
        """,
        {"checkout/deploy": ROOT / "deploy"},
    )
    assert shown.splitlines() == ["networkctl reload", "nmcli general reload"]


def test_it_is_well(lab: Lab) -> None:
    member = Member(lab, 2, "well")
    member.start()
    member.set_up()
    lines = paste(member.node, blocks("install")[4]).splitlines()
    assert lines[0].startswith("all is well")
    assert lines[-1] == "ready"
