"""A client of overlayd: requests by id over one connection, and the daemon's events.

Owns: connecting with backoff, timeouts, a method for each request.  Must not know: bytes (`client.connection`), how a
daemon is verified (`client.identity`), the daemon's insides.

    async with await OverlayClient.connect() as client:
        address = await client.allocate_ip("web", join_global=False)

Calls are pipelined: any number may wait on one connection, and none waits for another's answer.  One client belongs to
one event loop; it works on asyncio's and on uvloop's.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

from overlayd import wire
from overlayd.client import identity
from overlayd.client.cluster import ClusterCalls
from overlayd.client.connection import Connection, ConnectionLost, connected
from overlayd.client.identity import (
    Impostor,
    NotPublished,
    Published,
    ReplacedExecutable,
    StaleIdentityFile,
    Unverified,
    Whoami,
)
from overlayd.errors import OverlaydError, ProtocolError, RequestError

__all__ = [
    "CallError",
    "ConnectionLost",
    "Impostor",
    "NotPublished",
    "OverlayClient",
    "ReplacedExecutable",
    "StaleIdentityFile",
    "Unreachable",
    "Unverified",
    "Whoami",
    "default_socket",
]

DEFAULT_SOCKET = "/run/overlayd/overlayd.sock"

# Ours.  An attach to a busy kernel takes milliseconds, a teardown of thousands of links seconds: a minute means a hang.
CALL_TIMEOUT = 60.0  # seconds
CONNECT_TIMEOUT = 10.0  # seconds: a daemon that adopts a large node starts within this
FIRST_BACKOFF, LAST_BACKOFF = 0.02, 1.0  # seconds between attempts, doubling

T = TypeVar("T", bound=wire.Response)


class Unreachable(OverlaydError):
    """Nobody could be reached on the socket; `path` and the operating system's `reason`."""

    def __init__(self, path: str, reason: OSError) -> None:
        super().__init__(f"cannot connect to {path}: {reason.strerror or reason}")
        self.path = path
        self.reason = reason


class CallError(RequestError):
    """The daemon answered `err`; the message is the daemon's, and so is the code, "refused" of an older one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or "refused"


def default_socket() -> str:
    """$OVERLAYD_SOCKET, else the daemon's default path."""
    return os.environ.get("OVERLAYD_SOCKET") or DEFAULT_SOCKET


