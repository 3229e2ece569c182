"""A node of the laboratory as a container runtime has it: its daemon, called by the shim.

Owns: the calls.  Must not know: what is tested.
"""

from typing import Any

from lab import Lab
from lab.cluster import Member
from lab.container import Container

from cni.shim import CONFIG, Ended, call

SLICE = {**CONFIG, "subnet": "slice"}


class Side:
    """A node, and its socket for shims."""

    def __init__(self, lab: Lab, number: int, name: str) -> None:
        self.lab = lab
        self.member = Member(lab, number, name)
        self.path = self.member.node.socket.with_name("cni.sock")

    def call(self, command: str, config: dict[str, Any] | None = None, **given: str) -> Ended:
        return call(command, self.path, {**SLICE, **(config or {})}, **given)

    def add(self, container: Container, config: dict[str, Any] | None = None, **given: str) -> Ended:
        return self.call(
            "ADD", config, **{"netns": str(container.namespace), "containerid": f"c{container.pid}"} | given
        )

    def delete(self, container: Container, **given: str) -> Ended:
        return self.call("DEL", **{"containerid": f"c{container.pid}"} | given)

    def attached(self) -> dict[str, dict[str, Any]]:
        listed = self.member.request("list", what="containers").get("containers", [])
        return {each["handle"]: each for each in listed}

    def ended(self, *, within: int = 100) -> list[str]:
        """The lines of the audit that are of CNI."""
        return [line for line in self.member.node.log.read_text().splitlines() if " audit: cni_" in line][-within:]


def address(ended: Ended) -> str:
    """The address that an ADD has told."""
    assert ended.exit == 0, ended.stdout
    return str(ended.told["ips"][0]["address"]).partition("/")[0]
