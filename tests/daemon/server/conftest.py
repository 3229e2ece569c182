"""Fixtures of the server's tests, which run on the event loop of the daemon."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")
