"""Forwarding, as /proc shows it afterwards."""

import errno
import os
import subprocess
import sys

import pytest

from overlayd.errors import MechanismError
from overlayd.linux import forwarding, sysctl


def test_forwarding_and_router_advertisements(host, shell):
    shell("ip link add up0 type veth peer name up1; ip link add zl.0 type bridge; ip link add off0 type bridge")
    shell("sysctl -qw net.ipv6.conf.off0.accept_ra=0 net.ipv4.conf.all.rp_filter=1")
    assert sysctl.read("ipv6/conf/up0/accept_ra") == "1"
    forwarding.enable()
    forwarding.settle(["zl.0"])
    assert sysctl.read("ipv4/ip_forward") == "1"
    assert sysctl.read("ipv6/conf/all/forwarding") == "1"
    assert (sysctl.read("ipv6/conf/up0/accept_ra"), sysctl.read("ipv6/conf/off0/accept_ra")) == ("2", "0")
    assert (sysctl.read("ipv4/conf/zl.0/rp_filter"), sysctl.read("ipv4/conf/zl.0/forwarding")) == ("2", "1")
    sysctl.write("ipv6/conf/up0/accept_ra", "1")
    forwarding.enable()
    assert sysctl.read("ipv6/conf/up0/accept_ra") == "1", "once forwarding is on, it is the operator's"


def test_read_only_parameters(host):
    """In a mount namespace of its own, whose /proc/sys cannot be written, as in a container."""
    script = """
from overlayd.errors import MechanismError
from overlayd.linux import forwarding
try:
    forwarding.enable()
    print("done")
except MechanismError as error:
    print(error)
"""
    program = [sys.executable, "-c", script]
    command = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'

    def run():
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", command, "sh", *program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        ).stdout

    sysctl.write("ipv4/ip_forward", "0")
    assert "net/ipv4/ip_forward" in run() and "Read-only file system" in run()
    forwarding.enable()
    assert run() == "done\n"


def test_a_parameter_that_is_not_there(host):
    with pytest.raises(MechanismError) as raised:
        sysctl.read("ipv4/nonesuch")
    assert (raised.value.errno, raised.value.object) == (errno.ENOENT, "net/ipv4/nonesuch")
