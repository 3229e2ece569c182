"""WireGuard's netlink messages through pyroute2's classes, as slow and independent of ours as can be."""

import base64
import socket
import struct

from pyroute2.netlink.generic.wireguard import wgmsg


def encode(attributes):
    """pyroute2's bytes for a message with these attributes, without the netlink header."""
    message = wgmsg()
    message["cmd"] = 0
    message["version"] = 1
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[16:])


def decode(message):
    """The attributes of a message of ours, as pyroute2 reads them."""
    decoded = wgmsg(struct.pack("=IHHII", 16 + len(message), 31, 0, 1, 0) + message)
    decoded.decode()
    return decoded


def allowed_ip(network):
    return {
        "attrs": [
            ["WGALLOWEDIP_A_FAMILY", socket.AF_INET if network.version == 4 else socket.AF_INET6],
            ["WGALLOWEDIP_A_IPADDR", network.network_address.packed],
            ["WGALLOWEDIP_A_CIDR_MASK", network.prefixlen],
        ]
    }


def peer(key, *, endpoint=None, keepalive=None, handshake=None, rx_bytes=None, tx_bytes=None, allowed_ips=()):
    """The attributes of one peer of a dump; those that are None are left out."""
    attributes = [["WGPEER_A_PUBLIC_KEY", base64.b64encode(key)]]
    if endpoint is not None:
        attributes.append(["WGPEER_A_ENDPOINT", {"addr": str(endpoint[0]), "port": endpoint[1], **_zeros(endpoint[0])}])
    if keepalive is not None:
        attributes.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", keepalive])
    if handshake is not None:
        attributes.append(["WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": handshake, "tv_nsec": 5}])
    if rx_bytes is not None:
        attributes.append(["WGPEER_A_RX_BYTES", rx_bytes])
    if tx_bytes is not None:
        attributes.append(["WGPEER_A_TX_BYTES", tx_bytes])
    attributes.append(["WGPEER_A_PROTOCOL_VERSION", 1])
    attributes.append(["WGPEER_A_ALLOWEDIPS", [allowed_ip(network) for network in allowed_ips]])
    return {"attrs": attributes}


def _zeros(address):
    return {"flowinfo": 0, "scope_id": 0} if address.version == 6 else {}
