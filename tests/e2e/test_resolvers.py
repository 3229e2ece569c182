"""What programs in containers look names up with, before upstream servers that behave badly: what a plain dnsmasq in
overlayd's place gets answered, overlayd does too.

Each behaviour is a node with containers of its own, all at work at once.  In one of them each client asks overlayd
at its gateway, in the other the dnsmasq at the node's address, for names that nobody else asks for.  The zone is
signed, and one of the clients believes signed answers only.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from lab import Container, Lab
from lab.cluster import Member
from lab.patience import FACTOR, until
from lab.processes import environment
from lab.upstreams import ADDRESS, Case, SignedZone, Upstream, cases

ROOT = Path(__file__).resolve().parents[2]
SOURCES, BUILT = ROOT / "tests" / "clients", ROOT / "build" / "clients"
ORIGIN = "example.org"
LOOKUPS = int(os.environ.get("OVERLAYD_LOOKUPS", "1"))  # of each client; `make resolvers` asks for more
# For all lookups of a client, which waits ten at most for an answer, and ten in which it starts.
SECONDS = 10 * (LOOKUPS + 1) * FACTOR
AT_WORK = 24  # clients at once, most of which wait
SERVERS = ("overlayd", "dnsmasq")
BEHAVIOURS = tuple(cases())
UPSTREAMS = ("127.0.0.21", "127.0.0.22")
# What cannot be: behind a server without EDNS there are no signatures, and what must have them fails anywhere.
IMPOSSIBLE = {("no EDNS", "unbound")}


class Client(NamedTuple):
    """command: looks up the names that follow, each a line of "name address".  missing: why it is not here."""

    command: list[str]
    missing: str = ""


def _of_musl() -> Client:
    if shutil.which("musl-gcc") is None:
        return Client([], "musl-gcc is not here (musl-tools)")
    program = BUILT / "lookup-musl"
    return Client([_built(program, SOURCES / "lookup.c", "musl-gcc", "-static", "-o", str(program))])


def _of_go() -> Client:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        return Client([], "go is not here")
    program = BUILT / "lookup-go"
    return Client([_built(program, SOURCES / "lookup.go", go, "build", "-o", str(program))])


def _of_resolved() -> Client:
    """By its stub: getent asks that."""
    program = next((each for each in RESOLVED if Path(each).exists()), None)
    if program is None:
        return Client([], "systemd-resolved is not here, and installing it would change the host's resolv.conf")
    return Client(["sh", SOURCES / "by_resolved", program, *_GETENT])


def _built(program: Path, source: Path, *argv: str) -> str:
    """Compile it if it is not, or an older one."""
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"CGO_ENABLED": "0"}  # as etcd is built: Go's library is in the user's cache
        subprocess.run([*argv, str(source)], check=True, env=environment)
    return str(program)


_GETENT = ["sh", "-c", 'for name; do getent ahosts $name | sed -n "1s/ .*//; 1s/^/$name /p"; done', "getent"]
RESOLVED = [
    str(root / "lib/systemd/systemd-resolved") for root in (Path("/usr"), BUILT / "resolved/usr", BUILT / "resolved")
]
CLIENTS = {
    "glibc": lambda: Client(_GETENT),
    "musl": _of_musl,
    "c-ares": lambda: Client([sys.executable, str(SOURCES / "lookup_cares.py")]),
    "Go": _of_go,
    "unbound": lambda: Client(["sh", str(SOURCES / "by_unbound")]),
    "systemd-resolved": _of_resolved,
}


def names(client: str, server: str) -> list[str]:
    place = list(CLIENTS).index(client)
    return [f"{server}-{place}-{number}.{ORIGIN}" for number in range(LOOKUPS)]


class Place:
    """A node before upstreams of one behaviour, with a container for each server."""

    def __init__(self, lab: Lab, number: int, case: Case, zone: SignedZone, stack: ExitStack) -> None:
        self.member = Member(lab, number, f"n{number}")
        self.containers: dict[str, Container] = {server: lab.container() for server in SERVERS}  # by whom it asks
        self.zone = zone
        self.directory = self.member.node.run_directory
        behaviours = [each for each in (case.first, case.second) if each is not None]
        servers = UPSTREAMS[: len(behaviours)]
        self.member.node.resolv_conf.write_text("".join(f"nameserver {server}\n" for server in servers))
        self.member.start()
        self.member.set_up({"enabled": False})
        self.member.set_up_service("web")
        for container in self.containers.values():
            address = self.member.attach(container, "web")
            container.run(["ip", "link", "set", "lo", "up"])
        self.at = {"overlayd": self.member.gateway(address), "dnsmasq": str(self.member.node.address)}
        for server, behave in zip(servers, behaviours, strict=True):
            stack.callback(Upstream(self.member, server, behave).close)
        argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]
        argv += ["--pid-file=", f"--listen-address={self.at['dnsmasq']}", "--bind-interfaces", "--cache-size=0"]
        argv += [f"--server={server}" for server in servers]
        dnsmasq = subprocess.Popen(self.member.node.command(argv), env=environment(lab.prefix))
        stack.callback(dnsmasq.wait)
        stack.callback(dnsmasq.kill)
        until(lambda: f"{self.at['dnsmasq']}:53" in self.member.node.run(["ss", "-Hlnu"]))

    def look_up(self, client: str, command: list[str], server: str) -> set[str]:
        """Those of the names that a client resolves by a server, until its time is over."""
        directory = self.directory / f"{client}-{server}"
        directory.mkdir()
        (directory / "resolv.conf").write_text(f"nameserver {self.at[server]}\n")
        argv = ["timeout", f"{SECONDS}", "unshare", "--mount", "sh", SOURCES / "with_resolv_conf", directory]
        argv = [*argv, self.zone.anchor, *command, *names(client, server)]
        done = subprocess.run(
            self.containers[server].command(argv),
            capture_output=True,
            text=True,
            env=environment(self.member.lab.prefix),
            check=False,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        assert done.returncode in (0, 124), done.stderr
        return {line[0] for line in lines if line[1:] == [ADDRESS]}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[tuple[str, str, str], set[str]]]:
    """What was resolved, by behaviour, client and server."""
    clients = {name: client for name, make in CLIENTS.items() if not (client := make()).missing}
    with Lab() as lab, ExitStack() as stack, ThreadPoolExecutor(AT_WORK) as pool:
        zone = SignedZone(lab.directory, ORIGIN, [name for c in CLIENTS for s in SERVERS for name in names(c, s)])
        places = {
            name: Place(lab, number, case, zone, stack)
            for number, (name, case) in enumerate(cases(zone.fill).items(), 1)
        }
        running = {
            (behaviour, name, server): pool.submit(place.look_up, name, client.command, server)
            for behaviour, place in places.items()
            for name, client in clients.items()
            for server in SERVERS
        }
        yield {key: future.result() for key, future in running.items()}
        for place in places.values():
            assert "Traceback" not in place.member.node.log.read_text()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("client", CLIENTS)
def test_what_dnsmasq_gets_answered(
    outcomes: dict[tuple[str, str, str], set[str]], client: str, behaviour: str
) -> None:
    if missing := CLIENTS[client]().missing:
        pytest.skip(missing)
    ours, theirs = ({name.partition("-")[2] for name in outcomes[behaviour, client, server]} for server in SERVERS)
    assert ours >= theirs
    if (behaviour, client) not in IMPOSSIBLE:
        assert len(ours) == LOOKUPS, "and in any case here"