class OverlayClient(ClusterCalls):
    """One connection to the daemon; made by `connect`.

    Every method that asks the daemon raises CallError when it answers `err`, ConnectionLost when the connection ends
    before the answer, and TimeoutError when none comes in time.
    """

    def __init__(self, connection: Connection, call_timeout: float | None, published: Published | None = None) -> None:
        self._connection = connection
        self._call_timeout = call_timeout
        self._published = published

    @classmethod
    async def connect(
        cls,
        path: str | None = None,
        *,
        timeout: float = CONNECT_TIMEOUT,  # noqa: ASYNC109 - it bounds the attempts, not one await
        call_timeout: float | None = CALL_TIMEOUT,
        identity_file: str | None = None,
    ) -> Self:
        """Connect to the socket at `path` (default: `default_socket()`).

        timeout: seconds to keep trying while nobody listens there; 0: try once.  call_timeout: seconds that a call
        waits for its answer; None: forever.  Raises Unreachable.

        identity_file: verify that the daemon is the one that published this file, before anything is asked of it.
        Raises Impostor, StaleIdentityFile, ReplacedExecutable or NotPublished, all of them Unverified; a file that is
        stale or not there may be that of a daemon which is starting: it is tried again like a socket that is not there.
        """
        path = path or default_socket()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        backoff = FIRST_BACKOFF
        while True:
            try:
                return await cls._connect_once(path, call_timeout, identity_file)
            except (NotPublished, StaleIdentityFile):
                if loop.time() + backoff > deadline:
                    raise
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                if loop.time() + backoff > deadline:
                    raise Unreachable(path, error) from error
            except OSError as error:
                raise Unreachable(path, error) from error
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)

    @classmethod
    async def _connect_once(cls, path: str, call_timeout: float | None, identity_file: str | None) -> Self:
        _, connection = await asyncio.get_running_loop().create_unix_connection(Connection, sock=connected(path))
        client = cls(connection, call_timeout)
        if identity_file is not None:
            try:
                client._published = identity.read(identity_file)
                identity.check_peer(client._published, connection.peer)
                await client.whoami()
            except BaseException:
                await client.close()
                raise
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up.  Calls that still wait raise ConnectionLost; `events()` ends."""
        await self._connection.close()

    async def call(self, request: wire.Request, *, timeout: float | None = None) -> wire.Response:  # noqa: ASYNC109
        """Send a request and wait for its answer, which is never an `Err`.

        timeout: seconds; None: the client's `call_timeout`.  A call that is given up may still be carried out.
        """
        limit = self._call_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                response = await self._connection.ask(request)
        except TimeoutError:
            raise TimeoutError(f"no answer to {request.__struct_config__.tag} within {limit} s") from None
        if isinstance(response, wire.Err):
            raise CallError(response.message, response.code)
        return response

    async def whoami(self) -> Whoami:
        """Ask the daemon who it is; with an identity file, verify it again.  Raises Unverified as `connect` does, and
        ConnectionLost also when the daemon answers no probes (--no-probe).
        """
        try:
            async with asyncio.timeout(self._call_timeout):
                answered = await self._connection.probe()
        except TimeoutError:
            raise TimeoutError(f"no answer to an identity probe within {self._call_timeout} s") from None
        if self._published is not None:
            await asyncio.to_thread(identity.check_answer, self._published, answered)
        file = self._published.file if self._published is not None else None
        return identity.whoami(answered, self._connection.peer, file)

    async def events(self) -> AsyncIterator[wire.Event]:
        """The daemon's events since the connection was made, oldest first; ends when the client is closed.

        Of unread events of one kind and peer only the newest is kept, and of all only the newest of a bounded number.
        Iterate once: two iterators would share the events between them.  Raises ConnectionLost.
        """
        while (event := await self._connection.next_event()) is not None:
            yield event

    async def _ask(self, request: wire.Request, answer: type[T]) -> T:
        response = await self.call(request)
        if not isinstance(response, answer):
            got = response.__struct_config__.tag
            raise ProtocolError(f"the daemon answered {request.__struct_config__.tag} with {got}")
        return response

    # --- One method a request; arguments and answers are the contract's; those of a cluster in `ClusterCalls` ---

    async def set_local_node_id(self, node_id: int) -> None:
        await self._ask(wire.SetLocalNodeId(node_id), wire.Ok)

    async def set_local_wg_pubkey(self, pubkey: str) -> None:
        await self._ask(wire.SetLocalWgPubkey(pubkey), wire.Ok)

    async def setup_global_overlay(
        self,
        *,
        deployment: str,
        instance_id: str,
        cluster_cidr: str,
        wg_port: int,
        slice_cidr: str | None = None,
        host_adapter_mandatory: bool = False,
        nat: wire.NatConfig | None = None,
    ) -> str:
        """Returns the name of the global device."""
        request = wire.SetupGlobalOverlay(
            deployment=deployment,
            instance_id=instance_id,
            cluster_cidr=cluster_cidr,
            slice_cidr=slice_cidr,
            wg_port=wg_port,
            host_adapter_mandatory=host_adapter_mandatory,
            nat=nat,
        )
        return (await self._ask(request, wire.BridgeName)).name

    async def teardown_global_overlay(self) -> None:
        await self._ask(wire.TeardownGlobalOverlay(), wire.Ok)

    @overload
    async def setup_service_overlay(
        self, service: str, mode: Literal["auto", "shared", "isolated"] = "auto", *, subnet: str | None = None
    ) -> str: ...

    @overload
    async def setup_service_overlay(
        self, service: str, mode: Literal["dedicated"], *, subnet: str | None = None
    ) -> wire.ServiceOverlay: ...

    async def setup_service_overlay(
        self,
        service: str,
        mode: Literal["auto", "shared", "isolated", "dedicated"] = "auto",
        *,
        subnet: str | None = None,
    ) -> str | wire.ServiceOverlay:
        """Returns the name of the bridge; for a dedicated service its device's key, port and address too.

        The subnet of any service, which other nodes have to be told, is in `status().services`.
        """
        request = wire.SetupServiceOverlay(service, mode, subnet)
        if mode == "dedicated":
            return await self._ask(request, wire.ServiceOverlay)
        return (await self._ask(request, wire.BridgeName)).name

    async def teardown_service_overlay(self, service: str) -> None:
        await self._ask(wire.TeardownServiceOverlay(service), wire.Ok)

    async def allocate_ip(self, service: str, *, join_global: bool) -> str:
        return (await self._ask(wire.AllocateIp(service, join_global), wire.Ip)).ip

    async def release_ip(self, ip: str) -> None:
        await self._ask(wire.ReleaseIp(ip), wire.Ok)

    @overload
    async def attach_container(
        self,
        handle: wire.GuestManaged,
        service: str,
        *,
        join_global: bool,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_server: str | None = None,
        dns_domain: str | None = None,
    ) -> wire.GuestConfig: ...

    @overload
    async def attach_container(
        self,
        handle: wire.LinuxPid | wire.LinuxNetns | wire.WindowsContainer | wire.HostShared,
        service: str,
        *,
        join_global: bool,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_server: str | None = None,
        dns_domain: str | None = None,
        ip: str | None = None,
        mac: str | None = None,
        default_route: bool = True,
    ) -> str: ...

    async def attach_container(
        self,
        handle: wire.Handle,
        service: str,
        *,
        join_global: bool,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_server: str | None = None,
        dns_domain: str | None = None,
        ip: str | None = None,
        mac: str | None = None,
        default_route: bool = True,
    ) -> str | wire.GuestConfig:
        """Returns the container's address; for a guest all that it needs to run its own WireGuard."""
        request = wire.AttachContainer(
            handle,
            service,
            join_global,
            ephemeral,
            isolation_network,
            dns_server,
            dns_domain,
            ip,
            mac,
            default_route,
        )
        if isinstance(handle, wire.GuestManaged):
            return await self._ask(request, wire.GuestConfig)
        return (await self._ask(request, wire.Attached)).ip

    async def detach_container(self, handle: wire.Handle) -> None:
        await self._ask(wire.DetachContainer(handle), wire.Ok)

    async def add_peer(self, peer: wire.Peer, *, scope: wire.Scope = wire.GLOBAL, name: str | None = None) -> None:
        """name: what people call it; None: as before."""
        request = wire.AddPeer(
            peer.public_key,
            peer.endpoint,
            peer.allowed_ips,
            peer.persistent_keepalive_secs,
            peer.candidates,
            scope,
            name,
        )
        await self._ask(request, wire.Ok)

    async def remove_peer(self, pubkey: str, *, scope: wire.Scope = wire.GLOBAL) -> None:
        await self._ask(wire.RemovePeer(pubkey, scope), wire.Ok)

    async def add_allowed_ip(self, pubkey: str, cidr: str, *, scope: wire.Scope = wire.GLOBAL) -> None:
        await self._ask(wire.AddAllowedIp(pubkey, cidr, scope), wire.Ok)

    async def remove_allowed_ip(self, pubkey: str, cidr: str, *, scope: wire.Scope = wire.GLOBAL) -> None:
        await self._ask(wire.RemoveAllowedIp(pubkey, cidr, scope), wire.Ok)

    async def register_dns(self, name: str, ip: str) -> None:
        await self._ask(wire.RegisterDns(name, ip), wire.Ok)

    async def unregister_dns(self, name: str, ip: str | None = None) -> None:
        """Forget a name, or one address of it."""
        await self._ask(wire.UnregisterDns(name, ip), wire.Ok)

    async def write_scoped_resolver(self, zone: str, node_ip: str, *, port: int | None = None) -> None:
        await self._ask(wire.WriteScopedResolver(zone, node_ip, port), wire.Ok)

    async def remove_scoped_resolver(self, zone: str) -> None:
        await self._ask(wire.RemoveScopedResolver(zone), wire.Ok)

    async def prune_orphan_bridges(self, live_bridge_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the bridges that were removed."""
        return (await self._ask(wire.PruneOrphanBridges(tuple(live_bridge_names)), wire.PrunedBridges)).reclaimed

    async def status(self) -> wire.Status:
        return await self._ask(wire.GetStatus(), wire.Status)

    async def nat_tick(self) -> None:
        await self._ask(wire.NatTick(), wire.Ok)

    async def list_dns(self) -> wire.Dns:
        """What the name server knows."""
        return await self._ask(wire.ListDns(), wire.Dns)

    async def query_dns(self, name: str, type: str = "") -> wire.DnsAnswer:
        """What the name server says about a name, and who says it."""
        return await self._ask(wire.QueryDns(name, type), wire.DnsAnswer)

    async def flush_dns(self) -> None:
        """Forget what upstream servers have answered."""
        await self._ask(wire.FlushDns(), wire.Ok)

    async def nat_status(self) -> wire.NatStatus:
        return await self._ask(wire.GetNatStatus(), wire.NatStatus)

    async def shutdown(self) -> None:
        """Returns when the daemon has said that it will exit."""
        await self._ask(wire.Shutdown(), wire.Ok)

    async def mint_edge_peer(
        self, name: str, *, ttl_secs: int, allow: Sequence[str] = (), node_endpoint: str | None = None
    ) -> wire.EdgeConfig:
        return await self._ask(wire.MintEdgePeer(name, ttl_secs, tuple(allow), node_endpoint), wire.EdgeConfig)

    async def list_edge_peers(self) -> tuple[wire.EdgePeer, ...]:
        return (await self._ask(wire.ListEdgePeers(), wire.EdgePeers)).peers

    async def watch(self) -> None:
        """Have `Changed` among the events of this connection from now on."""
        await self._ask(wire.Watch(), wire.Ok)

    async def hello(self) -> wire.HelloAnswer:
        """What the daemon speaks; CallError of a daemon that is older than this request."""
        return await self._ask(wire.Hello(), wire.HelloAnswer)

    async def list(
        self, what: Literal["services", "containers", "pools", "addresses", "networks", "peers"]
    ) -> wire.Listing:
        """What the node holds of one kind; the other lists of the answer are empty."""
        return await self._ask(wire.ListThings(what), wire.Listing)

    async def doctor(self) -> tuple[wire.Finding, ...]:
        """Returns what is not as it should be."""
        return (await self._ask(wire.Doctor(), wire.Diagnosis)).findings

    async def renew_devices(self, *, force: bool = False) -> tuple[wire.RenewedDevice, ...]:
        """Have the devices served by the newest program, those that it serves already too if `force`.  Returns those
        that were renewed.
        """
        return (await self._ask(wire.RenewDevices(force), wire.Renewed)).devices

    async def revoke_edge_peer(self, name: str) -> None:
        await self._ask(wire.RevokeEdgePeer(name), wire.Ok)
