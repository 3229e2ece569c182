"""Pings, sent by ourselves: from a namespace, to one address.

Owns: ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4).  Must not know: why somebody is pinged.
"""

import os
import secrets
import select
import socket
import struct
import time
from contextlib import suppress

from overlayd.inspect.namespaces import inside
from overlayd.model.objects import Address

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_PAYLOAD = b"overlayctl".ljust(48, b".")
_IPPROTO_ICMPV6 = 58


def ping(address: Address, *, namespace: str | None = None, timeout: float = 1.0, tries: int = 1) -> float | None:
    """The seconds until the first answer; None when none came.  namespace: a file, None for ours.  timeout: seconds for
    each try.  OSError when it cannot be sent for a reason of ours: no right to, no such namespace.
    """
    return inside(namespace, lambda: _ping(address, timeout, tries))


def is_refused(address: Address, port: int, *, timeout: float = 0.5, tries: int = 4) -> bool:
    """Whether the host of an address says that nobody is at its UDP port; False when it says nothing.  timeout: seconds
    for each try; a host tells it about once a second, and WireGuard's own datagrams count (icmp_ratelimit, icmp(7)).
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.settimeout(timeout)
            probe.connect((str(address), port))
            for _ in range(tries):
                probe.send(b"\0")  # no message of WireGuard's, which passes it over
                with suppress(TimeoutError):
                    probe.recv(1)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _ping(address: Address, timeout: float, tries: int) -> float | None:
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if address.version == 4 else (socket.AF_INET6, _IPPROTO_ICMPV6)
    )
    with socket.socket(family, socket.SOCK_RAW, protocol) as link:
        identifier = (os.getpid() ^ secrets.randbits(16)) & 0xFFFF
        for sequence in range(1, tries + 1):
            began = time.monotonic()
            try:
                link.sendto(_echo(address.version, identifier, sequence), (str(address), 0))
            except OSError:  # no way there: as good as no answer
                time.sleep(timeout if sequence < tries else 0)
                continue
            if _answered(link, address, identifier, sequence, began + timeout):
                return time.monotonic() - began
    return None


def _echo(version: int, identifier: int, sequence: int) -> bytes:
    """An echo request; of ICMPv6 the kernel makes the checksum, which covers the addresses too."""
    head = _HEADER.pack(_REQUEST[version], 0, 0, identifier, sequence)
    if version == 4:
        head = _HEADER.pack(_REQUEST[version], 0, _checksum(head + _PAYLOAD), identifier, sequence)
    return head + _PAYLOAD


def _answered(link: socket.socket, address: Address, identifier: int, sequence: int, deadline: float) -> bool:
    """A raw socket hears every ICMP message that comes: ours is found by its sender and numbers."""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([link], [], [], left)[0]:
            return False
        data, sender = link.recvfrom(2048)
        at = (data[0] & 15) * 4 if address.version == 4 else 0  # IPv4 comes with its header
        if len(data) < at + _HEADER.size or sender[0].partition("%")[0] != str(address):
            continue
        kind, _, _, number, count = _HEADER.unpack_from(data, at)
        if (kind, number, count) == (_REPLY[address.version], identifier, sequence):
            return True
    return False


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
