"""The client against a server that speaks the frame format and answers as each test says."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from overlayd import wire
from overlayd.client import CallError, ConnectionLost, OverlayClient, Unreachable, default_socket
from overlayd.client import connection as client_connection
from overlayd.errors import ProtocolError

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "overlayd.sock")


async def read_request(reader: asyncio.StreamReader) -> tuple[int, wire.Request]:
    length = int.from_bytes(await reader.readexactly(4), "little")
    return wire.decode_request(await reader.readexactly(length))


@contextlib.asynccontextmanager
async def serving(path: str, script: Script) -> AsyncIterator[None]:
    """A server that runs `script` for each connection and hangs up after it."""
    tasks: list[asyncio.Task[None]] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(asyncio.CancelledError), contextlib.closing(writer):
            await script(reader, writer)

    server = await asyncio.start_unix_server(run, path)
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, asyncio.IncompleteReadError | ConnectionError):
            raise result


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def echo_names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each allocate_ip with the service's name as the address."""
    while True:
        id, request = await read_request(reader)
        assert isinstance(request, wire.AllocateIp)
        writer.write(wire.encode_response(id, wire.Ip(request.service)))


async def test_answers_are_matched_by_id_whatever_their_order(path: str) -> None:
    async def reversed_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = [await read_request(reader) for _ in range(100)]
        assert len({id for id, _ in asked}) == 100
        for id, request in reversed(asked):
            assert isinstance(request, wire.AllocateIp)
            writer.write(wire.encode_response(id, wire.Ip(request.service)))
            writer.write(wire.encode_event(wire.PeerHealthChanged(str(id), True)))
        await reader.read()

    async with serving(path, reversed_answers), await OverlayClient.connect(path) as client:
        names = [f"service-{number}" for number in range(100)]
        assert await asyncio.gather(*(client.allocate_ip(name, join_global=False) for name in names)) == names


async def test_frames_split_at_every_byte(path: str) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        id, _ = await read_request(reader)
        event = wire.encode_event(wire.NatEndpointChanged("k", "192.0.2.1:1"))
        for byte in event + wire.encode_response(id, wire.Ip("10.0.0.1")) + event:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with serving(path, trickle), await OverlayClient.connect(path) as client:
        assert await client.allocate_ip("web", join_global=True) == "10.0.0.1"
        assert await anext(client.events()) == wire.NatEndpointChanged("k", "192.0.2.1:1")


async def test_a_large_answer_and_a_large_request(path: str) -> None:
    status = wire.Status(peer_count=1, service_count=0, peers=(wire.StatusPeer("k" * 7_000_000, "", "", 0),))
    names = ["n" * 1000] * 7000

    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        id, request = await read_request(reader)
        assert request == wire.PruneOrphanBridges(tuple(names))
        writer.write(wire.encode_response(id, wire.PrunedBridges(())))
        id, _ = await read_request(reader)
        writer.write(wire.encode_response(id, status))
        await reader.read()

    async with serving(path, large), await OverlayClient.connect(path) as client:
        assert await client.prune_orphan_bridges(names) == ()
        assert await client.status() == status


