"""Which capabilities a process holds."""

import subprocess
import sys

from overlayd.linux import capability

ASK = "from overlayd.linux import capability; print(capability.missing(*capability.BITS))"


def test_root_lacks_none() -> None:
    assert capability.missing(*capability.BITS) == ""


def test_the_first_that_is_missing_is_named() -> None:
    drop = "-net_raw,-sys_admin"
    done = subprocess.run(
        ["setpriv", "--bounding-set", drop, "--inh-caps", drop, sys.executable, "-c", ASK],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "CAP_NET_RAW\n"
