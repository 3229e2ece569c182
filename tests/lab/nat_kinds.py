"""How NATs differ (RFC 4787): what a `NatBox` may be made to do.

Owns: the packet filter of each kind.  Must not know: what is tested behind them.

full: whoever sends to the mapping comes in.  address: only hosts that were sent to.  port: only the very ports that
were sent to; all three keep the node's port.  moved: as port, but it gives another one.  symmetric: each destination
sees another one.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.natbox import INSIDE, NatBox
from lab.patience import until
from lab.processes import run

KINDS = ("full", "address", "port", "moved", "symmetric")

_RULES = """
flush ruleset
table ip nat {{
  set called {{ type ipv4_addr; flags dynamic, timeout; timeout 2m; }}
  chain prerouting {{
    type nat hook prerouting priority dstnat
    {inbound}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    {outbound}
    oifname uplink masquerade {ports}
  }}
}}
table ip filter {{
  chain input {{
    type filter hook input priority filter; policy drop
    ct state established,related accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop
    iifname inside accept
    ct state established,related accept
    ct status dnat accept
  }}
}}
"""


def behave(box: NatBox, kind: str, port: int, *, moved_to: int = 40000) -> None:
    """Make a NAT of a kind, for its first node's port; moved_to: what that is outside, if it is moved."""
    inside = INSIDE.network[1]
    to_node = f"udp dport {port} dnat to {inside}"
    inbound = {"full": f"iifname uplink {to_node}", "address": f"iifname uplink ip saddr @called {to_node}"}
    outbound = {
        "address": f"oifname uplink ip saddr {inside} update @called {{ ip daddr }}",
        "moved": f"oifname uplink udp sport {port} snat to {box.address}:{moved_to}",
    }
    rules = _RULES.format(
        inbound=inbound.get(kind, ""),
        outbound=outbound.get(kind, ""),
        ports="random,fully-random" if kind == "symmetric" else "",
    )
    run(["ip", "netns", "exec", box.netns, "nft", "-f", "-"], stdin=rules)


def forget(box: NatBox) -> None:
    """Let a NAT forget all its mappings, as one that was restarted has."""
    run(["ip", "netns", "exec", box.netns, "conntrack", "-F"])


PUBLIC = "11.0.0.5"  # miniupnpd takes none that is reserved; nothing of the laboratory leaves it
_MAPPING_TABLES = """
add rule ip filter input iifname inside udp dport { 5351, 1900 } accept
add rule ip filter input iifname inside tcp dport 5000 accept
table inet filter {
  chain miniupnpd { }
}
table inet nat {
  chain prerouting {
    type nat hook prerouting priority dstnat
    jump prerouting_miniupnpd
  }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""


@contextmanager
def mapping_ports(box: NatBox, program: str, directory: Path, *, upnp: bool = False) -> Iterator[None]:
    """Let a NAT, of a kind of `behave`, map ports of PUBLIC for who asks by PCP and NAT-PMP, or by UPnP.  program:
    miniupnpd, which maps none of an address that is private.
    """
    run(["ip", "-n", box.netns, "address", "add", f"{PUBLIC}/32", "dev", "uplink"])
    run(["ip", "netns", "exec", box.netns, "nft", "-f", "-"], stdin=_MAPPING_TABLES)
    written = directory / f"miniupnpd-{box.netns}.conf"
    lines = [
        "ext_ifname=uplink",
        "listening_ip=inside",
        f"enable_upnp={'yes' if upnp else 'no'}",
        f"enable_natpmp={'no' if upnp else 'yes'}",
        "http_port=5000",
        f"ext_ip={PUBLIC}",
    ]
    lines += ["secure_mode=yes", "upnp_table_name=filter", "upnp_nat_table_name=nat", "upnp_forward_chain=miniupnpd"]
    lines += ["upnp_nat_chain=prerouting_miniupnpd", "upnp_nat_postrouting_chain=postrouting_miniupnpd"]
    lines += ["allow 1024-65535 0.0.0.0/0 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535"]
    written.write_text("\n".join(lines) + "\n")
    with (directory / f"miniupnpd-{box.netns}.log").open("w") as log:
        argv = [
            "ip",
            "netns",
            "exec",
            box.netns,
            program,
            "-d",
            "-f",
            str(written),
            "-P",
            str(directory / "miniupnpd.pid"),
        ]
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            port = ":1900" if upnp else ":5351"
            until(lambda: port in run(["ip", "netns", "exec", box.netns, "ss", "-Hlnu"]))
            yield
        finally:
            process.terminate()
            process.wait()


def pass_no_datagrams(box: NatBox) -> None:
    """Let a NAT drop UDP, as some companies' and hotels' networks do."""
    run(
        [
            "ip",
            "netns",
            "exec",
            box.netns,
            "nft",
            "insert",
            "rule",
            "ip",
            "filter",
            "forward",
            "meta",
            "l4proto",
            "udp",
            "drop",
        ]
    )
