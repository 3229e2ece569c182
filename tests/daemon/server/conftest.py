"""Fixtures of the server's tests."""

import asyncio
from pathlib import Path

import pytest
import uvloop


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")
