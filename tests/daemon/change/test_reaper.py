"""Deleting real veths in a namespace of the test's own thread, and what becomes of a refusal."""

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from lab.patience import LIMIT

from overlayd.daemon.change import reaper
from overlayd.daemon.change.reaper import Reaper
from overlayd.errors import MechanismError
from overlayd.model.objects import GROUP_VETH, Netns

NAMES = [f"veth-{n}-s" for n in range(1, 41)]


def named(*names):
    """Veths whose other end is nobody's."""
    return dict.fromkeys(names, Netns(0, 0, 0))


@pytest.fixture
def host():
    """A namespace of this thread, and of the threads it starts."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x40000000) == 0, "CLONE_NEWNET needs root"
    yield
    assert libc.setns(home, 0) == 0
    os.close(home)


def make(names):
    lines = [f"link add {name} group {GROUP_VETH} type veth peer name i{name[5:]}" for name in names]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def links():
    shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return [line.split()[1] for line in shown.splitlines() if "veth" in line]


@pytest.mark.parametrize("count", [1, 40])
def test_links_are_gone_when_it_returns(host, count):
    make(NAMES[:count])
    subject = Reaper()
    subject.delete(named(*NAMES[:count]))
    assert not links()
    subject.delete(named(*NAMES))  # what is absent is no error
    subject.close()


def test_many_callers_at_once(host):
    make(NAMES)
    subject = Reaper()
    with ThreadPoolExecutor(len(NAMES)) as callers:
        list(callers.map(lambda name: subject.delete(named(name)), NAMES))
    assert not links()
    subject.close()


def test_a_name_that_is_not_ours_is_left_alone(host):
    subprocess.run(["ip", "link", "add", "foreign", "type", "bridge"], check=True)
    subject = Reaper()
    subject.delete(named("foreign"))
    assert reaper._exists("foreign")
    subject.close()


def test_callers_share_a_deletion_that_has_not_begun(monkeypatch):
    batches, may_end = [], Event()

    def delete(names, _namespaces):
        batches.append(sorted(names))
        may_end.wait(LIMIT)

    monkeypatch.setattr(reaper.veth_removal, "delete", delete)
    monkeypatch.setattr(reaper, "THREADS", 1)
    subject = Reaper()
    with ThreadPoolExecutor(5) as callers:
        first = callers.submit(subject.delete, named("lo"))  # exists, so its caller waits for the end
        while not batches:
            pass
        others = [callers.submit(subject.delete, named("lo", name)) for name in NAMES[:4]]
        while len(subject._next.namespaces) < 5:
            pass
        may_end.set()
        for caller in (first, *others):
            caller.result(LIMIT)
    assert batches == [["lo"], sorted(["lo", *NAMES[:4]])]
    subject.close()


def test_a_refusal_reaches_every_caller_whose_link_is_still_there(monkeypatch):
    def refuse(names, _namespaces):
        raise MechanismError("delete", "lo", 1)

    monkeypatch.setattr(reaper.veth_removal, "delete", refuse)
    subject = Reaper()
    with pytest.raises(MechanismError, match="Operation not permitted"):
        subject.delete(named("lo"))
    subject.close()
