"""The image of the Dockerfile, run as docs/install.md says: start, status, an overlay, a container, a clean stop."""

import errno
import json
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import netns
from lab.crun import ENTER
from lab.patience import LIMIT

HERE = Path(__file__).parent
MANUAL = HERE.parents[1] / "docs/install.md"
DEVICES = [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666, "uid": 0, "gid": 0}]
CURRENT = "0.0.20250522"  # the wireguard-go that the Dockerfile builds
DATA_DIR = "var/lib/overlayd"

# What Docker and podman keep from a container that is not privileged: these paths are hidden or read-only, and these
# calls are refused whatever capabilities there are.
HIDDEN = (
    *(f"/proc/{name}" for name in ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "scsi")),
    *(f"/proc/{name}" for name in ("sched_debug", "timer_list", "timer_stats")),
    *("/sys/devices/virtual/powercap", "/sys/firmware"),
)
LOCKED = tuple(f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger"))
REFUSED = (
    *("add_key", "keyctl", "request_key", "kexec_load", "kexec_file_load", "userfaultfd", "vmsplice", "ustat"),
    *(
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "pivot_root",
        "swapon",
        "swapoff",
        "sysfs",
        "nfsservctl",
    ),
)


class Image:
    """A container of the image: its own network namespace for the host's, and the host's process ids."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.netns = name
        subprocess.run([HERE / "build-image", directory], check=True)
        (directory / "config.json").write_text(json.dumps(self._config()))
        self.log = directory / "log"

    def _config(self) -> dict[str, object]:
        image = json.loads((self.directory / "image.json").read_text())["OCIv1"]["config"]
        assert image["StopSignal"] == "SIGTERM" and f"/{DATA_DIR}" in image["Volumes"]
        capabilities = sorted({f"CAP_{name}" for name in re.findall(r"--cap-add ([A-Z_]+)", MANUAL.read_text())})
        assert {"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_NET_BIND_SERVICE"} <= {*capabilities}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [*image["Entrypoint"], *_arguments()],
                "env": image["Env"],
                "cwd": image.get("WorkingDir") or "/",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
            },
            "root": {"path": "rootfs", "readonly": False},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "nodev", "ro"]},
                *map(self._volume, re.findall(r"--volume (\S+):(\S+)", MANUAL.read_text())),
            ],
            "linux": {
                "cgroupsPath": f"/{self.name}",
                "devices": DEVICES,
                "maskedPaths": HIDDEN,
                "readonlyPaths": LOCKED,
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}],
                },
                "namespaces": [
                    {"type": "network", "path": str(netns.DIRECTORY / self.netns)},
                    *({"type": kind} for kind in ("ipc", "uts", "mount")),
                ],
            },
        }

    def _volume(self, volume: tuple[str, str]) -> dict[str, object]:
        """A directory of the host: its /proc/sys as it is, every other one in the test's own directory."""
        source, destination = volume
        if not source.startswith("/proc/"):
            source = f"{self.directory}/host{source}"
            Path(source).mkdir(parents=True)
        return {"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"]}

    def crun(self, *arguments: str | Path) -> list[str]:
        program = ["crun", "--root", self.directory / "state", *arguments]
        return ["unshare", "--mount", "--", "sh", "-c", ENTER, "sh", *map(str, program)]

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.crun("run", "--bundle", self.directory, self.name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ctl(self, *arguments: str) -> str:
        """What `overlayctl ARGUMENTS` prints in the container."""
        command = self.crun("exec", self.name, "overlayctl", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\nthe daemon's log:\n{self.log.read_text()}"
        return done.stdout

    def end_rest(self) -> None:
        """Wait for the daemon's end, and kill what the container has left."""
        state = json.loads(subprocess.check_output(self.crun("state", self.name)))
        while Path(f"/proc/{state['pid']}").exists():
            time.sleep(0.05)
        script = f'for pid in $(cat /sys/fs/cgroup/{self.name}/cgroup.procs); do kill -9 "$pid"; done'
        subprocess.run(["unshare", "--mount", "--", "sh", "-c", ENTER, "sh", "sh", "-c", script], check=True)


def _arguments() -> list[str]:
    """What the manual's `docker run` says behind the image's name."""
    line = re.search(r"^    overlayd (--.*)$", MANUAL.read_text(), re.MULTILINE)
    assert line
    return line[1].split()


@pytest.fixture
def image() -> Iterator[Image]:
    name = f"oi{secrets.token_hex(3)}"
    netns.add(name)
    made = None
    # Not tmp_path, which pytest keeps: an unpacked image is 400 MB.
    directory = tempfile.TemporaryDirectory(prefix=name)
    try:
        made = Image(Path(directory.name), name)
        yield made
    finally:
        if made is not None:
            subprocess.run(made.crun("delete", "--force", name), capture_output=True, check=False)
        netns.delete(name)
        directory.cleanup()


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not here, and its image cannot be had")
def test_the_image_serves_a_node_and_stops_cleanly(image: Image) -> None:
    subprocess.run(["ip", "-n", image.netns, "link", "add", "up0", "type", "bridge"], check=True)
    subprocess.run(["ip", "-n", image.netns, "address", "add", "192.0.2.1/24", "dev", "up0"], check=True)
    subprocess.run(["ip", "-n", image.netns, "link", "set", "up0", "up"], check=True)
    subprocess.run(["ip", "-n", image.netns, "route", "add", "default", "via", "192.0.2.254"], check=True)
    container = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    daemon = image.start()
    try:
        deadline = time.monotonic() + LIMIT
        while b"serves" not in image.log.read_bytes():
            assert daemon.poll() is None and time.monotonic() < deadline, image.log.read_text()
            time.sleep(0.05)
        assert "none: the global overlay is not set up" in image.ctl("status")
        image.ctl("call", "set_local_node_id", "node_id=1")
        overlay = ("deployment=d", "instance_id=i", "cluster_cidr=10.200.0.0/16", "slice_cidr=10.200.1.0/24")
        image.ctl("call", "setup_global_overlay", *overlay, "wg_port=51820", "nat.enabled=false")
        assert "10.200.1.1" in image.ctl("status")
        image.ctl("call", "setup_service_overlay", "service=web", "mode=auto")
        handle = ("handle.platform=linux_pid", f"handle.pid={container.pid}")
        answer = json.loads(image.ctl("call", "attach_container", *handle, "service=web", "join_global=true"))
        inside = ["nsenter", "--target", str(container.pid), "--net", "--"]
        assert answer["ip"] in subprocess.check_output([*inside, "ip", "-4", "address", "show", "eth0"], text=True)
        subprocess.run([*inside, "ping", "-c", "1", "-W", "30", "10.200.1.1"], check=True, stdout=subprocess.DEVNULL)
        assert f"wireguard-go, version {CURRENT} " in image.ctl("status")
        assert image.ctl("doctor") == "all is as it should be\n"
        image.ctl("call", "detach_container", *handle)
        subprocess.run(image.crun("kill", image.name, "SIGTERM"), check=True)
        deadline = time.monotonic() + LIMIT
        while "main: stopping;" not in image.log.read_text().splitlines()[-1]:
            assert time.monotonic() < deadline, image.log.read_text()
            time.sleep(0.05)
        # As a container engine does; crun alone would wait for wireguard-go, which is meant to outlive the daemon.
        image.end_rest()
        assert daemon.wait(LIMIT) == 0, image.log.read_text()
        assert list((image.directory / "host" / DATA_DIR).iterdir())
    finally:
        container.kill()
        container.wait()
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
