"""Legacy iptables, whose tables nftables does not show.

Owns: whether it filters here, and asking `iptables-legacy` for its rules.  Must not know: what the rules mean
(`model.iptables`).

Every function acts in the network namespace that the calling thread is in.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.linux import programs
from overlayd.model import iptables
from overlayd.model.firewall import Ruleset
from overlayd.model.iptables import TABLES

# By family: where the kernel lists its tables, and the program that shows them.
_FAMILIES = {"ip": ("ip_tables_names", "iptables-legacy"), "ip6": ("ip6_tables_names", "ip6tables-legacy")}
_PATIENCE = 5  # our own constant: seconds for a program that prints some lines


def tables() -> dict[str, list[str]]:
    """The tables that are loaded, by family ("ip", "ip6"), where there are any.  To be asked first: `iptables-legacy`
    itself loads one that it shows.
    """
    loaded = {family: set(_read(names).split()) for family, (names, _) in _FAMILIES.items()}
    return {family: found for family, names in loaded.items() if (found := [each for each in TABLES if each in names])}


def program(family: str) -> str:
    """The name of the program for a family."""
    return _FAMILIES[family][1]


def ruleset(family: str, loaded: Iterable[str]) -> Ruleset | None:
    """The chains of some tables, None when the program is not installed.  MechanismError when it fails."""
    name = program(family)
    if programs.find(name) is None:
        return None
    found = Ruleset()
    for table in loaded:
        try:
            done = subprocess.run(
                [name, "-t", table, "-S"], capture_output=True, text=True, timeout=_PATIENCE, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise MechanismError("ask", f"{name} -t {table} -S", 0, str(said).strip()) from error
        shown = iptables.read(family, table, done.stdout)
        found.hooked.extend(shown.hooked)
        found.rules.update(shown.rules)
    return found


def _read(names: str) -> str:
    try:
        return Path("/proc/thread-self/net", names).read_text()
    except OSError:  # the kernel has no legacy iptables, or nobody has used it
        return ""
