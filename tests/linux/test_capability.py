"""Which capabilities a process holds."""

import subprocess
import sys

from overlayd.linux import capability

ASK = "from overlayd.linux import capability; print(capability.missing(*capability.BITS))"


def test_root_lacks_none() -> None:
    assert capability.missing(*capability.BITS) == ""


GIVE_UP = """
from overlayd.linux import capability
capability.give_up_others()
import subprocess
for name in ("Eff", "Prm", "Bnd", "Amb", "Inh"):
    print(name, hex(capability._held("Cap" + name)))
print(subprocess.run(["sh", "-c", "grep -E 'CapEff|CapPrm|NoNewPrivs' /proc/self/status"], capture_output=True,
                     text=True).stdout)
"""


def given_up(*prefix: str) -> dict[str, list[str]]:
    done = subprocess.run([*prefix, sys.executable, "-c", GIVE_UP], check=True, capture_output=True, text=True)
    found: dict[str, list[str]] = {}
    for line in done.stdout.split("\n"):
        if line:
            name, value = line.replace(":", "").split()
            found.setdefault(name, []).append(value)
    return found


def test_what_is_not_needed_is_given_up_for_good_and_for_children() -> None:
    needed = hex(sum(1 << bit for bit in capability.BITS.values()))
    found = given_up()
    assert (found["Eff"], found["Prm"], found["Bnd"]) == ([needed], [needed], [needed])
    assert (found["Amb"], found["Inh"]) == (["0x0"], ["0x0"])
    assert {int(each, 16) for each in (*found["CapEff"], *found["CapPrm"])} == {int(needed, 16)}
    assert found["NoNewPrivs"] == ["1"]


def test_what_is_not_there_is_not_missed() -> None:
    found = given_up("setpriv", "--bounding-set", "-net_raw,-setpcap", "--inh-caps", "-net_raw,-setpcap")
    assert int(found["Eff"][0], 16) == sum(1 << bit for name, bit in capability.BITS.items() if name != "CAP_NET_RAW")


def test_the_first_that_is_missing_is_named() -> None:
    drop = "-net_raw,-sys_admin"
    done = subprocess.run(
        ["setpriv", "--bounding-set", drop, "--inh-caps", drop, sys.executable, "-c", ASK],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "CAP_NET_RAW\n"
