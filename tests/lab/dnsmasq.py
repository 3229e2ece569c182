"""A dnsmasq for nodes to forward to.

Owns: its process, and what it knows.  Must not know: who asks.
"""

import subprocess

from lab import Lab, Node
from lab.processes import environment

LONG = [f"{number:02}-{'x' * 200}" for number in range(12)]  # texts that no datagram holds together


class Outside:
    """A dnsmasq on the host outside, or on a node."""

    def __init__(self, lab: Lab, address: str = "", *more: str, node: Node | None = None) -> None:
        self.address = address or str(lab.outside_address.ip)
        options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]
        options += ["--pid-file=", "--address=/www.example.org/192.0.2.80", "--local=/example.org/"]
        options += [f"--txt-record=long.example.org,{text}" for text in LONG]
        options += [f"--listen-address={address}", "--bind-interfaces"] if address else []
        self._argv = ["ip", "netns", "exec", node.netns if node else lab.outside, "dnsmasq", *options, *more]
        self._prefix = lab.prefix
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._argv, env=environment(self._prefix))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
