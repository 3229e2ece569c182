"""A watch of a real etcd: the same by gRPC and by its gateway, and by the gateway where no gRPC gets through."""

import asyncio
import logging
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from lab.certificates import certify
from lab.eventloop import run
from lab.patience import until, until_async
from lab.ports import free_port

from overlayd.daemon.cluster.connection import Server, read_url
from overlayd.daemon.cluster.etcd import Etcd, User
from overlayd.daemon.cluster.refusal import Files
from overlayd.daemon.tls import client_context
from overlayd.proto.store import Watch
from overlayd.proto.store_answers import (
    AuthFailed,
    Change,
    Changes,
    Compacted,
    Denied,
    StoreError,
    Unavailable,
    Watching,
)

PREFIX = "/o/c/"
Told = Watching | Changes
Way = Callable[[Etcd, Watch, str], AsyncGenerator[Told]]

BY_GRPC, BY_GATEWAY = Etcd._watch_by_grpc, Etcd._watch_by_gateway
WAYS = pytest.mark.parametrize("way", [BY_GRPC, BY_GATEWAY], ids=["gRPC", "gateway"])


class Running(NamedTuple):
    """An etcd of this host."""

    url: str
    process: "subprocess.Popen[bytes]"

    def ctl(self, *arguments: str) -> None:
        argv = ["etcdctl", "--command-timeout=60s", "--endpoints", self.url.replace("unix:/", "unix:///")]
        subprocess.run([*argv, *arguments], env={**os.environ, "ETCDCTL_API": "3"}, check=True, capture_output=True)


@contextmanager
def running(
    directory: Path, url: str, options: Sequence[str] = (), ctl_options: Sequence[str] = ()
) -> Iterator[Running]:
    peer = "unix://peer:0"
    argv = ["etcd", "--data-dir", "data", "--listen-client-urls", url, "--advertise-client-urls", url, *options]
    argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, cwd=directory)
    try:
        until(lambda: "ready to serve client requests" in log.read_text(), log.read_text)
        known = f"unix:{directory / url.removeprefix('unix://')}" if url.startswith("unix") else url
        yield Running(known, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("etcd"), "unix://client:0") as one:
        yield one


class Proxy:
    """Passes connections on.  http2: also those that begin so; heard: how each began."""

    def __init__(self, target: str, *, http2: bool = True, context: ssl.SSLContext | None = None) -> None:
        self.heard: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._target = read_url(target, 0)
        self._context = context
        self._http2 = http2

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            begun = await reader.readuntil(b"\r\n")
        except asyncio.IncompleteReadError:  # by who wanted HTTP/2 of TLS
            writer.close()
            return
        self.heard.append(begun.split()[1] if begun.startswith(b"POST") else begun.split()[0])
        if begun.startswith(b"PRI") and not self._http2:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()
            return
        if self._target.path:
            back, out = await asyncio.open_unix_connection(self._target.path)
        else:
            back, out = await asyncio.open_connection(self._target.host, self._target.port, ssl=self._context)
        out.write(begun)
        self._writers.append(writer)
        await asyncio.gather(self._pipe(reader, out), self._pipe(back, writer))

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


def client(url: str, files: Files | None = None, user: User | None = None) -> Etcd:
    return Etcd([read_url(url, 2379)], "alpha", PREFIX, files or Files(), user)


async def first(stream: AsyncGenerator[Told], changes: int) -> list[Told]:
    """What is told until there were so many changes."""
    told: list[Told] = []
    async with aclosing(stream) as messages:
        async for message in messages:
            told.append(message)
            if sum(len(each.changes) for each in told if isinstance(each, Changes)) >= changes:
                return told
    raise AssertionError("it ended")


def changes_of(told: list[Told]) -> list[Change]:
    return [change for each in told if isinstance(each, Changes) for change in each.changes]


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "overlayd.daemon.cluster.etcd")
    return caplog


def test_both_ways_tell_the_same(etcd: Running) -> None:
    async def work() -> None:
        one = client(etcd.url)
        began = (await one.transact((), [("s/a", b"first", 0)])).revision
        await one.transact((), [("s/b", b"\0\xff" * 9000, 0), ("s/c", b"", 0)])
        await one.transact((), (), [("s/a", False)])
        await one.transact((), [("b/elsewhere", b"x", 0)])
        lease = await one.grant(60)
        await one.transact((), [("s/d", b"leased", lease.id)])
        by = [changes_of(await first(way(one, Watch(1, 0, began), "s/"), 5)) for way in (BY_GRPC, BY_GATEWAY)]
        assert by[0] == by[1]
        assert [(each.key, each.entry is None) for each in by[0]] == [
            *((PREFIX + "s/a", False), (PREFIX + "s/b", False), (PREFIX + "s/c", False), (PREFIX + "s/a", True)),
            (PREFIX + "s/d", False),
        ]
        one.close()

    run(work())


