"""A container of a real runtime: crun, with a root file system that holds nothing but busybox.

Owns: the bundle, and the runtime's process.  Must not know: the daemon that attaches it.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from lab import processes
from lab.container import Container
from lab.patience import LIMIT, until
from lab.processes import MARK, environment, run

BUSYBOX = Path("/bin/busybox")
PORT = 8080  # of the web server inside, which needs no privilege
# crun wants one cgroup2 tree, whatever the host has mounted: a private mount namespace gives it one.
ENTER = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'


class CrunContainer(Container):
    """Like `Container`, but with namespaces of every kind, no capabilities, and a web server on PORT that tells
    its name.
    """

    def __init__(self, prefix: str, directory: Path) -> None:
        self.prefix = prefix
        self.name = name = f"{prefix}-{directory.name}"
        (directory / "rootfs/bin").mkdir(parents=True)
        for mountpoint in ("proc", "dev", "sys"):
            (directory / "rootfs" / mountpoint).mkdir()
        shutil.copy(BUSYBOX, directory / "rootfs/bin/busybox")
        (directory / "rootfs/name").write_text(name)
        (directory / "config.json").write_text(json.dumps(_config(name, prefix)))
        crun = ["crun", "--root", directory / "state", "run", "--pid-file", directory / "pid", "--bundle", directory]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--", "sh", "-c", ENTER, "sh", *map(str, crun), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(prefix),
            start_new_session=True,
        )
        self.pid = self._started(directory / "pid")
        self.namespace = Path(f"/proc/{self.pid}/ns/net")

    def _started(self, file: Path) -> int:
        until(lambda: self.process.poll() is not None or (file.exists() and file.read_text()), "crun starts nothing")
        if self.process.poll() is not None:
            said = self.process.communicate()[0].decode(errors="replace")
            raise RuntimeError(f"crun did not start the container: {said}")
        return int(file.read_text())

    def execute(self, *argv: str, stdin: str = "") -> str:
        """Run a program of the container's busybox in the container's namespaces and return what it printed."""
        spaces = ["--mount", "--net", "--pid", "--root", "--wd"]
        inside = ["nsenter", "--target", str(self.pid), *spaces, "--", "/bin/busybox", *argv]
        return run(inside, prefix=self.prefix, stdin=stdin)

    def fetch(self, address: str) -> str:
        """The name that the web server at `address` tells."""
        answer = self.execute("nc", "-w", "30", address, str(PORT), stdin="GET /name HTTP/1.0\r\n\r\n")
        return answer.rpartition("\n")[2]

    def kill(self) -> None:
        """SIGKILL to the container's first process; the runtime then ends by itself and removes what it made."""
        if self.process.poll() is None:
            if processes.start_time(self.pid) is not None:
                os.kill(self.pid, signal.SIGKILL)
            self.process.wait(LIMIT)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _config(name: str, prefix: str) -> dict[str, object]:
    """The runtime's configuration (OCI runtime specification 1.0)."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/busybox", "httpd", "-f", "-p", str(PORT), "-h", "/"],
            "env": ["PATH=/bin", f"{MARK}={prefix}"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": f"/{name}",
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        },
    }
