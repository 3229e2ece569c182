"""The cluster's configuration: made once, agreed on by each node.

Owns: what this node makes of what is in the store, and the changes of it.  Must not know: other keys of the store,
or when it is time to look again (`cluster`).
"""

import logging
import random
from collections.abc import Callable

import msgspec

from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import MEMBERSHIP
from overlayd.daemon.change.resources import NODE as NODE_LOCK
from overlayd.daemon.cluster.etcd import Etcd, read_one
from overlayd.daemon.cluster.faults import Conflict, Refused, Waiting
from overlayd.daemon.cluster.settings import Settings
from overlayd.errors import RequestError
from overlayd.linux.surroundings import host_networks
from overlayd.model import joining, overlay
from overlayd.model.cluster_records import CONFIG, FORMAT, BadRecord, Config, read_config, rewritten
from overlayd.model.objects import Network
from overlayd.model.rows import Membership
from overlayd.proto.store_answers import Denied, Entry, Unavailable

log = logging.getLogger(__name__)


class Configuration:
    """unmarked: the mark of a store that went back, for which it is to get another."""

    def __init__(self, node: Node, etcd: Etcd, settings: Settings) -> None:
        self.unmarked: str | None = None
        self._node = node
        self._etcd = etcd
        self._settings = settings

    async def require_room(self, cidr: Network) -> None:
        """RequestError when a cluster of these addresses, which are chosen once, could not have this host as a node."""
        overlay.require_range(cidr, await self._node.run(host_networks))

    async def make(self, config: Config) -> bool:
        """Make the cluster; False when there is one."""
        outcome = await self._etcd.transact([(CONFIG, 0)], [(CONFIG, msgspec.json.encode(config), 0)])
        return outcome.done

    async def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Rewrite the cluster's configuration.  change: the value as it is to what it is to be."""
        while True:
            entry = await read_one(self._etcd, CONFIG)
            if entry is None:
                raise Waiting("there is no cluster: make one (overlayctl cluster init)")
            value = change(entry.value)
            if (await self._etcd.transact([(CONFIG, entry.modified)], [(CONFIG, value, 0)])).done:
                return

    async def agree(self) -> None:
        """Take what the store has; make it, if that is what we were started for.

        Refused, Waiting, Conflict; StoreError when the store does not answer.
        """
        known, settings = self._node.state.table(Membership)[""], self._settings
        entry = await read_one(self._etcd, CONFIG)
        if entry is None:
            config = _config_of(known)
            if config is None and settings.cidr is not None:
                try:
                    await self.require_room(settings.cidr)
                except RequestError as error:
                    raise Refused(f"cluster {known.cluster} is not made: {error}") from error
                config = new_config(settings.cidr, settings.block_prefix)
            if config is None:
                raise Waiting("waiting for cluster init (overlayctl cluster init, or --cluster-cidr)")
            if await self.make(config):
                log.info("cluster %s: made, with %s in /%d", known.cluster, config.cluster_cidr, config.block_prefix)
            entry = await read_one(self._etcd, CONFIG)
            if entry is None:
                raise Unavailable("the cluster's configuration was removed just now")
        try:
            config = read_config(entry.value)
        except BadRecord as error:
            raise Conflict(f"the store's configuration of the cluster is not understood: {error}") from error
        if self.unmarked is not None:
            await self._mark(entry, config)
        if known.cluster_id not in ("", config.id):
            raise Conflict(
                f"cluster {known.cluster} was made again ({config.id}, and this node is of {known.cluster_id}): accept "
                "that (overlayctl cluster accept), or put the store's backup back"
            )
        asked, made = (settings.cidr, settings.block_prefix), (config.cidr, config.block_prefix)
        if settings.cidr is not None and not known.blocks and asked != made:
            raise Refused(
                f"cluster {known.cluster} has {config.cluster_cidr} in blocks of /{config.block_prefix}, not "
                f"{settings.cidr} in /{settings.block_prefix}: start without --cluster-cidr, or with the same"
            )
        if joining.learned(known, config) != known:
            await self._node.change(lambda draft: joining.learn(draft, config), exclusive=[NODE_LOCK, MEMBERSHIP])

    async def _mark(self, entry: Entry, config: Config) -> None:
        """Tell nodes that follow the store later that it went back, unless another node has."""
        if config.history == self.unmarked:
            value = rewritten(entry.value, {"history": _random_mark()}, ["history"])
            try:
                if not (await self._etcd.transact([(CONFIG, entry.modified)], [(CONFIG, value, 0)])).done:
                    raise Unavailable("the cluster's configuration was written meanwhile")
            except Denied as error:  # another node may
                log.warning(
                    "cluster %s: that the store went back is not noted in it: %s", self._settings.cluster, error
                )
        self.unmarked = None


def _random_mark() -> str:
    return f"{random.SystemRandom().getrandbits(128):032x}"


def _config_of(known: Membership) -> Config | None:
    """The configuration as this node remembers it, of a store that has lost it."""
    if not known.cluster_id or known.cidr is None:
        return None
    return Config(
        format=FORMAT,
        id=known.cluster_id,
        cluster_cidr=str(known.cidr),
        block_prefix=known.block_prefix,
        service_share=known.service_share,
        zone=known.zone,
        node_ttl_secs=known.node_ttl,
        rate=known.rate,
        history=_random_mark(),
    )


def new_config(cidr: Network, block_prefix: int, **settings: int | float | str) -> Config:
    """The configuration of a cluster that is made now."""
    made = {
        "format": FORMAT,
        "id": _random_mark(),
        "history": _random_mark(),
        "cluster_cidr": str(cidr),
        "block_prefix": block_prefix,
        **settings,
    }
    return msgspec.convert(made, Config)
