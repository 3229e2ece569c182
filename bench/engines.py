"""The programs by which container engines attach: CNI's `bridge` plugin and netavark.

Owns: their configuration at its cheapest, without masquerade and published ports, and their command lines.  Must not
know: what they are compared with.

A process is started for each call, as the engines do; it works in the network namespace of the calling thread.
"""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

PLUGINS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
NETAVARK = shutil.which("netavark", path=f"{os.environ.get('PATH', '')}:/usr/lib/podman:/usr/libexec/podman")


class CniBridge:
    """The `bridge` plugin with `host-local` addresses.  directory: for what it remembers."""

    name = "CNI bridge"

    def __init__(self, directory: Path, *, masquerade: bool = False) -> None:
        self.plugins = next(path for path in PLUGINS if (path / "bridge").exists())
        self.configuration = json.dumps(
            {
                "cniVersion": "1.0.0",
                "name": "bench",
                "type": "bridge",
                "bridge": "cni-bench",
                "isGateway": True,
                "ipMasq": masquerade,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.87.0.0/16"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(directory / "cni"),
                },
            }
        )

    @staticmethod
    def missing() -> str:
        """Why it cannot run here, or nothing."""
        found = any((path / "bridge").exists() for path in PLUGINS)
        return "" if found else "no CNI plugins: apt-get install containernetworking-plugins"

    def attach(self, pid: int) -> None:
        self.call("ADD", f"bench{pid}", f"/proc/{pid}/ns/net")

    def detach(self, pid: int) -> None:
        self.call("DEL", f"bench{pid}", f"/proc/{pid}/ns/net")

    def call(self, command: str, id: str, namespace: str) -> None:
        """ADD or DEL eth0 of a network namespace, by its path."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": id,
            "CNI_NETNS": namespace,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.plugins),
            "PATH": os.environ["PATH"],
        }
        _run([str(self.plugins / "bridge")], self.configuration, environment)


class Netavark:
    """netavark with an internal network, for which it makes no firewall rules."""

    name = "netavark"

    def __init__(self, directory: Path) -> None:
        assert NETAVARK is not None
        self.command = [NETAVARK, "--config", str(directory / "netavark")]
        self.addresses: dict[int, str] = {}  # by pid
        self._numbers = itertools.count(2)
        (directory / "netavark").mkdir(parents=True)

    @staticmethod
    def missing() -> str:
        """Why it cannot run here, or nothing."""
        return "" if NETAVARK is not None else "no netavark: apt-get install netavark"

    def attach(self, pid: int) -> None:
        number = next(self._numbers) % 65_536
        self.addresses[pid] = f"10.88.{number >> 8}.{number & 255}"
        self._call("setup", pid)

    def detach(self, pid: int) -> None:
        self._call("teardown", pid)
        del self.addresses[pid]

    def _call(self, command: str, pid: int) -> None:
        network = {
            "name": "bench",
            "id": "b" * 64,
            "driver": "bridge",
            "network_interface": "nv-bench",
            "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}],
            "ipv6_enabled": False,
            "internal": True,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
        options = {
            "container_id": f"{pid:064d}",
            "container_name": f"bench{pid}",
            "networks": {"bench": {"static_ips": [self.addresses[pid]], "interface_name": "eth0"}},
            "network_info": {"bench": network},
        }
        _run([*self.command, command, f"/proc/{pid}/ns/net"], json.dumps(options), dict(os.environ))


ENGINES: tuple[type[CniBridge] | type[Netavark], ...] = (CniBridge, Netavark)


def _run(argv: list[str], stdin: str, environment: dict[str, str]) -> None:
    done = subprocess.run(argv, input=stdin, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stdout}{done.stderr}")
