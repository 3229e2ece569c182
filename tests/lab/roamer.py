"""A machine that is no node: it has WireGuard of its own, and a configuration that a daemon made for it.

Owns: bringing a userspace device up from such a configuration, as its owner would.  Must not know: where the
configuration comes from.
"""

from typing import Any

from lab.node import Node
from lab.patience import until

INTERFACE = "wg0"


def bring_up(machine: Node, config: dict[str, Any], interface: str = INTERFACE) -> None:
    """Set up WireGuard on `machine` (a node without a daemon) from nothing but a `guest_config` or `edge_config`."""
    lines = ["[Interface]", f"PrivateKey = {config['private_key']}"]
    for peer in config["peers"]:
        lines += ["[Peer]", f"PublicKey = {peer['public_key']}", f"Endpoint = {peer['endpoint']}"]
        lines += [f"AllowedIPs = {peer['allowed_ips']}", f"PersistentKeepalive = {peer['persistent_keepalive_secs']}"]
    file = machine.run_directory / f"{interface}.conf"
    file.write_text("\n".join(lines) + "\n")
    machine.run(["wireguard-go", interface])
    machine.run(["wg", "setconf", interface, str(file)])
    machine.run(["ip", "address", "add", f"{config['overlay_ip']}/{config['prefix_len']}", "dev", interface])
    machine.run(["ip", "link", "set", interface, "up"])


def wait_until_connected(machine: Node, interface: str = INTERFACE) -> None:
    """Wait until packets go through the device: a handshake whose first message was lost is begun anew after 5 s only,
    by when programs have given up, and an IPv6 address is not usable at once.
    """

    def connected() -> bool:
        shown = machine.run(["wg", "show", interface, "latest-handshakes"]).splitlines()
        tentative = machine.run(["ip", "address", "show", "dev", interface, "tentative"])
        return all(line.split()[1] != "0" for line in shown) and not tentative

    until(connected, lambda: machine.run(["wg", "show", interface]))


def shut_down(machine: Node, interface: str = INTERFACE) -> None:
    """Remove the device, and wait for its process, which ends with it: until then nobody can have a device of that
    name again.
    """
    machine.run(["ip", "link", "delete", interface])
    until(lambda: not machine.wireguard_pids())
