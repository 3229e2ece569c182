"""The words of `overlayctl edge`, their options and help.

Owns: these.  Must not know: what they do (`commands`).
"""

from argparse import SUPPRESS

from overlayd.cli.words import Command, duration, option, output

EPILOG = """\
examples:
  (umask 077; overlayctl edge mint laptop --ttl 8h --allow 10.200.0.0/16 > overlay.conf)
  wg-quick up ./overlay.conf                         on the laptop
  overlayctl edge mint laptop --ttl 8h --allow web --node-endpoint vpn.example.net:51820
  overlayctl edge list
  overlayctl edge revoke laptop

The configuration holds the private key; overlayd does not show it again.
"""

ACTIONS = (
    Command(
        "mint",
        "Make a key and an address for a device, and print its configuration.",
        (
            option("name", metavar="NAME", help="what to call it"),
            option(
                "--ttl",
                type=duration,
                required=True,
                metavar="TIME",
                help="how long it may connect: 90s, 30m, 8h, 7d",
            ),
            option(
                "--allow",
                action="append",
                default=[],
                metavar="CIDR|SERVICE",
                help="what it may reach, a CIDR or a service of this node; repeatable (default: everything)",
            ),
            option(
                "--node-endpoint",
                metavar="HOST:PORT",
                help="where it dials this node (default: this host's own address, which a NAT may hide)",
            ),
            option("--format", choices=("wg-quick", "json"), default="wg-quick", help="(default: %(default)s)"),
            option("--json", dest="format", action="store_const", const="json", default=SUPPRESS, help="--format json"),
        ),
        EPILOG,
    ),
    Command(
        "list",
        "List the devices that were let in.",
        output("table", "wide", "json"),
        "example: overlayctl edge list -o wide",
    ),
    Command(
        "revoke",
        "Shut a device out now.",
        (option("name", metavar="NAME", help="the name it was minted with"),),
        "example: overlayctl edge revoke laptop",
    ),
)