def test_more_is_told_than_the_server_may_send_at_once(etcd: Running) -> None:
    async def work() -> None:
        one, big = client(etcd.url), os.urandom(60_000)
        began = (await one.transact((), [("big/0", big, 0)])).revision
        for number in range(1, 600):  # 36 MB, of which each message has many
            await one.transact((), [(f"big/{number % 9}", big, 0)])
        told = changes_of(await first(one.watch(Watch(1, 0, began), "big/"), 600))
        assert [each.revision for each in told] == list(range(began, began + 600))
        one.close()

    run(work())


@WAYS
def test_what_is_compacted_and_a_server_that_ends(tmp_path: Path, way: Way) -> None:
    with running(tmp_path, "unix://client:0") as etcd:

        async def work() -> None:
            one = client(etcd.url)
            for number in range(5):
                newest = (await one.transact((), [("s/a", b"%d" % number, 0)])).revision
            etcd.ctl("compact", str(newest))
            with pytest.raises(Compacted) as compacted:
                await first(way(one, Watch(1, 0, 2), "s/"), 1)
            assert compacted.value.revision == newest
            stream = way(one, Watch(1, 0, newest), "s/")
            assert isinstance(await anext(stream), Watching)
            assert changes_of([await anext(stream)])[0].revision == newest
            etcd.process.terminate()
            with pytest.raises(Unavailable):
                while True:
                    await anext(stream)
            etcd.process.wait()
            with pytest.raises(Unavailable, match=r"No such file|refused"):
                await first(one.watch(Watch(1, 0, newest), "s/"), 1)
            assert not one.without_grpc
            one.close()

        run(work())


