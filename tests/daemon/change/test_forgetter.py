"""Forgetting behind the answers: shared walks, and nobody takes an address over before its walk is over."""

from ipaddress import ip_address
from threading import Event, Thread

import pytest
from lab.patience import LIMIT

from overlayd.daemon.change import forgetter
from overlayd.daemon.change.forgetter import Forgetter
from overlayd.errors import MechanismError

ADDRESSES = [ip_address(f"10.0.0.{n}") for n in range(1, 6)]


class Table:
    """Stands for the kernel's table: walks are recorded, and wait until they may end."""

    def __init__(self, monkeypatch):
        self.walks, self.began, self.may_end = [], Event(), Event()
        monkeypatch.setattr(forgetter.conntrack, "forget", self.walk)

    def walk(self, addresses):
        self.walks.append(set(addresses))
        self.began.set()
        assert self.may_end.wait(LIMIT)


def test_releases_during_a_walk_share_the_next(monkeypatch):
    table, subject = Table(monkeypatch), Forgetter()
    subject.forget(ADDRESSES[:1])
    assert table.began.wait(LIMIT)
    for address in ADDRESSES[1:]:
        subject.forget([address])
    table.may_end.set()
    subject.close()
    assert table.walks == [{ADDRESSES[0]}, set(ADDRESSES[1:])]


def test_a_successor_waits_for_the_walk_and_others_do_not(monkeypatch):
    table, subject = Table(monkeypatch), Forgetter()
    monkeypatch.setattr(forgetter, "PAUSE", 3600)
    subject.forget(ADDRESSES[:1])
    subject.wait_for(ADDRESSES[1])
    assert not table.walks
    successor = Thread(target=subject.wait_for, args=ADDRESSES[:1])
    successor.start()
    assert table.began.wait(LIMIT)
    successor.join(0.05)
    assert successor.is_alive()
    table.may_end.set()
    successor.join(LIMIT)
    assert not successor.is_alive()
    subject.close()


@pytest.mark.parametrize("error", [MechanismError("forget connections of", "10.0.0.1", 1), KeyError("a bug")])
def test_a_refused_walk_blocks_nobody(monkeypatch, caplog, error):
    def refuse(addresses):
        raise error

    monkeypatch.setattr(forgetter.conntrack, "forget", refuse)
    subject = Forgetter()
    subject.forget(ADDRESSES)
    subject.wait_for(ADDRESSES[0])
    subject.close()
    assert "Operation not permitted" in caplog.text or "a bug" in caplog.text
