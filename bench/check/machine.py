"""Where the measurements ran: the machine, the interpreter, which processors, and whether somebody else was at work.

Owns: that description, pinning, and the wait for quiet.  Must not know: what is measured.
"""

import contextlib
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

# The daemon, or whoever stands for it, has a processor of its own; the load has another, where there is one.
_PROCESSORS = sorted(os.sched_getaffinity(0))
SERVER, LOAD = _PROCESSORS[0], _PROCESSORS[-1]
QUIET = 0.10  # of the processors' time that others may use
PATIENCE = 20  # seconds


def pin(processor: int, pid: int = 0) -> None:
    """Keep a process, with all its threads, on one processor.  pid: 0 for this one."""
    for thread in Path(f"/proc/{pid or 'self'}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), {processor})


def processor_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def interpreter() -> str:
    """What compiled and ran both versions: an interpreter built with profiles is a third faster than one without."""
    version = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.base_prefix == "/usr":  # Debian's, which is built with profiles and does not say so
        return f"{version}, as Debian builds it, with profile-guided optimisation"
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    flags = str(sysconfig.get_config_var("PY_CORE_CFLAGS") or "")
    profiled = "--enable-optimizations" in arguments or "-fprofile-use" in flags
    return (
        f"{version}, "
        f"{'with' if profiled else 'without'} profile-guided optimisation, "
        f"{'with' if '--with-lto' in arguments or '-flto' in flags else 'without'} link-time optimisation"
    )


def describe() -> dict[str, str]:
    """The machine, for people."""
    system = "unknown system"
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            system = line.partition("=")[2].strip('"')
    compiler = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": f"{processor_model()}, {len(_PROCESSORS)} of them",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{system}, Linux {platform.release()}",
        "interpreter": interpreter(),
        "compiler": f"gcc {compiler}",
    }


def _times() -> Mapping[str, int]:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]), strict=True))


def busy(seconds: float = 1.0) -> float:
    """The share of all processors' time that was used meanwhile, while this process sleeps; 0 to 1 (proc(5))."""
    before = _times()
    time.sleep(seconds)
    spent = {name: value - before[name] for name, value in _times().items()}
    return 1 - (spent["idle"] + spent["iowait"]) / max(sum(spent.values()), 1)


def wait_for_quiet() -> str:
    """Wait until nobody else is at work; return what to tell when somebody still is, else nothing."""
    deadline = time.monotonic() + PATIENCE
    while (share := busy()) > QUIET:
        if time.monotonic() > deadline:
            return f"not quiet: others use {share:.0%} of the processors; expect noise"
    return ""
