"""Which process, which namespace: told apart by start time and inode, on real processes."""

import errno
import os
import select
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lab.patience import LIMIT

from overlayd.errors import MechanismError
from overlayd.linux import netns
from overlayd.linux.link import find_link


def errno_of(call, *arguments):
    with pytest.raises(MechanismError) as raised:
        call(*arguments)
    return raised.value.errno


def test_identify_and_open(host, container):
    box = container()
    assert box.netns == netns.identify(box.pid)
    assert box.netns.inode != netns.own_inode()
    assert netns.is_alive(box.netns)
    descriptor = netns.open_namespace(box.netns)
    assert os.fstat(descriptor).st_ino == box.netns.inode
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_a_name_with_parentheses_and_spaces_does_not_confuse(host, tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    process = subprocess.Popen([program, "60"])
    try:
        expected = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19])
        assert netns.identify(process.pid).started == expected
    finally:
        process.kill()
        process.wait()


def test_a_number_that_no_process_can_have(host):
    assert netns.process_of(2**32 - 1) == 2**32 - 1
    assert errno_of(netns.identify, 2**32 - 1) in (errno.ENOENT, errno.ESRCH)


def test_a_dead_process(host, container):
    box = container()
    box.kill()
    assert not netns.is_alive(box.netns)
    for call, argument in [
        (netns.identify, box.pid),
        (netns.open_namespace, box.netns),
        (netns.pidfd, box.netns),
        (netns.ensure_running, box.netns),
    ]:
        assert errno_of(call, argument) == errno.ESRCH


def test_a_zombie_counts_as_gone(host, container):
    box = container()
    os.kill(box.pid, signal.SIGKILL)
    os.waitid(os.P_PID, box.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{box.pid}").exists()
    assert not netns.is_alive(box.netns)
    assert errno_of(netns.identify, box.pid) == errno.ESRCH
    assert errno_of(netns.open_namespace, box.netns) == errno.ESRCH
    assert errno_of(netns.pidfd, box.netns) == errno.ESRCH


def test_a_reused_pid_is_another_process(host, container):
    old = replace(container().netns, started=1)
    assert not netns.is_alive(old)
    assert errno_of(netns.open_namespace, old) == errno.ESRCH
    assert errno_of(netns.pidfd, old) == errno.ESRCH


def test_a_process_that_moved_is_not_where_it_was(host, container):
    moved = replace(container().netns, inode=1)
    assert not netns.is_alive(moved)
    assert errno_of(netns.open_namespace, moved) == errno.ESRCH


def test_the_hosts_own_namespace_is_refused(host, container):
    box = container(own_namespace=False)
    with pytest.raises(MechanismError, match="host's own network namespace") as raised:
        netns.open_namespace(box.netns)
    assert raised.value.errno == errno.EINVAL


def test_refusals_leave_no_descriptor_open(host, container):
    box = container()
    before = set(Path("/proc/self/fd").iterdir())
    for wrong in (replace(box.netns, started=1), replace(box.netns, inode=1)):
        errno_of(netns.open_namespace, wrong)
        errno_of(netns.pidfd, replace(box.netns, started=1))
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_pidfd_tells_the_exit(host, container):
    box = container()
    descriptor = netns.pidfd(box.netns)
    try:
        assert select.select([descriptor], [], [], 0)[0] == []
        box.kill()
        assert select.select([descriptor], [], [], LIMIT)[0] == [descriptor]
    finally:
        os.close(descriptor)


def test_a_socket_lives_in_the_namespace_and_the_thread_comes_back(host, container, shell):
    shell("ip link add here0 type bridge")
    box = container()
    box.run("ip link add there0 type bridge")
    home = netns.own_inode()
    descriptor = netns.open_namespace(box.netns)
    try:
        with netns.socket_in(descriptor) as netlink:
            assert netns.own_inode() == home
            assert find_link(netlink, "there0") is not None
            assert find_link(netlink, "here0") is None
        with pytest.raises(RuntimeError), netns.entered(descriptor):
            assert netns.own_inode() == box.netns.inode
            raise RuntimeError
        assert netns.own_inode() == home
    finally:
        os.close(descriptor)


def test_entering_what_is_no_namespace_is_an_error(host):
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        assert errno_of(netns.socket_in, descriptor) == errno.EINVAL
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR], ids=["pipe", "device", "socket", "directory"]
)
def test_what_can_be_no_namespace_is_not_even_opened(tmp_path, kind):
    """To open a pipe waits for who writes into it, and a device that is not there fails with ENXIO."""
    path = tmp_path / "it"
    if kind == stat.S_IFDIR:
        path.mkdir()
    else:
        os.mknod(path, kind | 0o600, os.makedev(240, 77))
    with pytest.raises(MechanismError) as caught:
        netns.open_file(str(path))
    assert (caught.value.errno, caught.value.detail) == (errno.EINVAL, "it is no network namespace")


def test_a_namespace_is_opened_by_whatever_leads_to_it(container, tmp_path):
    box = container()
    link = tmp_path / "link"
    link.symlink_to(f"/proc/{box.pid}/ns/net")
    for path in (f"/proc/{box.pid}/ns/net", str(link)):
        descriptor = netns.open_file(path)
        assert os.fstat(descriptor).st_ino == box.netns.inode
        os.close(descriptor)


def test_missing_capabilities_are_named(host, container):
    box = container()
    script = f"""
import os
from overlayd.errors import MechanismError
from overlayd.linux import netns
from overlayd.linux.link import find_link
from overlayd.model.objects import Netns
here = os.open("/proc/self/ns/net", os.O_RDONLY)
os.setuid(65534)
for call, argument in ((netns.identify, {box.pid}), (netns.open_namespace, {box.netns!r}), (netns.socket_in, here)):
    try:
        call(argument)
    except MechanismError as error:
        print(error.errno, error.detail)
"""
    output = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout.splitlines()
    assert output == [
        f"{errno.EACCES} missing capability CAP_SYS_PTRACE",
        f"{errno.EACCES} missing capability CAP_SYS_PTRACE",
        f"{errno.EPERM} missing capability CAP_SYS_ADMIN",
    ]


def test_no_way_back_aborts_the_process(host, container):
    box = container()
    script = f"""
import os
from overlayd.linux import netns
from overlayd.linux.link import find_link
descriptor = os.open("/proc/{box.pid}/ns/net", os.O_RDONLY)
with netns.entered(descriptor):
    os.setuid(65534)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == -signal.SIGABRT
    assert "cannot return to the own network namespace" in done.stderr
