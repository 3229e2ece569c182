"""A process that gets no further threads: what is accepted is done, who waits is not left, and the shortage is named.

Each case runs as a user of its own, whose limit (RLIMIT_NPROC) is used up: root has none.
"""

import os
import subprocess
import sys

import pytest

PRELUDE = """
import asyncio, logging, os, resource, sys
from ipaddress import ip_address
from threading import Event, Thread, get_ident
from overlayd.daemon.change.forgetter import Forgetter
from overlayd.daemon.peers.lookup import LOOKUPS, Lookups
from overlayd.errors import MechanismError
from overlayd.linux import threads

logging.basicConfig(stream=sys.stdout)
uid = 1_000_000 + os.getpid()
os.setresuid(uid, uid, uid)

def allow(count):
    resource.setrlimit(resource.RLIMIT_NPROC, (count, 1000))

resource.setrlimit(resource.RLIMIT_NPROC, (1, 1000))
"""

POOL = """
try:
    threads.Pool(4, "kernel")
except MechanismError as error:
    print(error)
allow(2)
pool = threads.Pool(4, "kernel")
gate = Event()
first = pool.submit(gate.wait)
others = [pool.submit(get_ident) for _ in range(3)]
gate.set()
assert len({each.result() for each in others}) == 1
pool.shutdown()
"""

FORGETTER = """
subject, address = Forgetter(), ip_address("10.1.1.1")
subject.forget([address])
subject.wait_for(address)
subject.forget([address])
subject.close()
allow(2)
subject.forget([address])
subject.wait_for(address)
"""

LOOKUP = """
async def main():
    lookups = Lookups()
    for _ in range(LOOKUPS + 1):
        try:
            await lookups.addresses("127.0.0.1")
            raise AssertionError("a thread was started")
        except OSError as error:
            told = error
    print(told)
    allow(2)
    assert await lookups.addresses("127.0.0.1") == [ip_address("127.0.0.1")]

asyncio.run(main())
"""

START = """
try:
    threads.start(Thread(target=print, name="journal"))
except MechanismError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="takes the right to become another user")
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (POOL, ["start thread kernel: Resource temporarily unavailable (errno 11): ", "no further thread (kernel)"]),
        (FORGETTER, ["are forgotten later: no thread: "]),
        (LOOKUP, ["start thread resolver: "]),
        (START, ["start thread journal: Resource temporarily unavailable (errno 11): "]),
    ],
    ids=["pool", "forgetter", "lookup", "start"],
)
def test_a_shortage_of_threads(code: str, told: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for each in told:
        assert each in done.stdout
    assert "TasksMax=" in done.stdout
