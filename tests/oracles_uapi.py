"""The text protocol of WireGuard the slow and obvious way: a device that is a dictionary, driven line by line.

`Device.set` applies a set operation as the specification tells it, `Device.get` writes the answer to `get=1`.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network


@dataclass
class Peer:
    endpoint: str = ""
    keepalive: int = 0
    last_handshake: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass
class Device:
    """removes_one: whether `allowed_ip=-CIDR` is understood, as newer versions of wireguard-go do."""

    removes_one: bool = True
    private_key: str = ""
    listen_port: int = 0
    peers: dict[str, Peer] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # allowed IP -> public key: one owner each

    def set(self, operation: bytes) -> None:
        assert operation.startswith(b"set=1\n")
        assert operation.endswith(b"\n\n")
        lines = operation.decode().split("\n")[1:-2]
        key = None
        ignored = False
        for line in lines:
            name, value = line.split("=", 1)
            if name == "public_key":
                key = value
                ignored = False
                created = key not in self.peers
                self.peers.setdefault(key, Peer())
            elif key is None:
                assert name in ("private_key", "listen_port")
                setattr(self, name, value if name == "private_key" else int(value))
            elif name == "update_only":
                assert value == "true"
                if created:
                    self._forget(key)
                    ignored = True
            elif ignored:
                pass
            elif name == "remove":
                assert value == "true"
                self._forget(key)
                ignored = True
            elif name == "replace_allowed_ips":
                assert value == "true"
                self.owners = {network: owner for network, owner in self.owners.items() if owner != key}
            elif name == "allowed_ip" and value.startswith("-"):
                assert self.removes_one
                if self.owners.get(value[1:]) == key:
                    del self.owners[value[1:]]
            elif name == "allowed_ip":
                self.owners[value] = key
            elif name == "endpoint":
                self.peers[key].endpoint = value
            elif name == "persistent_keepalive_interval":
                self.peers[key].keepalive = int(value)
            else:
                raise AssertionError(line)

    def _forget(self, key):
        del self.peers[key]
        self.owners = {network: owner for network, owner in self.owners.items() if owner != key}

    def get(self, errno: int = 0) -> bytes:
        lines = []
        if self.private_key:
            lines.append(f"private_key={self.private_key}")
        if self.listen_port:
            lines.append(f"listen_port={self.listen_port}")
        for key, peer in self.peers.items():
            lines += [f"public_key={key}", "preshared_key=" + "0" * 64, "protocol_version=1"]
            if peer.endpoint:
                lines.append(f"endpoint={peer.endpoint}")
            lines.append(f"last_handshake_time_sec={peer.last_handshake}")
            lines.append("last_handshake_time_nsec=17")
            lines += [f"tx_bytes={peer.tx_bytes}", f"rx_bytes={peer.rx_bytes}"]
            lines.append(f"persistent_keepalive_interval={peer.keepalive}")
            lines += [f"allowed_ip={network}" for network, owner in self.owners.items() if owner == key]
        lines.append(f"errno={errno}")
        return "\n".join(lines).encode() + b"\n\n"

    def allowed_ips(self, key: str) -> frozenset:
        return frozenset(ip_network(network) for network, owner in self.owners.items() if owner == key)


def endpoint_of(text: str):
    """None, or the address and the port."""
    if not text:
        return None
    host, port = text.rsplit(":", 1)
    return ip_address(host.replace("[", "").replace("]", "")), int(port)
