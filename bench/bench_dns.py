"""DNS queries answered a second, beside dnsmasq, aardvark-dns and unbound with the same names in the same run.

    python bench/bench_dns.py [--names N] [--seconds S] [--rounds N] [--misses N]

The servers are in one namespace, at one address, on one core; dnsperf asks from another, by a few sockets as a
forwarder does, and by as many as there are queries under way, as stub resolvers do.  They take turns, and the median of
the rounds counts.
Names of the outside are those of one more dnsmasq, on the other core.  Each server asks it once, and then its cache; in
the last case every name is a new one, so that each server asks it each time.  unbound has no names of ours, and
aardvark-dns has no cache; each takes part in the rest where it is installed.  Where dnsperf or the dnsmasq outside is
the slower end, the answers for a second of the server's processor time tell more than those for a second of the clock:
both are printed, with their ratios; and the 99th percentile of the latencies, at a pace that none of them minds.
Needs root, since the daemon is the real one, and the Debian packages dnsperf and dnsmasq-base.
"""

import argparse
import itertools
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from check.machine import pin  # noqa: E402
from check.meter import percentile, processor_seconds  # noqa: E402
from lab import Lab, Node  # noqa: E402
from lab.cluster import Member  # noqa: E402
from lab.frames import request_frame  # noqa: E402
from lab.processes import CommandFailed, environment  # noqa: E402
from smoke import SMOKE  # noqa: E402

ZONE = "overlay.local"
DNSMASQ_PORT, UNBOUND_PORT, AARDVARK_PORT = 5300, 5301, 5302
# All of them serve where the daemon does: to a local address of any device but the loopback the kernel makes the route
# anew for each packet (__mkroute_output in net/ipv4/route.c), so that a server at 127.0.0.1 has a tenth less to do.
NODE_ADDRESS = "10.200.1.1"
OUTSIDE = "127.0.0.9"  # the server that is asked for the names of the outside
OUTER_ZONE = "outside.example"
ENDLESS_ZONE = "endless.example"  # in it, every name has an address
AARDVARK = shutil.which("aardvark-dns", path=f"{os.environ.get('PATH', '')}:/usr/lib/podman:/usr/libexec/podman")
SERVER, LOAD = 0, 1  # processors
TOGETHER = 500  # requests in one write
OUTSTANDING = 200  # queries that dnsperf keeps under way
SOCKETS = (4, OUTSTANDING)  # from which it asks
PACE = 2000  # queries a second, when it is their latency that is measured


def register(member: Member, names: dict[str, str]) -> None:
    """Give the daemon the names, many requests under way: as many as it takes without an answer being read."""
    frames = [request_frame(1, "register_dns", name=name, ip=ip) for name, ip in names.items()]
    with member.node.connect() as connection:
        for at in range(0, len(frames), TOGETHER):
            connection.send(b"".join(frames[at : at + TOGETHER]))
            for _ in frames[at : at + TOGETHER]:
                connection.receive()


@contextmanager
def running(node: Node, *argv: str) -> Iterator[int]:
    """A server on the node; its pid."""
    process = subprocess.Popen(node.command(list(argv)), env=environment(node.prefix))
    try:
        time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def dnsmasq(node: Node, names: dict[str, str], zone: str, address: str, port: int, *more: str) -> list[str]:
    """The command of a dnsmasq that has these names in a zone."""
    hosts = node.run_directory / f"names.{zone}"
    hosts.write_text("".join(f"{ip} {name}.{zone}\n" for name, ip in names.items()))
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}"]
    options += [f"--local=/{zone}/", f"--port={port}", f"--listen-address={address}", "--bind-interfaces"]
    return ["dnsmasq", *options, "--user=root", "--pid-file=", f"--cache-size={2 * len(names)}", *more]


def unbound(node: Node) -> list[str]:
    """The command of an unbound that asks the outside."""
    configuration = node.run_directory / "unbound.conf"
    configuration.write_text(
        f"""server:
    interface: {NODE_ADDRESS}@{UNBOUND_PORT}
    access-control: {NODE_ADDRESS} allow
    username: ""
    chroot: ""
    directory: "{node.run_directory}"
    pidfile: ""
    do-daemonize: no
    use-syslog: no
    logfile: ""
    module-config: "iterator"
    do-not-query-localhost: no
    num-threads: 1
forward-zone:
    name: "."
    forward-addr: {OUTSIDE}
remote-control:
    control-enable: no
"""
    )
    return ["unbound", "-d", "-c", str(configuration)]


@contextmanager
def aardvark(node: Node, names: dict[str, str]) -> Iterator[int]:
    """aardvark-dns with these names; its pid.  It goes into the background, and leaves its pid in a file."""
    assert AARDVARK is not None
    directory = node.run_directory / "aardvark"
    directory.mkdir()
    lines = [f"{number:064x} {ip}  {name}.{ZONE}" for number, (name, ip) in enumerate(names.items())]
    (directory / "bench").write_text("\n".join([NODE_ADDRESS, *lines, ""]))
    node.run([AARDVARK, "--config", "/run/aardvark", "-p", str(AARDVARK_PORT), "run"])
    pid = int((directory / "aardvark.pid").read_text())
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)


