"""Debian's container runtimes on a node: podman with its CNI backend, containerd with `ctr` and `crictl`.

Owns: the namespaces and files of theirs that a machine has once (mounts, /run, /etc/cni, /opt/cni), private to a node,
and how containers are run.  Must not know: what the plugin does for them.

Neither is installed: a service of theirs would start.  The Makefile unpacks them below build/clients.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from lab import processes
from lab.node import CONTROL, Node
from lab.patience import LIMIT, until
from lab.processes import environment, run

CLIENTS = Path(__file__).parents[2] / "build" / "clients"
PODMAN = CLIENTS / "podman" / "usr" / "bin" / "podman"
CONTAINERD = CLIENTS / "containerd" / "usr" / "bin"
PROGRAMS = [CLIENTS / package / "usr" / place for package in ("containerd", "podman") for place in ("bin", "sbin")]
LIBRARIES = sorted(CLIENTS.glob("podman/usr/lib/*-linux-gnu"))
PLUGINS = Path("/usr/lib/cni")  # of containernetworking-plugins
BUSYBOX = Path("/bin/busybox")  # of busybox-static

# What is once on a machine is the node's own: /run, overlays of /etc and /var/lib, an /opt of its own.
ENTER = """
mount --make-rprivate / && mount --bind "$1/run" /run && mkdir "$1/layers" && mount -t tmpfs tmpfs "$1/layers" &&
for place in etc var/lib; do
  mkdir -p "$1/layers/$place/upper" "$1/layers/$place/work" &&
  mount -t overlay -o "lowerdir=/$place,upperdir=$1/layers/$place/upper,workdir=$1/layers/$place/work" overlay "/$place"
done &&
rm -rf /etc/cni /var/lib/cni && mkdir -p "$1/bin" "$1/net.d" /etc/cni/net.d && mount --bind "$1/net.d" /etc/cni/net.d &&
mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin && mount --bind "$1/bin" /opt/cni/bin &&
echo ready && exec sleep infinity
"""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = ("libpod_parent", "default", "k8s.io")  # what podman and containerd leave there

CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
conmon_path = ["{conmon}"]
[engine.runtimes]
runc = ["{runc}"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
network_config_dir = "/etc/cni/net.d"
default_network = "overlay"
"""

