"""Fixtures of the tests of the name server."""

import pytest
from asked_forwarder import made
from lab.patience import LIMIT
from lab.ports import free_port

from overlayd.daemon.dns import exchange, loops
from overlayd.daemon.dns import forwarder as module
from overlayd.daemon.dns.upstreams import Upstream


@pytest.fixture
def quick(monkeypatch):
    """A fifth of the times, and no marks but in the tests of loops."""
    for name in ("RESTART", "AGAIN", "TRY", "PATIENCE", "SILENT"):
        monkeypatch.setattr(exchange, name, getattr(exchange, name) / 5)
    monkeypatch.setattr(module, "STALE_AFTER", module.STALE_AFTER / 5)
    monkeypatch.setattr(loops.Loops, "check", lambda self, *_: None)


@pytest.fixture
def patient(quick, monkeypatch):
    """A server that answers is asked once, however busy the machine is: for tests that count questions."""
    for name, seconds in {"AGAIN": LIMIT, "TRY": 2 * LIMIT, "PATIENCE": 4 * LIMIT}.items():
        monkeypatch.setattr(exchange, name, seconds)


@pytest.fixture
def dead():
    """A port where nobody listens."""
    return Upstream("127.0.0.1", free_port())


@pytest.fixture
async def closed():
    """Every forwarder, after its test, within the test's loop."""
    yield
    while made:
        made.pop().close()
