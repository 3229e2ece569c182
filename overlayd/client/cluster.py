"""The client's methods for a cluster that is kept in a store.

Owns: a method for each of those requests.  Must not know: how they are sent (`client`).
"""

from typing import TypeVar

from overlayd import wire

T = TypeVar("T", bound=wire.Response)


class ClusterCalls:
    """A part of `OverlayClient`, whose `_ask` sends a request and has an answer of the type that is expected."""

    async def _ask(self, request: wire.Request, answer: type[T]) -> T:
        raise NotImplementedError

    async def cluster_init(
        self,
        cluster_cidr: str,
        *,
        block_prefix: int | None = None,
        service_share: int = 1,
        zone: str | None = None,
        node_ttl_secs: int = 0,
    ) -> None:
        """Make the cluster that the node was started to join."""
        request = wire.InitCluster(
            cluster_cidr=cluster_cidr,
            block_prefix=block_prefix,
            service_share=service_share,
            zone=zone,
            node_ttl_secs=node_ttl_secs,
        )
        await self._ask(request, wire.Ok)

    async def cluster_nodes(self) -> tuple[wire.ClusterNode, ...]:
        """The nodes of the cluster, by name."""
        return (await self._ask(wire.ListNodes(), wire.ClusterNodes)).nodes

    async def cluster_set(self, key: str, value: str) -> None:
        await self._ask(wire.SetCluster(key, value), wire.Ok)

    async def cluster_leave(self, *, force: bool = False) -> None:
        await self._ask(wire.LeaveCluster(force), wire.Ok)

    async def cluster_remove_node(self, node: str) -> None:
        await self._ask(wire.RemoveNode(node), wire.Ok)

    async def cluster_rejoin(self) -> None:
        await self._ask(wire.RejoinCluster(), wire.Ok)

    async def cluster_accept(self) -> None:
        await self._ask(wire.AcceptCluster(), wire.Ok)

    async def rotate_key(self, *, after_secs: int | None = None, force: bool = False) -> None:
        """Give the node another key, while its tunnels live."""
        await self._ask(wire.RotateKey(after_secs=after_secs, force=force), wire.Ok)

    async def cluster_check(self) -> tuple[str, ...]:
        """What differs between the store, the journal and the device, a sentence each."""
        return (await self._ask(wire.CheckCluster(), wire.ClusterDifferences)).differences