CONTAINERD_CONF = """
version = 2
root = "{directory}/containerd/root"
state = "/run/containerd-state"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
IMAGE = "localhost/busybox:1"


class RuntimeHost:
    """The namespaces of a node's container runtimes: its network, and mounts, IPC and host name of their own.  A
    context manager.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.directory = node.socket.parent
        self.bin_dir = self.directory / "bin"  # as /opt/cni/bin
        self.conf_dir = self.directory / "net.d"  # as /etc/cni/net.d
        self._holder = subprocess.Popen(
            [
                *("nsenter", f"--net={node.namespace}", "unshare", "--mount", "--ipc", "--uts"),
                *("sh", "-ec", ENTER, "sh", str(self.directory)),
            ],
            stdout=subprocess.PIPE,
            env=environment(node.prefix),
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", "the namespaces of the runtimes cannot be made"
        self.daemon: subprocess.Popen[bytes] | None = None
        self._prepare()

    def __enter__(self) -> "RuntimeHost":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs in these namespaces, containers that were not removed as well."""
        for pid in self.node.pids() if self.daemon is not None else ():
            if processes.name(pid).startswith("containerd-shim"):
                os.kill(pid, signal.SIGKILL)
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait(LIMIT)
        self._holder.kill()
        self._holder.communicate()
        for root in [*CGROUPS.glob("*/"), CGROUPS]:
            for name in OWN_CGROUPS:
                for group, _, _ in os.walk(root / name, topdown=False):
                    with suppress(OSError):  # somebody else's container is in it
                        Path(group).rmdir()

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in these namespaces, with the node's socket for the plugin."""
        enter = ["nsenter", "-t", str(self._holder.pid), "--net", "--mount", "--ipc", "--uts"]
        variables = {
            "OVERLAYD_CNI_SOCKET": self.node.socket.with_name("cni.sock"),
            "CONTAINERS_CONF": self.directory / "containers.conf",
            "CONTAINERS_STORAGE_CONF": self.directory / "storage.conf",
            "OVERLAYD_SOCKET": self.node.socket,
            "CONTAINERD_SNAPSHOTTER": "native",
            "PATH": ":".join([str(self.directory / "tools"), *map(str, PROGRAMS), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": ":".join(map(str, LIBRARIES)),
        }
        return [*enter, "env", *(f"{key}={value}" for key, value in variables.items()), *map(str, argv)]

    def run(self, *argv: str | Path) -> str:
        """Run a program in these namespaces and return what it printed."""
        return run(self.command(argv), timeout=LIMIT, prefix=self.node.prefix)

    def install(self, *plugins: str, options: Sequence[str] = ()) -> str:
        """`overlayctl cni install`, beside those of Debian's plugins; returns what it printed."""
        for plugin in plugins:
            shutil.copy(PLUGINS / plugin, self.bin_dir)
        places = ["--bin-dir", str(self.bin_dir), "--conf-dir", str(self.conf_dir)]
        return self.node.overlayctl("cni", "install", *places, *options)

    # --- podman ---

    def podman(self, *words: str) -> str:
        """`podman WORDS`."""
        return self.run(PODMAN, "--log-level=error", *words).strip()

    # --- containerd ---

    def start_containerd(self) -> None:
        """Start the daemon, and give it the image of `IMAGE`."""
        archive = self.directory / "image.tar"
        write_image(archive)
        config = self.directory / "containerd.toml"
        config.write_text(CONTAINERD_CONF.format(directory=self.directory, image=IMAGE))
        with (self.directory / "containerd.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                self.command([CONTAINERD / "containerd", "--config", config]),
                stdout=log,
                stderr=log,
                env=environment(self.node.prefix),
                start_new_session=True,
            )
        until(self._answers, "containerd does not answer")
        for namespace in ("default", "k8s.io"):
            self.ctr("-n", namespace, "images", "import", "--snapshotter", "native", str(archive))

    def ctr(self, *words: str) -> str:
        """`ctr WORDS`."""
        return self.run(CONTAINERD / "ctr", *words).strip()

    def _answers(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, (self.directory / "containerd.log").read_text()[-2000:]
        argv = self.command([CONTAINERD / "ctr", "version"])
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def _prepare(self) -> None:
        """A root with nothing but busybox, and podman's files."""
        self.root = self.directory / "rootfs"
        make_root(self.root)
        tools = self.directory / "tools"
        tools.mkdir()
        self._write_tool("overlayctl", f"exec '{sys.executable}' -c '{CONTROL[-1]}'")
        found = ":".join([os.environ["PATH"], *map(str, PROGRAMS)])
        libraries = ":".join(map(str, LIBRARIES))
        conmon, runc = (  # podman does not hand on where their libraries are
            self._write_tool(
                name, f"LD_LIBRARY_PATH='{libraries}'; export LD_LIBRARY_PATH; exec '{shutil.which(name, path=found)}'"
            )
            for name in ("conmon", "runc")
        )
        (self.directory / "containers.conf").write_text(CONTAINERS_CONF.format(conmon=conmon, runc=runc))
        (self.directory / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{self.directory}/graph"\nrunroot = "/run/containers"\n'
        )

    def _write_tool(self, name: str, command: str) -> Path:
        """A program on the PATH of what runs here: this command of a shell, with the program's own words behind it."""
        tool = self.directory / "tools" / name
        tool.write_text(f'#!/bin/sh\n{command} "$@"\n')
        tool.chmod(0o755)
        return tool


def make_root(root: Path) -> None:
    """A container's root with nothing but busybox."""
    for name in ("bin", "etc", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for name in ("sh", "sleep", "ping", "ip", "cat", "wget", "httpd", "nc"):
        (root / "bin" / name).symlink_to("busybox")


def write_image(archive: Path) -> None:
    """An OCI image of busybox alone that sleeps, as `ctr images import` takes it."""
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        info = tarfile.TarInfo("bin/busybox")
        content = BUSYBOX.read_bytes()
        info.size, info.mode = len(content), 0o755
        tar.addfile(info, BytesIO(content))
        for name in ("sh", "sleep", "ping", "ip", "cat", "pause"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    packed = blob(layer.getvalue(), "layer.v1.tar")
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "100000"]},
        "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
    }
    described = blob(json.dumps(config).encode(), "config.v1+json")
    manifest = blob(
        json.dumps({"schemaVersion": 2, "config": described, "layers": [packed]}).encode(), "manifest.v1+json"
    )
    manifest["annotations"] = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"}
    with tarfile.open(archive, "w") as tar:
        files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), int(time.time())
            tar.addfile(info, BytesIO(data))
