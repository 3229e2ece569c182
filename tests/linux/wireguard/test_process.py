"""Why a process of wireguard-go cannot be started, in words."""

import subprocess
import sys

import pytest

from overlayd.linux.wireguard.userspace import Userspace

pytest.register_assert_rewrite("wireguard_cases")
from wireguard_cases import Namespaces  # noqa: E402

CREATE = """
import sys
from overlayd.errors import MechanismError
from overlayd.linux.wireguard.choice import choose
from overlayd.linux.wireguard.userspace import Userspace
from overlayd.model.objects import Device
try:
    Userspace().create(Device("", sys.argv[1], bytes(32), 51820, 1420, frozenset()))
except MechanismError as error:
    print(error)
try:
    choose("userspace")
except MechanismError as error:
    print(error)
"""


def created_under(alpha, *prefix):
    """The two messages of a program that tries to create and to choose the backend, run behind `prefix`."""
    command = ["ip", "netns", "exec", alpha.namespace.name, *prefix, sys.executable, "-c", CREATE, alpha.device().name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


class TestStart(Namespaces):
    @pytest.fixture
    def backend(self):
        return Userspace()

    def test_a_missing_tun_device_is_named(self, alpha):
        without = "mount -t tmpfs none /dev/net && exec " + '"$0" "$@"'
        creation, choice = created_under(alpha, "unshare", "--mount", "sh", "-c", without)
        assert "/dev/net/tun does not exist" in creation
        assert "/dev/net/tun does not exist" in choice

    def test_a_missing_program_is_named(self, alpha):
        creation, choice = created_under(alpha, "env", "PATH=/nonexistent")
        assert "wireguard-go is not in PATH" in creation
        assert "wireguard-go is not in PATH" in choice

    def test_a_missing_capability_is_told_in_the_words_of_the_process(self, alpha):
        creation, *_ = created_under(alpha, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
        assert "operation not permitted" in creation
        assert "TUN" in creation

    def test_a_crash_is_told_without_its_stacks(self, alpha):
        creation, *_ = created_under(alpha, "prlimit", "--as=300000000")
        assert "cannot allocate memory" in creation or "out of memory" in creation or "failed to" in creation, creation
        assert "goroutine" not in creation and "mallocinit" not in creation
