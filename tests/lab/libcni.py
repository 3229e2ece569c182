"""What a container runtime's library does with a list of CNI plugins: containernetworking/cni, libcni/api.go.

Owns: the chain, the cached results, and which call gets what.  Must not know: what a plugin does.  It is the runtime of
tests where Go's own (`cnitool`) cannot be had.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple


class PluginFailed(Exception):
    """A plugin's error.  told: as it printed it."""

    def __init__(self, plugin: str, told: dict[str, Any]) -> None:
        super().__init__(f"{plugin}: code {told.get('code')}: {told.get('msg')} ({told.get('details', '')})")
        self.told = told
        self.code = told.get("code")


class Interface(NamedTuple):
    """What a call is about."""

    id: str = ""
    netns: str = ""
    ifname: str = ""


class Runtime:
    """conflist: the list of plugins.  version: the one in which they are called.  path: where plugins lie, in order.
    within: the words of a program that executes them, such as `ip netns exec`.  environment: theirs beside CNI's.
    """

    def __init__(
        self,
        conflist: Mapping[str, Any],
        version: str,
        path: Sequence[Path],
        *,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.conflist = conflist
        self.version = version
        self.path = path
        self.within = within
        self.environment = {"PATH": os.environ["PATH"], **(environment or {})}
        self._cache: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, id: str, netns: str, ifname: str = "eth0", **given: Any) -> dict[str, Any]:
        """Attach a container: each plugin gets the result of the one before it.  given: `args` as CNI_ARGS, else values
        of capabilities, which plugins get that advertise them.
        """
        result: dict[str, Any] | None = None
        for plugin in self.conflist["plugins"]:
            result = self._call("ADD", plugin, Interface(id, netns, ifname), given, result)
        assert result is not None
        self._cache[id, ifname] = result
        return result

    def check(self, id: str, netns: str, ifname: str = "eth0", only: str = "", **given: Any) -> None:
        """Ask every plugin, or one alone, whether all is as the ADD left it."""
        for plugin in (each for each in self.conflist["plugins"] if only in ("", each["type"])):
            self._call("CHECK", plugin, Interface(id, netns, ifname), given, self._cache[id, ifname])

    def delete(self, id: str, netns: str = "", ifname: str = "eth0", **given: Any) -> None:
        """Detach, the last plugin first; without a result that is not cached (any more)."""
        cached = self._cache.pop((id, ifname), None) if self.version >= "0.4.0" else None
        for plugin in reversed(self.conflist["plugins"]):
            self._call("DEL", plugin, Interface(id, netns, ifname), given, cached)

    def status(self) -> None:
        """Ask every plugin whether an ADD could succeed."""
        for plugin in self.conflist["plugins"]:
            self._call("STATUS", plugin)

    def collect(self, valid: Sequence[tuple[str, str]] | None) -> None:
        """GC.  Cached attachments that are not valid are deleted first, as libcni does; None: nobody said which are."""
        for id, ifname in [key for key in self._cache if valid is not None and key not in valid]:
            self.delete(id, ifname=ifname)
        listed = [{"containerID": id, "ifname": ifname} for id, ifname in valid] if valid is not None else None
        more = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed} if listed is not None else {}
        for plugin in self.conflist["plugins"]:
            self._call("GC", {**plugin, **more})

    def _call(
        self,
        command: str,
        plugin: Mapping[str, Any],
        of: Interface = Interface(),  # noqa: B008
        given: Mapping[str, Any] = MappingProxyType({}),
        previous: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        config = {key: value for key, value in plugin.items() if key != "capabilities"}
        config |= {"name": self.conflist["name"], "cniVersion": self.version}
        advertised = plugin.get("capabilities", {})
        if runtime := {key: value for key, value in given.items() if advertised.get(key)}:
            config["runtimeConfig"] = runtime
        if previous is not None:
            config["prevResult"] = previous
        environment = {
            **self.environment,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": of.id,
            "CNI_NETNS": of.netns,
            "CNI_IFNAME": of.ifname,
            "CNI_ARGS": given.get("args", ""),
            "CNI_PATH": ":".join(map(str, self.path)),
        }
        program = next(each for each in (at / plugin["type"] for at in self.path) if each.exists())
        done = subprocess.run(
            [*self.within, program],
            input=json.dumps(config).encode(),
            env=environment,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise PluginFailed(plugin["type"], json.loads(done.stdout or b'{"msg":"died without a word"}'))
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}
