"""DNS queries answered a second, beside dnsmasq with the same names in the same run.

    python bench/bench_dns.py [--names N] [--seconds S] [--rounds N]

Both servers are in one namespace, on one core; dnsperf asks from another.  They take turns, and the median of the
rounds counts.  Needs root, since the daemon is the real one, and the Debian packages dnsperf and dnsmasq-base.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lab import Lab, Node  # noqa: E402
from lab.cluster import Member  # noqa: E402
from lab.frames import request_frame  # noqa: E402
from lab.processes import CommandFailed, environment  # noqa: E402

ZONE = "overlay.local"
DNSMASQ_PORT = 5300
SERVERS, LOAD = {0}, {1}  # processors
OUTSTANDING = 200  # queries that dnsperf keeps under way


def register(member: Member, names: dict[str, str]) -> None:
    """Give the daemon the names, many requests under way."""
    with member.node.connect() as connection:
        connection.send(b"".join(request_frame(1, "register_dns", name=name, ip=ip) for name, ip in names.items()))
        for _ in names:
            connection.receive()


@contextmanager
def dnsmasq(node: Node, names: dict[str, str]) -> Iterator[int]:
    """dnsmasq with these names, on the node; its pid."""
    hosts = node.run_directory / "names"
    hosts.write_text("".join(f"{ip} {name}.{ZONE}\n" for name, ip in names.items()))
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}"]
    options += [f"--local=/{ZONE}/", f"--port={DNSMASQ_PORT}", "--listen-address=127.0.0.1", "--bind-interfaces"]
    options += ["--user=root", "--pid-file=", f"--cache-size={len(names)}"]
    process = subprocess.Popen(node.command(["dnsmasq", *options]), env=environment(node.prefix))
    try:
        time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def measure(node: Node, server: str, port: int, queries: Path, seconds: float) -> tuple[float, float]:
    """Answers a second, and the mean latency in microseconds."""
    argv = ["taskset", "-c", ",".join(map(str, LOAD)), "dnsperf", "-s", server, "-p", str(port), "-d", str(queries)]
    try:
        said = node.run([*argv, "-l", str(seconds), "-q", str(OUTSTANDING), "-c", "4", "-T", "1"])
    except CommandFailed as error:
        sys.exit(str(error))
    lost = re.search(r"Queries lost:\s+(\d+)", said)
    rate, latency = (
        re.search(rf"{what}:\s+([\d.]+)", said) for what in ("Queries per second", r"Average Latency \(s\)")
    )
    assert lost and rate and latency, said
    if int(lost[1]):
        print(f"  {server}: {lost[1]} queries lost")
    return float(rate[1]), float(latency[1]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for program, package in (("dnsperf", "dnsperf"), ("dnsmasq", "dnsmasq-base")):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install {package}")
    names = {f"svc{number}": f"10.200.{number >> 8 & 255}.{number & 255}" for number in range(args.names)}
    with ExitStack() as stack:
        member = Member(stack.enter_context(Lab()), 1, "alpha")
        member.start()
        member.set_up()
        node = member.node
        register(member, names)
        other = stack.enter_context(dnsmasq(node, names))
        assert node.daemon is not None
        for pid in (node.daemon.pid, other):
            os.sched_setaffinity(pid, SERVERS)
        servers = {"overlayd": ("10.200.1.1", 53), "dnsmasq": ("127.0.0.1", DNSMASQ_PORT)}
        for case, prefix in (("registered names", "svc"), ("names that are not there", "nope")):
            queries = node.run_directory / "queries"
            queries.write_text("".join(f"{prefix}{number}.{ZONE} A\n" for number in range(args.names)))
            results: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
            for _ in range(args.rounds):
                for name, (address, port) in servers.items():
                    results[name].append(measure(node, address, port, queries, args.seconds))
            medians = {
                name: [statistics.median(each) for each in zip(*of, strict=True)] for name, of in results.items()
            }
            said = "   ".join(f"{name} {rate:9,.0f}/s {latency:6.0f} us" for name, (rate, latency) in medians.items())
            print(f"{case:26} {said}   {medians['overlayd'][0] / medians['dnsmasq'][0]:.2f} x dnsmasq", flush=True)


if __name__ == "__main__":
    main()
