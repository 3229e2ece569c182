"""Ports where nobody listens.

Owns: the choice of a port that stays free until it is used, or for as long as nobody must listen there.
Must not know: what will listen there, or will not.
"""

import random
import socket

BELOW_EPHEMERAL = range(20_000, 32_000)  # the kernel takes none of these by itself, for this test's or another's socket


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    """A port of this host that nobody has now, and nobody gets who names none."""
    for port in random.sample(BELOW_EPHEMERAL, 100):
        with socket.socket(socket.AF_INET6, kind) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                probe.bind(("::", port))
            except OSError:
                continue
            return port
    raise OSError("none of 100 ports is free")