async def test_err_raises_with_the_daemons_words(path: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            id, _ = await read_request(reader)
            writer.write(wire.encode_response(id, wire.Err("no dedicated overlay for service web")))

    async with serving(path, refuse), await OverlayClient.connect(path) as client:
        for _ in range(2):  # the connection goes on
            with pytest.raises(CallError, match=r"^no dedicated overlay for service web$"):
                await client.remove_peer("k", scope=wire.ServiceScope("web"))


async def test_an_answer_of_another_kind_is_refused(path: str) -> None:
    async def confuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        id, _ = await read_request(reader)
        writer.write(wire.encode_response(id, wire.Ok()))

    async with serving(path, confuse), await OverlayClient.connect(path) as client:
        with pytest.raises(ProtocolError, match="answered status with ok"):
            await client.status()


async def test_a_hung_daemon_times_out_and_a_late_answer_is_dropped(path: str) -> None:
    asked = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, _ = await read_request(reader)
        second, _ = await read_request(reader)
        asked.set()
        writer.write(wire.encode_response(first, wire.Ip("first")) + wire.encode_response(second, wire.Ip("second")))
        await reader.read()

    async with serving(path, late), await OverlayClient.connect(path) as client:
        with pytest.raises(TimeoutError, match=r"no answer to allocate_ip within 0\.05 s"):
            await client.call(wire.AllocateIp("web", False), timeout=0.05)
        assert not asked.is_set()
        assert await client.allocate_ip("web", join_global=False) == "second"


async def test_the_clients_own_limit_holds_even_when_the_socket_is_full(path: str) -> None:
    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with serving(path, never_read), await OverlayClient.connect(path, call_timeout=0.1) as client:
        calls = (client.prune_orphan_bridges(["n" * 1_000_000]) for _ in range(20))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {TimeoutError}


@pytest.mark.parametrize(
    "last_words, why",
    [
        (b"", "^the daemon closed the connection$"),
        (wire.encode_response(1, wire.Ok())[:9], "closed the connection inside a frame"),
        ((9 * 1024 * 1024).to_bytes(4, "little"), "too large"),
        (b"\x04\0\0\0null", "dropped: bad frame"),
        (b"\x05\0\0\0{oops", "dropped: bad frame"),
        (wire.encode_response(99, wire.Ok()), "answered request 99, which was not asked"),
        (wire.encode_request(1, wire.GetStatus()), "dropped: bad frame"),
        (b"\x01\0\0\0\0", "envelope"),
    ],
)
async def test_a_broken_connection_fails_every_call(path: str, last_words: bytes, why: str) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            await read_request(reader)
        writer.write(last_words)

    async with serving(path, die), await OverlayClient.connect(path) as client:
        results = await asyncio.gather(*(client.status() for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {ConnectionLost}
        with pytest.raises(ConnectionLost, match=why):
            raise results[0]  # type: ignore[misc]
        with pytest.raises(ConnectionLost, match=why):
            await client.status()
        with pytest.raises(ConnectionLost, match=why):
            await anext(client.events())


async def test_closing_fails_what_waits_and_ends_the_events(path: str) -> None:
    async with serving(path, hang):
        client = await OverlayClient.connect(path)
        call = asyncio.create_task(client.status())
        events = asyncio.create_task(anext(client.events(), None))
        await asyncio.sleep(0.01)
        await client.close()
        await client.close()
        with pytest.raises(ConnectionLost, match="the client was closed"):
            await call
        assert await events is None
        with pytest.raises(ConnectionLost, match="the client was closed"):
            await client.status()


async def test_a_cancelled_call_leaves_the_others_alone(path: str) -> None:
    async with serving(path, echo_names), await OverlayClient.connect(path) as client:
        doomed = asyncio.create_task(client.allocate_ip("doomed", join_global=False))
        await asyncio.sleep(0)
        doomed.cancel()
        assert await client.allocate_ip("web", join_global=False) == "web"
        assert doomed.cancelled()


async def test_only_the_newest_unread_event_of_a_peer_is_kept(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "UNREAD_EVENTS", 4)

    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        events = [
            wire.PeerHealthChanged("a", True),
            wire.PeerHealthChanged("b", True),
            wire.PeerHealthChanged("c", True),
            wire.NatEndpointChanged("a", "192.0.2.1:1"),
            wire.PeerHealthChanged("a", False),
            wire.PeerHealthChanged("d", True),
        ]
        writer.write(b"".join(map(wire.encode_event, events)))
        writer.write(b'\x21\0\0\0{"frame":"event","event":"newer"}')
        id, _ = await read_request(reader)
        writer.write(wire.encode_response(id, wire.Ok()))
        await reader.read()

    async with serving(path, chatter), await OverlayClient.connect(path) as client:
        await client.nat_tick()
        events = client.events()
        assert [await anext(events) for _ in range(4)] == [
            wire.PeerHealthChanged("c", True),
            wire.NatEndpointChanged("a", "192.0.2.1:1"),
            wire.PeerHealthChanged("a", False),
            wire.PeerHealthChanged("d", True),
        ]


async def test_connect_waits_for_the_daemon(path: str) -> None:
    connecting = asyncio.create_task(OverlayClient.connect(path, timeout=10))
    await asyncio.sleep(0.05)
    stale = socket.socket(socket.AF_UNIX)  # a socket file that nobody answers on any more
    stale.bind(path)
    stale.close()
    await asyncio.sleep(0.05)
    assert not connecting.done()
    Path(path).unlink()  # noqa: ASYNC240
    async with serving(path, echo_names), await connecting as client:
        assert await client.allocate_ip("web", join_global=False) == "web"


async def test_connect_waits_for_room_in_the_backlog(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(path)
        listener.listen(1)
        while True:
            other = others.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            if other.connect_ex(path):
                break
        with pytest.raises(Unreachable) as caught:
            await OverlayClient.connect(path, timeout=0.1)
        assert isinstance(caught.value.reason, BlockingIOError)
        connecting = asyncio.create_task(OverlayClient.connect(path, timeout=10))
        await asyncio.sleep(0.05)
        others.enter_context(listener.accept()[0])
        await (await connecting).close()


async def test_connect_gives_up(path: str) -> None:
    with pytest.raises(Unreachable, match=r"cannot connect to .*overlayd\.sock: No such file or directory"):
        await OverlayClient.connect(path, timeout=0.05)
    Path(path).touch()  # noqa: ASYNC240
    with pytest.raises(Unreachable, match="Connection refused"):
        await OverlayClient.connect(path, timeout=0)
    with pytest.raises(Unreachable, match="Not a directory"):  # not worth another try
        await OverlayClient.connect(f"{path}/x", timeout=60)
    with pytest.raises(Unreachable, match="path too long"):
        await OverlayClient.connect("/" + "x" * 200, timeout=60)


async def test_the_socket_comes_from_the_environment(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLAYD_SOCKET", path)
    async with serving(path, echo_names), await OverlayClient.connect() as client:
        assert await client.allocate_ip("web", join_global=False) == "web"
    monkeypatch.setenv("OVERLAYD_SOCKET", "")
    assert default_socket() == "/run/overlayd/overlayd.sock"


GUEST = wire.GuestConfig("10.0.0.2", 24, "private", "public", 51820, ())
DEDICATED = wire.ServiceOverlay("b", "dedicated", "k", 51821, "10.0.0.1", "10.0.0.0/28")
EDGE = wire.EdgeConfig(
    version=1,
    name="n",
    overlay_ip="10.0.0.9",
    prefix_len=16,
    private_key="p",
    public_key="k",
    peers=(),
    expires_at_unix=1,
)


async def test_one_method_a_request(path: str) -> None:
    """Each method sends the request of its name with what it was given, and returns what the answer is about."""
    answers: list[wire.Response] = []
    asked: list[wire.Request] = []

    async def canned(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            id, request = await read_request(reader)
            asked.append(request)
            writer.write(wire.encode_response(id, answers.pop()))

    pid, guest, web = wire.LinuxPid(71), wire.GuestManaged("vm"), wire.ServiceScope("web")
    nat = wire.NatConfig(enabled=False)
    peer = wire.Peer("k", "h:1", "10.0.0.0/24", 25, (wire.NatCandidate("host", "192.0.2.1:1", 1),))
    status = wire.Status(peer_count=0, service_count=0)
    nat_status = wire.NatStatus(last_refresh=1)
    dns = wire.Dns(zone="z", names=(), upstreams=(), cached=0, cached_bytes=0, hits=0, misses=0)
    answer = wire.DnsAnswer(name="n.", type="A", rcode="NOERROR", source="own")
    finding = wire.Finding("bridge b", "is missing", "restart")
    edge_peer = wire.EdgePeer(
        name="n", overlay_ip="10.0.0.9", public_key="k", minted_at_unix=1, expires_at_unix=2, allowed=()
    )
    async with serving(path, canned), await OverlayClient.connect(path) as c:
        setup = c.setup_global_overlay(
            deployment="d",
            instance_id="i",
            cluster_cidr="10.0.0.0/16",
            slice_cidr="10.0.1.0/24",
            wg_port=51820,
            host_adapter_mandatory=True,
            nat=nat,
        )
        attach = c.attach_container(
            pid,
            "web",
            join_global=True,
            ephemeral=True,
            isolation_network="blue",
            dns_server="10.0.0.1",
            dns_domain="x",
        )
        table: list[tuple[Awaitable[object], wire.Request, wire.Response, object]] = [
            (c.set_local_node_id(7), wire.SetLocalNodeId(7), wire.Ok(), None),
            (c.set_local_wg_pubkey("k"), wire.SetLocalWgPubkey("k"), wire.Ok(), None),
            (
                setup,
                wire.SetupGlobalOverlay(
                    deployment="d",
                    instance_id="i",
                    cluster_cidr="10.0.0.0/16",
                    slice_cidr="10.0.1.0/24",
                    wg_port=51820,
                    host_adapter_mandatory=True,
                    nat=nat,
                ),
                wire.BridgeName("g"),
                "g",
            ),
            (c.teardown_global_overlay(), wire.TeardownGlobalOverlay(), wire.Ok(), None),
            (c.setup_service_overlay("web"), wire.SetupServiceOverlay("web", "auto"), wire.BridgeName("b"), "b"),
            (
                c.setup_service_overlay("web", "isolated"),
                wire.SetupServiceOverlay("web", "isolated"),
                wire.BridgeName("b", "10.0.0.64/26", "10.0.0.65", 26),
                "b",
            ),
            (
                c.setup_service_overlay("web", "dedicated", subnet="10.0.0.0/28"),
                wire.SetupServiceOverlay("web", "dedicated", "10.0.0.0/28"),
                DEDICATED,
                DEDICATED,
            ),
            (c.teardown_service_overlay("web"), wire.TeardownServiceOverlay("web"), wire.Ok(), None),
            (c.allocate_ip("web", join_global=True), wire.AllocateIp("web", True), wire.Ip("10.0.0.2"), "10.0.0.2"),
            (c.release_ip("10.0.0.2"), wire.ReleaseIp("10.0.0.2"), wire.Ok(), None),
            (
                attach,
                wire.AttachContainer(pid, "web", True, True, "blue", "10.0.0.1", "x"),
                wire.Attached("10.0.0.2"),
                "10.0.0.2",
            ),
            (
                c.attach_container(guest, "web", join_global=False),
                wire.AttachContainer(guest, "web", False),
                GUEST,
                GUEST,
            ),
            (c.detach_container(pid), wire.DetachContainer(pid), wire.Ok(), None),
            (c.add_peer(peer), wire.AddPeer("k", "h:1", "10.0.0.0/24", 25, peer.candidates), wire.Ok(), None),
            (c.remove_peer("k", scope=web), wire.RemovePeer("k", web), wire.Ok(), None),
            (c.add_allowed_ip("k", "c", scope=web), wire.AddAllowedIp("k", "c", web), wire.Ok(), None),
            (c.remove_allowed_ip("k", "c"), wire.RemoveAllowedIp("k", "c"), wire.Ok(), None),
            (c.register_dns("n", "10.0.0.2"), wire.RegisterDns("n", "10.0.0.2"), wire.Ok(), None),
            (c.unregister_dns("n"), wire.UnregisterDns("n"), wire.Ok(), None),
            (c.write_scoped_resolver("z", "i", port=53), wire.WriteScopedResolver("z", "i", 53), wire.Ok(), None),
            (c.remove_scoped_resolver("z"), wire.RemoveScopedResolver("z"), wire.Ok(), None),
            (
                c.prune_orphan_bridges(["a"]),
                wire.PruneOrphanBridges(("a",)),
                wire.PrunedBridges(("b",)),
                ("b",),
            ),
            (c.status(), wire.GetStatus(), status, status),
            (c.nat_tick(), wire.NatTick(), wire.Ok(), None),
            (c.nat_status(), wire.GetNatStatus(), nat_status, nat_status),
            (c.list_dns(), wire.ListDns(), dns, dns),
            (c.query_dns("n", "MX"), wire.QueryDns("n", "MX"), answer, answer),
            (c.flush_dns(), wire.FlushDns(), wire.Ok(), None),
            (c.unregister_dns("n", "10.0.0.2"), wire.UnregisterDns("n", "10.0.0.2"), wire.Ok(), None),
            (c.shutdown(), wire.Shutdown(), wire.Ok(), None),
            (
                c.mint_edge_peer("n", ttl_secs=60, allow=["10.0.0.0/16"]),
                wire.MintEdgePeer("n", 60, ("10.0.0.0/16",)),
                EDGE,
                EDGE,
            ),
            (c.list_edge_peers(), wire.ListEdgePeers(), wire.EdgePeers((edge_peer,)), (edge_peer,)),
            (c.list("peers"), wire.ListThings("peers"), wire.Listing(), wire.Listing()),
            (c.hello(), wire.Hello(), HELLO, HELLO),
            (c.watch(), wire.Watch(), wire.Ok(), None),
            (c.renew_devices(force=True), wire.RenewDevices(True), wire.Renewed(()), ()),
            (c.doctor(), wire.Doctor(), wire.Diagnosis((finding,)), (finding,)),
            (c.revoke_edge_peer("n"), wire.RevokeEdgePeer("n"), wire.Ok(), None),
            (c.cluster_init("10.0.0.0/8"), wire.InitCluster(cluster_cidr="10.0.0.0/8"), wire.Ok(), None),
            (c.cluster_nodes(), wire.ListNodes(), wire.ClusterNodes(()), ()),
            (c.cluster_set("rate", "20"), wire.SetCluster("rate", "20"), wire.Ok(), None),
            (c.cluster_leave(force=True), wire.LeaveCluster(True), wire.Ok(), None),
            (c.cluster_remove_node("n"), wire.RemoveNode("n"), wire.Ok(), None),
            (c.cluster_rejoin(), wire.RejoinCluster(), wire.Ok(), None),
            (c.cluster_accept(), wire.AcceptCluster(), wire.Ok(), None),
            (c.rotate_key(after_secs=5), wire.RotateKey(after_secs=5), wire.Ok(), None),
            (c.cluster_check(), wire.CheckCluster(), wire.ClusterDifferences(("d",)), ("d",)),
        ]
        for call, request, answer, value in table:
            answers.append(answer)
            assert await call == value
            assert asked[-1] == request
    assert {type(request) for request in asked} == set(get_args(wire.Request))


HELLO = wire.HelloAnswer(protocol=1, version="9", requests=("status",), abilities=("err.code",))


def test_every_request_has_its_method() -> None:
    for request in msgspec.inspect.multi_type_info(get_args(wire.Request)):
        assert isinstance(request, msgspec.inspect.StructType)
        assert callable(getattr(OverlayClient, str(request.tag)))
