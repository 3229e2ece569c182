"""The Debian package: built of the checkout, installed and removed by dpkg in a copy of this machine's root."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.processes import ROOT, run
from lab.root_copy import run_in_copy
from pages import blocks

from overlayd import __version__

BUILD = ROOT / "deploy" / "deb" / "build"


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run([sys.executable, BUILD, directory], capture_output=True, text=True, check=False)
        if "make .venv with" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = Path(directory).glob("*.deb")
        yield made


def inside(package: Path, script: str) -> str:
    """What a shell script prints that runs in a copy of this machine's root, with the package at /run/overlayd.deb."""
    return run_in_copy(script, {"overlayd.deb": package})


def test_its_description(package: Path) -> None:
    shown = run(["dpkg-deb", "--field", package])
    assert f"\nVersion: {__version__}\n" in shown
    major, minor = sys.version_info[:2]
    assert f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})" in shown
    names = re.findall(r" \./(\S+)$", run(["dpkg-deb", "--contents", package]), re.MULTILINE)
    assert {"usr/sbin/overlayd", "usr/bin/overlayctl", "usr/lib/systemd/system/overlayd.service"} <= {*names}
    assert {f"usr/lib/overlayd/overlayd/{each}" for each in ("web/page.html", "cni/overlayd-cni")} <= {*names}
    assert not [each for each in names if "__pycache__" in each or each.endswith((".pyx", ".c"))]


def test_it_is_installed_runs_and_leaves_nothing_but_the_state(package: Path) -> None:
    shown = inside(
        package,
        """
        groupdel overlayd 2> /dev/null || true
        list() { find /etc /opt /usr /var -xdev -name __pycache__ -prune -o -print | sort; }
        list > /run/before
        dpkg --install /run/overlayd.deb > /dev/null
        PYTHONPATH=/nowhere /usr/sbin/overlayd --version
        overlayctl version --socket /nowhere || true
        getent group overlayd
        test -x /usr/lib/overlayd/overlayd/cni/overlayd-cni
        systemd-analyze verify overlayd.service
        test -e /usr/lib/overlayd/overlayd/daemon/__pycache__
        mkdir /var/lib/overlayd
        dpkg --install /run/overlayd.deb > /dev/null
        dpkg --purge overlayd
        list > /run/after
        echo left:
        comm -13 /run/before /run/after | grep -v '^/var/lib/dpkg'
        """,
    )
    assert f"overlayd {__version__}\n" in shown
    assert re.search("^overlayd:x:", shown, re.MULTILINE)
    assert shown.partition("left:\n")[2].split() == ["/var/lib/overlayd"]


def test_the_page_installs_it(package: Path) -> None:
    """`make deb` is the fixture's; dpkg stands for apt, which asks the network."""
    shown = inside(
        package,
        f"""
        mkdir -p /run/checkout/dist && cp /run/overlayd.deb /run/checkout/dist/overlayd_1_all.deb
        cd /run/checkout
        make() {{ [ "$*" = deb ]; }}
        apt() {{ [ "$1" = install ] && dpkg --install "$2" > /dev/null; }}
        systemctl() {{ [ "$1 $2" = "enable --now" ] && command systemctl --root=/ enable "$3"; }}
        {blocks("install")[0]}
        overlayd --version
        find /etc/systemd/system -name 'overlayd.*' -printf '%P\\n'
        """,
    )
    assert f"overlayd {__version__}\n" in shown
    enabled = {"multi-user.target.wants/overlayd.service", "sockets.target.wants/overlayd.socket"}
    assert enabled <= {*shown.splitlines()}
