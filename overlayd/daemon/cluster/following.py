"""Following the store: the session of `proto.store` at work on real connections.

Owns: the questions and the stream that are under way, and the clock and chance of the session.  Must not know: what is
in the keys.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing

from overlayd.daemon.cluster.etcd import Etcd
from overlayd.errors import OverlaydError
from overlayd.proto.store import Close, Delta, List, Output, Quiet, Session, Snapshot, Verify, Watch, Witness

News = Snapshot | Delta | Quiet


class Following:
    """prefix: of the keys that are followed.  revision, witness: what is known already.  told: is given the news, in
    order.
    """

    def __init__(
        self, etcd: Etcd, prefix: str, revision: int, witness: Witness | None, told: Callable[[News], None]
    ) -> None:
        self.session = Session(len(etcd.servers), random.random, revision=revision, witness=witness)
        self._etcd = etcd
        self._prefix = prefix
        self._told = told
        self._question: asyncio.Task[None] | None = None
        self._stream: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Follow until it is cancelled."""
        loop = asyncio.get_running_loop()
        self.session.since = loop.time()
        try:
            while True:
                self._do(self.session.tick(loop.time()))
                self._woken.clear()
                try:
                    async with asyncio.timeout_at(self.session.due):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            for task in (self._question, self._stream):
                if task is not None:
                    task.cancel()

    def list_anew(self) -> None:
        """The follower lost count."""
        self.session.list_anew()
        self._woken.set()

    def written(self, revision: int) -> None:
        """What is followed was changed at this revision: the stream has to bring it."""
        self.session.written(revision, asyncio.get_running_loop().time())
        self._woken.set()

    def _do(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case List() | Verify():
                    self._question = _replace(self._question, self._list(output))
                case Watch():
                    self._stream = _replace(self._stream, self._watch(output))
                case Close():
                    if self._stream is not None and self._stream is not asyncio.current_task():
                        self._stream.cancel()
                    self._stream = None
                case _:
                    self._told(output)
        self._woken.set()

    async def _list(self, asked: List | Verify) -> None:
        now = asyncio.get_running_loop().time
        try:
            if isinstance(asked, Verify):
                page = await self._etcd.verify(asked)
            else:
                page = await self._etcd.page(asked, self._prefix)
        except OverlaydError as error:
            self._do(self.session.failed(asked.number, error, now()))
        else:
            self._do(self.session.page(asked.number, page, now()))

    async def _watch(self, asked: Watch) -> None:
        now = asyncio.get_running_loop().time
        try:
            async with aclosing(self._etcd.watch(asked, self._prefix)) as messages:
                async for message in messages:
                    self._do(self.session.message(asked.number, message, now()))
                    if self._stream is not asyncio.current_task():
                        return
        except OverlaydError as error:
            self._do(self.session.failed(asked.number, error, now()))


def _replace(old: asyncio.Task[None] | None, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    """Another task in the place of one; the caller may be that one, which then ends by itself."""
    if old is not None and old is not asyncio.current_task():
        old.cancel()
    return asyncio.get_running_loop().create_task(work)
