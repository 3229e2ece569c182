"""Where the daemon's processor time goes on the paths of docs/performance.md, by perf: the interpreter, the kernel by
what it was asked for, and the rest.  `make bench-profile` writes docs/profile.md.

Needs root and Debian's linux-perf.  Shares of samples, so a busy machine does not change them.
"""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from check import tree
from check.cases.peers import Peers
from check.daemon import Daemon, laboratory, request
from lab.crowd import Crowd
from smoke import SMOKE

HEAD = """# Where the time goes

Written by `make bench-profile`; do not edit. Shares of the daemon's processor time on paths of
[performance.md](performance.md), by perf's samples. *Interpreter* is CPython with what it calls in libc: handlers and
decisions are Python. *Ours* are the Cython modules. A yardstick of that page does what stands under *rtnetlink* and
*fdatasync*, and none of the rest: the interpreter's share is what a path can still win, the kernel's no daemon can.
"""
COUNTS = {"attach": 3, "many": 5, "peers": 20} if SMOKE else {"attach": 200, "many": 100, "peers": 2_000}
# The first that fits names a sample: words of its stack's functions, from the innermost to the outermost.
KERNEL = (
    ("nftables", ("nfnetlink_rcv", "nf_tables_", "nft_")),
    ("rtnetlink", ("netlink_sendmsg", "netlink_recvmsg", "netlink_dump")),
    ("fdatasync", ("do_fsync",)),
    ("unix sockets", ("unix_stream_",)),
    ("files", ("do_filp_open", "proc_sys_call_handler", "vfs_read", "vfs_write")),
    ("waiting", ("schedule", "futex_", "ep_poll")),
)
COLUMNS = ("interpreter", "ours", "uvloop", *(name for name, _ in KERNEL), "other")


def share_of(stack: Sequence[tuple[str, str]]) -> str:
    """The column of a sample.  stack: function and object file of each frame, the innermost first."""
    functions = [function for function, _ in stack]
    if any(each.startswith(("entry_SYSCALL", "do_syscall", "asm_")) for each in functions):
        for name, words in KERNEL:
            if any(each.lstrip("_").startswith(words) for each in functions):
                return name
        return "other"
    file = stack[0][1] if stack else ""
    if "/overlayd/" in file:
        return "ours"
    if "/uvloop/" in file:
        return "uvloop"
    return "interpreter" if any(each in file for each in ("python", "libc.so", "lib-dynload")) else "other"


def stacks(recorded: Path) -> Iterator[list[tuple[str, str]]]:
    """What perf recorded."""
    argv = ["perf", "script", "-i", str(recorded), "-F", "ip,sym,dso"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    for block in text.split("\n\n"):
        lines = [line.split(maxsplit=1)[1] for line in block.splitlines() if len(line.split(maxsplit=1)) > 1]
        frames = [line.rpartition(" (") for line in lines]
        if frames:
            yield [(function, file.rstrip(")")) for function, _, file in frames]


@contextmanager
def recorded(pid: int, file: Path) -> Iterator[None]:
    """Sample the process and its threads meanwhile."""
    argv = ["perf", "record", "-q", "-p", str(pid), "-F", "5000", "-g", "-o", str(file)]
    # It acknowledges that it has begun, so that nothing is missed.
    control, acknowledged = os.pipe(), os.pipe()
    argv += ["--delay=-1", f"--control=fd:{control[0]},{acknowledged[1]}"]
    with subprocess.Popen(argv, pass_fds=(control[0], acknowledged[1]), stderr=subprocess.DEVNULL) as perf:
        try:
            os.write(control[1], b"enable\n")
            os.read(acknowledged[0], 8)
            yield
        finally:
            perf.terminate()
    for each in (*control, *acknowledged):
        os.close(each)


def measure() -> dict[str, collections.Counter[str]]:
    """Path -> column -> samples."""
    found: dict[str, collections.Counter[str]] = {}
    with laboratory() as lab, ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(lab, tree.this_checkout(), "profiled")
        daemon.set_up()
        client = stack.enter_context(daemon.client())
        client.ask(request("setup_service_overlay", service="web", mode="shared", subnet="10.200.64.0/22"))
        crowd = stack.enter_context(Crowd(lab.prefix, COUNTS["attach"]))
        handles = [{"platform": "linux_pid", "pid": pid} for pid in crowd.pids]
        attach = [
            request("attach_container", handle=each, service="web", join_global=False, ephemeral=False)
            for each in handles
        ]
        detach = [request("detach_container", handle=each) for each in handles]
        taken = Peers().take(COUNTS["peers"])
        peers = [
            request("add_peer", public_key=key, endpoint=endpoint, allowed_ips=cidr, persistent_keepalive_secs=0)
            for key, endpoint, cidr in taken
        ]
        more = [
            request("add_allowed_ip", pubkey=key, cidr=f"10.240.{number}.0/24")
            for number, (key, _, _) in enumerate(taken[: COUNTS["many"]])
        ]
        many = COUNTS["many"]
        paths: dict[str, Callable[[], object]] = {
            "attach, one after the other": lambda: client.ask_each(attach),
            "detach, one after the other": lambda: client.ask_each(detach),
            "100 attaches pipelined": lambda: client.ask_all(attach[:many]),
            "100 detaches pipelined": lambda: client.ask_all(detach[:many]),
            "add_peer, 500 pipelined": lambda: client.ask_all(peers),
            "add_allowed_ip, one after the other": lambda: client.ask_each(more),
        }
        for name, run in paths.items():
            file = Path(directory, "perf.data")
            with recorded(daemon.pid, file):
                run()
            found[name] = collections.Counter(map(share_of, stacks(file)))
    return found


def document(found: dict[str, collections.Counter[str]]) -> str:
    """The page."""
    lines = [HEAD, "| path | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for name, shares in found.items():
        cells = (f"{100 * shares[column] / max(shares.total(), 1):.0f} %" for column in COLUMNS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if shutil.which("perf") is None:
        print("not measured: perf is not installed (Debian has it as linux-perf)")
        sys.exit()
    text = document(measure())
    print(text)
    if not SMOKE:
        (tree.ROOT / "docs" / "profile.md").write_text(text)
