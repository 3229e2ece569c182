"""The words of `overlayctl cluster`, their options and help.

Owns: these.  Must not know: what they do (`cluster`).
"""

from overlayd.cli.words import Command, duration, option, output

EPILOG = """\
examples:
  overlayd --etcd https://10.0.0.1:2379,https://10.0.0.2:2379 --cluster prod      on every node
  overlayctl cluster init 10.200.0.0/16                                           once, on any of them
  overlayctl cluster nodes
  overlayctl cluster set node_ttl_secs=86400
  overlayctl cluster remove-node web-7
"""


def _example(words: str) -> str:
    return f"example: overlayctl cluster {words}"


ACTIONS = (
    Command(
        "init",
        "Make the cluster that this node was started to join.",
        (
            option("cluster_cidr", metavar="CIDR", help="the addresses of the cluster"),
            option(
                "--block-prefix",
                type=int,
                metavar="N",
                help="prefix length of a node's block (default: 24, of IPv6 64)",
            ),
            option(
                "--service-share",
                choices=("0", "1"),
                default="1",
                help="1: half of a node's first block is for services; 0: nothing is (default: %(default)s)",
            ),
            option(
                "--zone",
                metavar="ZONE",
                help="the zone of one-label names, which every node serves (default: overlay.local)",
            ),
            option(
                "--node-ttl",
                type=duration,
                default=0,
                metavar="TIME",
                help="how long a node may be gone before it is removed: 90s, 30m, 8h, 7d (default: forever)",
            ),
        ),
        EPILOG,
    ),
    Command("status", "Show this node's part in the cluster.", output("table", "json"), _example("status")),
    Command("nodes", "List the nodes.", output("table", "wide", "json"), _example("nodes -o wide")),
    Command(
        "show", "Show one node.", (option("node", metavar="NODE"), *output("table", "json")), _example("show node-7")
    ),
    Command(
        "set",
        "Set something of the cluster: node_ttl_secs, rate or zone.",
        (option("pair", metavar="KEY=VALUE"),),
        _example("set node_ttl_secs=86400"),
    ),
    Command(
        "leave",
        "Give up this node's record, names and blocks.",
        (option("--force", action="store_true", help="though containers are attached"),),
        _example("leave"),
    ),
    Command(
        "remove-node", "Remove a node that is gone.", (option("node", metavar="NODE"),), _example("remove-node node-7")
    ),
    Command("rejoin", "Take another block, when that of this node is held by another.", epilog=_example("rejoin")),
    Command("accept", "Accept that the store lacks nodes that were known here.", epilog=_example("accept")),
    Command("check", "Compare the store, the journal and the device.", output("text", "json"), _example("check")),
)
