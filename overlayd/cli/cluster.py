"""`overlayctl cluster`: what each of its actions sends and shows.

Owns: the actions, their options and tables.  Must not know: how a client is reached (`commands`).
"""

import time
from argparse import Namespace
from collections.abc import Awaitable, Callable

from overlayd import wire
from overlayd.cli import tables
from overlayd.cli.arguments import EXIT_FINDINGS
from overlayd.cli.call import NotFound, UsageError
from overlayd.cli.columns import printable, table
from overlayd.client import OverlayClient
from overlayd.spelling import perhaps_meant

Action = Callable[[OverlayClient, Namespace], Awaitable[int | None]]


async def _init(client: OverlayClient, args: Namespace) -> None:
    await client.cluster_init(
        args.cluster_cidr,
        block_prefix=args.block_prefix,
        service_share=int(args.service_share),
        zone=args.zone,
        node_ttl_secs=args.node_ttl,
    )


async def _status(client: OverlayClient, args: Namespace) -> None:
    cluster = (await client.status()).cluster
    if args.output == "json":
        print(tables.pretty_json(cluster))
    elif cluster is None:
        print("overlayd follows no cluster of a store on this node: it was started without --etcd")
    else:
        print(status(cluster, now=time.time()))


async def _nodes(client: OverlayClient, args: Namespace) -> None:
    found = await client.cluster_nodes()
    if args.output == "json":
        print(tables.pretty_json(found))
    else:
        print(nodes(found, wide=args.output == "wide", now=time.time()))


async def _show(client: OverlayClient, args: Namespace) -> None:
    nodes = {each.name: each for each in await client.cluster_nodes()}
    if args.node not in nodes:
        meant = perhaps_meant(args.node, nodes) or "overlayctl cluster nodes shows all"
        raise NotFound(f"there is no node {args.node}; {meant}")
    found = nodes[args.node]
    print(tables.pretty_json(found) if args.output == "json" else node(found, now=time.time()))


async def _set(client: OverlayClient, args: Namespace) -> None:
    key, equals, value = args.pair.partition("=")
    if not equals:
        raise UsageError(f"{args.pair!r} is not KEY=VALUE")
    await client.cluster_set(key, value)


async def _leave(client: OverlayClient, args: Namespace) -> None:
    await client.cluster_leave(force=args.force)


async def _remove_node(client: OverlayClient, args: Namespace) -> None:
    await client.cluster_remove_node(args.node)


async def _rejoin(client: OverlayClient, _: Namespace) -> None:
    await client.cluster_rejoin()


async def _accept(client: OverlayClient, _: Namespace) -> None:
    await client.cluster_accept()


async def _check(client: OverlayClient, args: Namespace) -> int:
    found = await client.cluster_check()
    if args.output == "json":
        print(tables.pretty_json(found))
    else:
        print("\n".join(map(printable, found)) or "the store, the journal and the device agree")
    return EXIT_FINDINGS if found else 0


# By the words of `cluster_words.ACTIONS` behind "cluster".
ACTIONS: dict[str, Action] = {
    "init": _init,
    "status": _status,
    "nodes": _nodes,
    "show": _show,
    "set": _set,
    "leave": _leave,
    "remove-node": _remove_node,
    "rejoin": _rejoin,
    "accept": _accept,
    "check": _check,
}


def status(cluster: wire.StatusCluster, *, now: float) -> str:
    """This node's part in its cluster."""
    facts = [
        ("cluster", cluster.name),
        ("node", cluster.node),
        ("state", f"{cluster.state}, for {tables.span(now - cluster.since)}"),
        ("blocks", " ".join((cluster.block, *cluster.blocks)) if cluster.block else "none yet"),
        ("cluster CIDR", cluster.cluster_cidr or "unknown"),
        ("nodes", str(cluster.nodes)),
        ("endpoint", cluster.endpoint or "none"),
        ("revision", f"{cluster.revision}, heard of {tables.span(cluster.stale_secs)} ago"),
        ("changes", f"{cluster.events} since the start, {cluster.resyncs} listings"),
    ]
    if cluster.rotation:
        facts.append(("rotation", cluster.rotation))
    if cluster.windowed:
        facts.append(("reading", "in windows: the cluster changes much"))
    if cluster.skipped_records:
        facts.append(("skipped", f"{cluster.skipped_records} records are not believed (overlayctl doctor)"))
    if cluster.error:
        facts.append(("error", cluster.error))
    return "\n".join(f"{name:<14}{printable(value)}" for name, value in facts)


def nodes(found: tuple[wire.ClusterNode, ...], *, wide: bool, now: float) -> str:
    """One line a node."""
    rows = [
        (
            each.name + (" *" if each.own else ""),
            " ".join(each.blocks),
            each.endpoint or ("behind a NAT" if each.nat else "unknown"),
            _presence(each, now),
            str(each.names),
            tables.key(each.public_key, wide=wide),
        )
        for each in found
    ]
    header = ("NODE", "BLOCKS", "ENDPOINT", "PRESENT", "NAMES", "PUBLIC KEY")
    return table(header, rows) if rows else "no nodes"


def node(each: wire.ClusterNode, *, now: float) -> str:
    """All of one node."""
    facts = [
        ("node", each.name),
        ("number", str(each.node_id)),
        ("blocks", " ".join(each.blocks)),
        ("endpoint", each.endpoint or "unknown"),
        ("behind NAT", "yes" if each.nat else "no"),
        ("public key", each.public_key),
        ("version", each.version or "unknown"),
        ("names", str(each.names)),
        ("present", _presence(each, now)),
    ]
    if each.problem:
        facts.append(("problem", each.problem))
    return "\n".join(f"{name:<14}{printable(value)}" for name, value in facts)


def _presence(each: wire.ClusterNode, now: float) -> str:
    if each.withheld:
        return "withheld"
    if each.present is None:
        return "unknown"
    if not each.present:
        return "no"
    return f"for {tables.span(now - each.since)}" if each.since else "yes"
