"""Upstream servers that behave badly, with a dnsmasq in overlayd's place: what it answers, overlayd does too."""

import subprocess
from collections.abc import Iterator

import pytest
from lab import Lab
from lab.cluster import Member
from lab.patience import until
from lab.processes import CommandFailed, environment
from lab.upstreams import Upstream, cases

FIRST, SECOND = "127.0.0.21", "127.0.0.22"
PORT = 5353  # dnsmasq's
NAMES = [f"n{number}.example.org" for number in range(10)]
CASES = cases()


@pytest.fixture(scope="module")
def member() -> Iterator[Member]:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        member.set_up_service("web")
        yield member


def resolves(member: Member, server: str, name: str, *options: str) -> bool:
    try:
        return "192.0.2.80" in member.node.run(["dig", "+short", "+tries=2", "+time=5", *options, f"@{server}", name])
    except CommandFailed:
        return False


@pytest.mark.parametrize("edns", ["+edns=0", "+noedns"])
@pytest.mark.parametrize("case", CASES)
def test_what_dnsmasq_resolves_overlayd_resolves(member: Member, case: str, edns: str) -> None:
    behaviour = CASES[case]
    servers = [FIRST, SECOND] if behaviour.second else [FIRST]
    gateway = gateway_of(member)
    member.node.resolv_conf.write_text("".join(f"nameserver {server}\n" for server in servers))
    upstreams = [
        Upstream(member, server, behave)
        for server, behave in zip(servers, (behaviour.first, behaviour.second), strict=False)
        if behave is not None
    ]
    options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
    ]
    options += [f"--port={PORT}", f"--listen-address={gateway}", "--bind-interfaces", "--cache-size=0"]
    argv = ["dnsmasq", *options, *(f"--server={server}" for server in servers)]
    dnsmasq = subprocess.Popen(member.node.command(argv), env=environment(member.node.prefix))
    try:
        until(lambda: f":{PORT}" in member.node.run(["ss", "-Hlnu"]))
        way = [edns, "+tcp" if behaviour.stream else "+notcp"]
        for name in NAMES if case == "lossy" else NAMES[:2]:
            theirs = resolves(member, gateway, name, "-p", str(PORT), *way)
            assert resolves(member, gateway, name, *way) or not theirs
            assert resolves(member, gateway, name, *way), "and in any case here"
    finally:
        dnsmasq.kill()
        dnsmasq.wait()
        for upstream in upstreams:
            upstream.close()


def gateway_of(member: Member) -> str:
    """Where the one service's name server is."""
    shown = member.node.run(["ss", "-Hlnu", "sport = :53"]).splitlines()
    return next(
        address for address in (line.split()[3].rsplit(":", 1)[0] for line in shown) if address.startswith("10.")
    )
