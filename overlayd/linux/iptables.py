"""Legacy iptables, whose tables nftables does not show.

Owns: whether it filters here, and asking `iptables-legacy` for its rules.  Must not know: what the rules mean
(`model.iptables`).

Every function acts in the network namespace that the calling thread is in.
"""

import subprocess
from pathlib import Path

from overlayd.errors import MechanismError
from overlayd.linux import programs
from overlayd.model import iptables
from overlayd.model.firewall import Ruleset

# By family: where the kernel lists its tables, and the program that shows them.
_FAMILIES = {"ip": ("ip_tables_names", "iptables-legacy"), "ip6": ("ip6_tables_names", "ip6tables-legacy")}
_PATIENCE = 5  # our own constant: seconds for a program that prints some lines


def families() -> list[str]:
    """The families, "ip" and "ip6", for which the table "filter" is loaded.  To be asked first: `iptables-legacy -S`
    itself loads it.
    """
    return [family for family, (names, _) in _FAMILIES.items() if "filter" in _read(names).split()]


def program(family: str) -> str:
    """The name of the program for a family."""
    return _FAMILIES[family][1]


def ruleset(family: str) -> Ruleset | None:
    """The chains of the table "filter", None when the program is not installed.  MechanismError when it fails."""
    name = program(family)
    if programs.find(name) is None:
        return None
    try:
        done = subprocess.run([name, "-S"], capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise MechanismError("ask", f"{name} -S", 0, str(said).strip()) from error
    return iptables.read(family, done.stdout)


def _read(names: str) -> str:
    try:
        return Path("/proc/thread-self/net", names).read_text()
    except OSError:  # the kernel has no legacy iptables, or nobody has used it
        return ""
