"""Programs that stand beside a daemon: compiled ones of bench/peer, and servers that run for as long as a block.

Owns: building and running them.  Must not know: what they are compared with.
"""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from check import machine
from check.tree import BUILD, ROOT


def compiled(name: str, *options: str) -> Path:
    """A C program of bench/peer, compiled when its source is newer."""
    source, program = ROOT / "bench" / "peer" / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source, *options], check=True)
    return program


@contextmanager
def serving(argv: Sequence[str | Path], socket: Path) -> Iterator[int]:
    """A server where the daemons are, once its socket is there; its pid."""
    process = subprocess.Popen(["taskset", "-c", str(machine.SERVER), *argv])
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise RuntimeError(f"{argv[0]} ended with {process.returncode}")
            time.sleep(0.001)
        yield process.pid
    finally:
        process.kill()
        process.wait()
