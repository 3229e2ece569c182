"""The endpoints of an etcd: which is asked, how long for an answer is waited, and who we are to it.

Owns: connections, the order of endpoints, deadlines, the token of a user.  Must not know: keys, or what is in an answer
(`proto.etcd`).
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

from overlayd.daemon.cluster.connection import BadStatus, Connection, Headers, Server
from overlayd.daemon.cluster.refusal import Files
from overlayd.errors import ProtocolError
from overlayd.proto import etcd
from overlayd.proto.etcd import Call, Lease, Outcome
from overlayd.proto.grpc import ALPN, Message, NotSpoken
from overlayd.proto.store import List, Verify, Watch
from overlayd.proto.store_answers import AuthFailed, Changes, Denied, Entry, Page, StoreError, Unavailable, Watching

log = logging.getLogger(__name__)

# Our own constants, seconds.
CONNECT = 5.0
ANSWER = 10.0


class User(NamedTuple):
    """A user of etcd; the password is read from its file whenever it is needed."""

    name: str
    password_file: str


class Etcd:
    """servers: as they were given; node: our name, by which each node has another order of them.  prefix: of the keys
    that are read and written here, which are told without it.
    """

    def __init__(self, servers: Sequence[Server], node: str, prefix: str, files: Files, user: User | None) -> None:
        self.servers = sorted(servers, key=lambda server: _rank(node, server.url))
        self._prefix = prefix
        self._files = files
        self._user = user
        self._token = ""
        self._idle: dict[int, Connection] = {}
        self._current = 0
        self._resting: tuple[int, Connection] | None = None  # with a call that has no watch just now
        self.without_grpc: set[int] = set()  # endpoints to which none gets through

    def close(self) -> None:
        for connection in self._idle.values():
            connection.close()
        self._idle.clear()
        if self._resting is not None:
            self._resting[1].close()
            self._resting = None

    # --- reads and writes: any endpoint does ------------------------------------------------------------------------

    async def read(self, key: str, *, prefix: bool = False, any_member: bool = False) -> Page:
        """A key, or all that begin with it.  StoreError, here and below, when it cannot be had."""
        entries, revision, after = list[Entry](), 0, ""
        while True:
            call = etcd.range(
                self._prefix + key, prefix=prefix, after=after, limit=500, revision=revision, any_member=any_member
            )
            page = etcd.read_page(await self._ask(call, again=True))
            revision = revision or page.revision
            entries += page.entries
            if not page.more:
                return Page(tuple(self._short(each) for each in entries), revision)
            after = page.entries[-1].key

    async def transact(
        self,
        same: Sequence[tuple[str, int]],
        put: Sequence[tuple[str, bytes, int]] = (),
        delete: Sequence[tuple[str, bool]] = (),
    ) -> Outcome:
        """Write all or nothing.  same: keys with the revision at which each must have been put last, 0 for none.  put:
        key, value and lease.  delete: key, and whether all that begin with it go.  Unavailable: it may have been done.
        """
        conditions = [etcd.Same(self._prefix + key, modified) for key, modified in same]
        puts = [etcd.Put(self._prefix + key, value, lease) for key, value, lease in put]
        deletes = [etcd.Delete(self._prefix + key, whole) for key, whole in delete]
        body = await self._ask(etcd.transaction(conditions, [*deletes, *puts]), again=False)
        outcome = etcd.read_outcome(body)
        return outcome._replace(found=tuple(self._short(each) for each in outcome.found))

    async def grant(self, ttl: int) -> Lease:
        return etcd.read_lease(await self._ask(etcd.lease_grant(ttl), again=True))

    async def keep_alive(self, lease: int) -> Lease:
        """LeaseGone: it has expired."""
        return etcd.read_lease(await self._ask(etcd.lease_keepalive(lease), again=True))

    async def revoke(self, lease: int) -> None:
        await self._ask(etcd.lease_revoke(lease), again=True)

    async def time_to_live(self, lease: int) -> Lease:
        return etcd.read_lease(await self._ask(etcd.lease_time_to_live(lease), again=True))

    # --- following: the endpoint is the session's choice --------------------------------------------------------------

    async def page(self, asked: List, prefix: str) -> Page:
        """A part of a listing."""
        after = self._prefix + asked.after if asked.after else ""
        call = etcd.range(
            self._prefix + prefix,
            prefix=True,
            after=after,
            limit=asked.limit,
            revision=asked.revision,
            any_member=asked.any_member,
        )
        page = etcd.read_page(await self._ask_one(asked.endpoint, call))
        return page._replace(entries=tuple(self._short(each) for each in page.entries))

    async def verify(self, asked: Verify) -> Page:
        """One key as of a revision."""
        call = etcd.range(self._prefix + asked.key, revision=asked.revision, any_member=True)
        page = etcd.read_page(await self._ask_one(asked.endpoint, call))
        return page._replace(entries=tuple(self._short(each) for each in page.entries))

    async def watch(self, asked: Watch, prefix: str) -> AsyncGenerator[Watching | Changes]:
        """The stream; it ends with a StoreError.  By gRPC, which costs etcd a third of what its gateway does; by that
        where something between us and etcd, a proxy of HTTP/1.1 for one, does not let gRPC through.
        """
        why: NotSpoken | None = None
        try:
            if asked.endpoint not in self.without_grpc:
                try:
                    async with aclosing(self._watch_by_grpc(asked, prefix)) as messages:
                        async for message in messages:
                            yield self._short_message(message)
                except NotSpoken as error:
                    why = error
            async with aclosing(self._watch_by_gateway(asked, prefix)) as messages:
                async for message in messages:
                    if why is not None:  # it works so
                        self.without_grpc.add(asked.endpoint)
                        url = self.servers[asked.endpoint].url
                        log.warning(
                            "%s: no gRPC gets through (%s): it is watched by JSON until this daemon is started again, "
                            "which costs etcd three times as much",
                            *(url, why),
                        )
                        why = None
                    yield self._short_message(message)
        except AuthFailed:
            self._token = ""
            raise

    async def _watch_by_grpc(self, asked: Watch, prefix: str) -> AsyncGenerator[Watching | Changes]:
        """A caller that leaves after a message reads in windows, and comes back soon: the connection rests until then,
        since a new one is the most expensive part of a window.  A caller who is cancelled may have given it up as dead.
        """
        connection: Connection | None
        connection = await self._called(asked.endpoint, etcd.watch_message(self._prefix + prefix, asked.revision))
        ours: int | None = None  # of the watches of this connection
        try:
            async with aclosing(connection.events()) as events:
                async for event in events:
                    if not isinstance(event, Message):
                        raise self._advised(asked.endpoint, etcd.read_end(event.status, event.reason))
                    number, begins = etcd.read_watch_number(event.data)
                    if ours is None and begins:
                        ours = number
                    if number == ours:  # not of the one before
                        for message in etcd.read_watch_message(event.data):
                            yield message
        except GeneratorExit:
            if ours is not None and not connection.is_closed:
                connection.say(etcd.unwatch_message(ours))
                self._resting, connection = (asked.endpoint, connection), None
            raise
        finally:
            if connection is not None:
                connection.close()

    async def _called(self, endpoint: int, request: bytes) -> Connection:
        """A connection with a watch of this request: the one that rests, or else a new one."""
        if self._resting is not None:
            (where, connection), self._resting = self._resting, None
            if where == endpoint and not connection.is_closed:
                connection.say(request)
                return connection
            connection.close()
        authorization = await self._authorization(endpoint)
        metadata = (etcd.LEADER_METADATA, *((etcd.TOKEN_METADATA, token) for _, token in authorization))
        connection = await self._open(endpoint, ALPN)
        try:
            connection.call(etcd.WATCH, request, metadata)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _watch_by_gateway(self, asked: Watch, prefix: str) -> AsyncGenerator[Watching | Changes]:
        call = etcd.watch(self._prefix + prefix, asked.revision)
        headers = (etcd.REQUIRE_LEADER, *await self._authorization(asked.endpoint))
        connection = await self._open(asked.endpoint)
        try:
            async with aclosing(connection.lines(call.path, call.body, headers)) as lines:
                async for line in lines:
                    for message in etcd.read_watch_line(line):
                        yield message
            raise Unavailable(f"{self.servers[asked.endpoint].url}: the stream has ended")
        except BadStatus as refusal:
            failure = etcd.read_failure(refusal.answer.status, refusal.answer.body)
            raise self._advised(asked.endpoint, failure) from None
        finally:
            connection.close()

    # --- one request --------------------------------------------------------------------------------------------------

    async def _ask(self, call: Call, *, again: bool) -> bytes:
        """By whichever endpoint answers.  again: it may be done twice, so that another is asked when one broke off."""
        error: StoreError = Unavailable("no endpoint")
        for step in range(len(self.servers)):
            endpoint = (self._current + step) % len(self.servers)
            try:
                body = await self._ask_one(endpoint, call)
            except _NotAsked as refusal:
                error = refusal
            except Unavailable as refusal:
                error = refusal
                if not again:
                    self._current = (endpoint + 1) % len(self.servers)
                    raise
            else:
                self._current = endpoint
                return body
        raise error

    async def _ask_one(self, endpoint: int, call: Call) -> bytes:
        try:
            return await self._try(endpoint, call, await self._authorization(endpoint))
        except AuthFailed as error:
            if not error.expired or self._user is None:
                raise
            self._token = ""  # it is renewed once
        return await self._try(endpoint, call, await self._authorization(endpoint))

    async def _try(self, endpoint: int, call: Call, headers: Headers) -> bytes:
        connection = self._idle.pop(endpoint, None)
        if connection is not None and connection.is_closed:
            connection.close()
            connection = None
        kept = connection is not None
        try:
            if connection is None:
                connection = await self._open(endpoint)
            async with asyncio.timeout(ANSWER):
                answer = await connection.post(call.path, call.body, headers)
        except (TimeoutError, Unavailable, ProtocolError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, _NotAsked):
                raise
            if kept and isinstance(error, Unavailable):  # the server had closed it, perhaps before it was asked
                raise Unavailable(f"{self.servers[endpoint].url}: {error}") from error
            what = f"no answer within {ANSWER:g} s" if isinstance(error, TimeoutError) else str(error)
            raise Unavailable(f"{self.servers[endpoint].url}: {what}") from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        if connection.reusable and endpoint not in self._idle:
            self._idle[endpoint] = connection
        else:
            connection.close()
        if answer.status != 200:
            raise self._advised(endpoint, etcd.read_failure(answer.status, answer.body))
        return answer.body

    async def _open(self, endpoint: int, protocol: str = "http/1.1") -> Connection:
        try:
            async with asyncio.timeout(CONNECT):
                return await Connection.open(self.servers[endpoint], self._files, protocol)
        except TimeoutError:
            raise _NotAsked(f"{self.servers[endpoint].url}: no connection within {CONNECT:g} s") from None
        except Unavailable as error:
            raise _NotAsked(str(error)) from error

    async def _authorization(self, endpoint: int) -> Headers:
        if self._user is None:
            return ()
        if not self._token:
            try:
                password = (await asyncio.to_thread(Path(self._user.password_file).read_text)).rstrip("\n")
            except OSError as error:
                raise AuthFailed(f"password file {self._user.password_file}: {error.strerror}") from error
            call = etcd.authenticate(self._user.name, password)
            self._token = etcd.read_token(await self._try(endpoint, call, ()))
        return (("Authorization", self._token),)

    def _advised(self, endpoint: int, error: StoreError) -> StoreError:
        """Why there is no answer, with what to do about it."""
        url, user = self.servers[endpoint].url, self._user
        if isinstance(error, AuthFailed):
            self._token = ""
            if user is None:
                advice = "it wants a user: give --etcd-user and --etcd-password-file"
            elif "not enabled" in str(error):
                advice = "leave --etcd-user out, or etcdctl auth enable"
            else:
                advice = f"of --etcd-user {user.name}; the password is in {user.password_file}"
            return AuthFailed(f"{url}: {error}: {advice}", expired=error.expired)
        if isinstance(error, Denied):
            who = f"user {user.name}" if user is not None else "who has no --etcd-user"
            return Denied(
                f"{url}: {error}: to read and write {self._prefix}, for {who} (etcdctl role grant-permission)"
            )
        return Unavailable(f"{url}: {error}") if type(error) is Unavailable else error

    def _short(self, entry: Entry) -> Entry:
        return entry._replace(key=entry.key.removeprefix(self._prefix))

    def _short_message(self, message: Watching | Changes) -> Watching | Changes:
        if isinstance(message, Watching):
            return message
        return message._replace(
            changes=tuple(
                each._replace(
                    key=each.key.removeprefix(self._prefix),
                    entry=self._short(each.entry) if each.entry is not None else None,
                )
                for each in message.changes
            )
        )


class _NotAsked(Unavailable):
    """The request was not sent."""


def _rank(node: str, url: str) -> bytes:
    """Rendezvous hashing: each node has an order of its own, and all orders together spread evenly."""
    return hashlib.blake2b(f"{node}\0{url}".encode(), digest_size=8).digest()


async def read_one(etcd: Etcd, key: str) -> Entry | None:
    """A key's entry; None when there is none.  StoreError when it cannot be had."""
    entries = (await etcd.read(key)).entries
    return entries[0] if entries else None