def ask(node: Node, server: tuple[int, str, int], queries: Path, *how_long: str, sockets: int = SOCKETS[0]) -> str:
    """Let dnsperf ask the queries, and return what it says.  how_long: its option."""
    _, address, port = server
    argv = ["taskset", "-c", str(LOAD), "dnsperf", "-s", address, "-p", str(port), "-d", str(queries)]
    try:
        return node.run([*argv, *how_long, "-q", str(OUTSTANDING), "-c", str(sockets), "-T", "1"])
    except CommandFailed as error:
        sys.exit(str(error))


def slow_answer(node: Node, server: tuple[int, str, int], queries: Path, seconds: float) -> float:
    """The 99th percentile of the latencies of queries at PACE, seconds."""
    said = ask(node, server, queries, "-l", str(seconds), "-Q", str(PACE), "-v")
    return percentile([float(each) for each in re.findall(r"^> .* ([\d.]+)$", said, re.MULTILINE)], 0.99)


def measure(
    node: Node, server: tuple[int, str, int], queries: Callable[[], Path], seconds: float, sockets: int
) -> tuple[float, float, float]:
    """Answers a second, answers a second of the server's processor time, and a slow answer's latency in microseconds.
    queries: makes the file of them, for each run.
    """
    pid = server[0]
    before = processor_seconds(pid)
    said = ask(node, server, queries(), "-l", str(seconds), sockets=sockets)
    completed, rate = (
        float(re.findall(rf"{what}:\s+([\d.]+)", said)[0]) for what in ("Queries completed", "Queries per second")
    )
    by_processor = completed / (processor_seconds(pid) - before)
    return rate, by_processor, slow_answer(node, server, queries(), seconds) * 1e6


def compare(results: dict[str, list[tuple[float, float, float]]]) -> None:
    """Print the medians of what was measured of each server, and the first one's by those of the others."""
    ours, *others = medians = {
        name: [statistics.median(each) for each in zip(*of, strict=True)] for name, of in results.items()
    }
    for name, (rate, by_processor, latency) in medians.items():
        print(f"  {name:10} {rate:9,.0f}/s {by_processor:9,.0f} a processor second, p99 {latency:7,.0f} us")
    for name in others:
        rate, processor, latency = (mine / other for mine, other in zip(medians[ours], medians[name], strict=True))
        print(f"  {rate:.2f} x {name} by the clock, {processor:.2f} x by the processor, p99 {latency:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=20 if SMOKE else 1000)
    parser.add_argument("--seconds", type=float, default=0.1 if SMOKE else 2.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=1 if SMOKE else 5)
    parser.add_argument("--misses", type=int, default=100 if SMOKE else 80_000, help="new names for a measurement")
    args = parser.parse_args()
    for program, package in (("dnsperf", "dnsperf"), ("dnsmasq", "dnsmasq-base")):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install {package}")
    names = {f"svc{number}": f"10.200.{number >> 8 & 255}.{number & 255}" for number in range(args.names)}
    with ExitStack() as stack:
        member = Member(stack.enter_context(Lab()), 1, "alpha")
        member.start("--dns-node-address")
        member.set_up()
        node = member.node
        register(member, names)
        node.resolv_conf.write_text(f"nameserver {OUTSIDE}\n")
        ttls = ("--local-ttl=3600", "--neg-ttl=3600")
        outside = dnsmasq(node, names, OUTER_ZONE, OUTSIDE, 53, *ttls, f"--address=/{ENDLESS_ZONE}/192.0.2.80")
        pin(LOAD, stack.enter_context(running(node, *outside)))
        commands = {
            "dnsmasq": dnsmasq(node, names, ZONE, NODE_ADDRESS, DNSMASQ_PORT, f"--server={OUTSIDE}"),
            **({"unbound": unbound(node)} if shutil.which("unbound") else {}),
        }
        assert node.daemon is not None
        servers = {"overlayd": (node.daemon.pid, NODE_ADDRESS, 53)}
        for name, port in (("dnsmasq", DNSMASQ_PORT), ("unbound", UNBOUND_PORT)):
            if name in commands:
                servers[name] = (stack.enter_context(running(node, *commands[name])), NODE_ADDRESS, port)
        if AARDVARK is not None:
            servers["aardvark"] = (stack.enter_context(aardvark(node, names)), NODE_ADDRESS, AARDVARK_PORT)
        for pid, *_ in servers.values():
            pin(SERVER, pid)
        for case, prefix, zone in (
            ("registered names", "svc", ZONE),
            ("names that are not there", "nope", ZONE),
            ("names of the outside, from the cache", "svc", OUTER_ZONE),
            ("names of the outside, each for the first time", "new", ENDLESS_ZONE),
        ):
            numbers = itertools.count()

            def queries(prefix: str = prefix, zone: str = zone, numbers: Iterator[int] = numbers) -> Path:
                """The same names each time, of the endless zone new ones."""
                path = node.run_directory / "queries"
                endless = zone == ENDLESS_ZONE
                first = f"{prefix}{next(numbers)}-" if endless else prefix
                count = args.misses if endless else args.names
                path.write_text("".join(f"{first}{number}.{zone} A\n" for number in range(count)))
                return path

            without = "unbound" if zone == ZONE else "aardvark"
            asked = [name for name in servers if name != without]
            for name in asked if zone == OUTER_ZONE and not SMOKE else ():
                ask(node, servers[name], queries(), "-n", "1")  # each once, which fills the caches
            for sockets in SOCKETS:
                results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in asked}
                for _ in range(args.rounds):
                    for name in asked:
                        results[name].append(measure(node, servers[name], queries, args.seconds, sockets))
                print(f"{case}, from {sockets} sockets")
                compare(results)


if __name__ == "__main__":
    main()