def test_who_we_are(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    with running(tmp_path, "unix://client:0") as etcd:
        for line in (
            *("user add root:r", "user grant-role root root", "role add o", "user add node:secret"),
            *(f"role grant-permission o --prefix=true readwrite {PREFIX}", "user grant-role node o", "auth enable"),
        ):
            etcd.ctl(*line.split())

        async def work() -> None:
            node = client(etcd.url, user=User("node", str(password)))
            began = (await node.transact((), [("s/a", b"x", 0)])).revision
            failures: list[list[type[StoreError]]] = []
            for way in (BY_GRPC, BY_GATEWAY):
                assert len(changes_of(await first(way(node, Watch(1, 0, began), "s/"), 1))) == 1
                failures.append([])
                for user, token, prefix in (("node", "x.1", PREFIX), ("", "", PREFIX), ("node", "", "/elsewhere/")):
                    known = User(user, str(password)) if user else None
                    other = Etcd([read_url(etcd.url, 0)], "alpha", prefix, Files(), known)
                    other._token = token
                    with pytest.raises(StoreError) as failed:
                        await first(way(other, Watch(1, 0, began), "s/"), 1)
                    failures[-1].append(type(failed.value))
                    other.close()
            assert failures[0] == failures[1]
            assert failures[0][0] is AuthFailed
            assert failures[0][2] is Denied
            # A token that has expired is not used again.
            node.close()
            node._token = "x.1"
            with pytest.raises(AuthFailed) as expired:
                await first(node.watch(Watch(1, 0, began), "s/"), 1)
            assert expired.value.expired
            assert len(await first(node.watch(Watch(1, 0, began), "s/"), 1)) >= 2
            node.close()

        run(work())
    assert not warnings.records


def test_tls_with_certificates(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    ca = certify(tmp_path, "ca", None)
    server, ours = certify(tmp_path, "server", ca), certify(tmp_path, "ours", ca)
    key = str(ours.with_suffix(".key"))
    options = ["--client-cert-auth", "--trusted-ca-file", str(ca), "--cert-file", str(server)]
    options += ["--key-file", str(server.with_suffix(".key"))]
    with running(tmp_path, f"https://127.0.0.1:{free_port(socket.SOCK_STREAM)}", options) as etcd:

        async def work() -> None:
            one = client(etcd.url, Files(str(ca), str(ours), key))
            began = (await one.transact((), [("s/a", b"x", 0)])).revision
            assert len(changes_of(await first(one.watch(Watch(1, 0, began), "s/"), 1))) == 1
            assert not one.without_grpc
            nobody = client(etcd.url, Files(str(ca)))
            with pytest.raises(Unavailable, match=r"TLS|closed"):
                await first(nobody.watch(Watch(1, 0, began), "s/"), 1)
            one.close()
            # What ends TLS before etcd, and agrees on no HTTP/2.
            behind_it = client_context(str(ca))
            behind_it.load_cert_chain(ours, key)
            proxy = Proxy(etcd.url, context=behind_it)
            front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            front.load_cert_chain(server, server.with_suffix(".key"))
            async with await asyncio.start_server(proxy.serve, "127.0.0.1", ssl=front) as listener:
                behind = client(where(listener).url.replace("http", "https"), Files(str(ca)))
                assert len(changes_of(await first(behind.watch(Watch(1, 0, began), "s/"), 1))) == 1
            assert proxy.heard == [b"/v3/watch"]

        run(work())
    assert [each.message.partition("(")[2].partition(")")[0] for each in warnings.records] == [
        "its TLS offers no HTTP/2"
    ]


def test_what_passes_everything_on_passes_grpc_on(etcd: Running, warnings: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        proxy = Proxy(etcd.url)
        async with await asyncio.start_server(proxy.serve, "127.0.0.1") as listener:
            one = client(where(listener).url)
            began = (await one.transact((), [("s/a", b"x", 0)])).revision
            assert changes_of(await first(one.watch(Watch(1, 0, began), "s/"), 1))[0].key == "s/a"
            one.close()
        assert proxy.heard == [b"/v3/kv/txn", b"PRI"]

    run(work())
    assert not warnings.records


def test_who_reads_in_windows_keeps_the_connection_and_hears_each_change_once(etcd: Running) -> None:
    async def work() -> None:
        proxy = Proxy(etcd.url)
        async with await asyncio.start_server(proxy.serve, "127.0.0.1") as listener:
            one, writer = client(where(listener).url), client(etcd.url)
            known, told = (await writer.transact((), [("w/first", b"", 0)])).revision, list[Change]()
            for number in range(20):
                new = changes_of(await first(one.watch(Watch(number, 0, known), "w/"), 1))
                told += new
                known = new[-1].revision + 1
                # What comes before etcd has heard that we rest is on the connection when it is taken up again.
                for count in range(3):
                    await writer.transact((), [(f"w/{number}.{count}", b"x", 0)])
            told += changes_of(await first(one.watch(Watch(99, 0, known), "w/"), 60 - len(told) + 1))
            written = [f"w/{number}.{count}" for number in range(20) for count in range(3)]
            assert [each.key for each in told] == ["w/first", *written]
            assert proxy.heard == [b"PRI"]
            # A server that hung up meanwhile is asked anew.
            assert one._resting is not None
            resting = one._resting[1]
            proxy.hang_up()
            await until_async(lambda: resting.is_closed)
            assert await first(one.watch(Watch(100, 0, known), "w/"), 1)
            assert proxy.heard == [b"PRI", b"PRI"]
            one.close()
            writer.close()

    run(work())


def test_where_no_grpc_gets_through_the_gateway_tells_it_and_one_line_says_so(
    etcd: Running, warnings: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        proxy = Proxy(etcd.url, http2=False)
        async with await asyncio.start_server(proxy.serve, "127.0.0.1") as listener:
            one = client(where(listener).url)
            began = (await one.transact((), [("s/a", b"x", 0)])).revision
            for _ in range(3):
                assert changes_of(await first(one.watch(Watch(1, 0, began), "s/"), 1))[0].key == "s/a"
            one.close()
        assert proxy.heard == [b"/v3/kv/txn", b"PRI", *[b"/v3/watch"] * 3]

    run(work())
    (record,) = warnings.records
    assert "no gRPC gets through (it speaks no HTTP/2)" in record.message


def test_a_server_that_hangs_up_is_not_taken_for_onewithout_grpc() -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1") as listener:
            one = client(where(listener).url)
            with pytest.raises(Unavailable, match="hangs up without an answer"):
                await first(one.watch(Watch(1, 0, 1), "s/"), 1)
            assert not one.without_grpc

    run(work())


def where(listener: asyncio.Server) -> Server:
    return read_url(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", 0)
