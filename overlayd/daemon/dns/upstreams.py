"""Which servers are asked for names that are not ours.

Owns: how an upstream is written, and the host's resolv.conf(5).  Must not know: how they are asked.
"""

import logging
import os
from collections.abc import Collection, Sequence
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from overlayd.model.objects import Address

log = logging.getLogger(__name__)

PORT = 53  # RFC 1035 section 4.2
RESOLV_CONF = Path("/etc/resolv.conf")


class Upstream(NamedTuple):
    """A server, numeric: `address` may have an IPv6 scope (fe80::1%eth0)."""

    address: str
    port: int = PORT

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def parse(text: str) -> Upstream:
    """`192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`; ValueError for anything else."""
    host, port = text, str(PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest:
            port = rest.removeprefix(":") if rest.startswith(":") else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} has no port from 1 to 65535")
    return Upstream(str(ip_address(host)), int(port))


def read(resolv_conf: str) -> tuple[Upstream, ...]:
    """The name servers of a resolv.conf(5); lines that make no sense are passed over, as the C library does."""
    found = []
    for line in resolv_conf.splitlines():
        match line.split():
            case ["nameserver", host, *_]:
                try:
                    found.append(Upstream(str(ip_address(host))))
                except ValueError:
                    log.debug("%s: not an address: %s", RESOLV_CONF, host)
    return tuple(dict.fromkeys(found))


class Upstreams:
    """The servers to ask, in order: those that were given, else those of the host's resolv.conf as it is now."""

    def __init__(self, given: Sequence[Upstream], path: Path = RESOLV_CONF) -> None:
        self._given = tuple(given)
        self._path = path
        self._seen: tuple[int, ...] | None = None  # what tells this resolv.conf from the next
        self._read: tuple[Upstream, ...] = ()  # the last that were there

    def other_than(self, own: Collection[Address], port: int) -> tuple[Upstream, ...]:
        """Without ourselves: a server at one of these addresses and this port would be asked in a loop."""
        servers = self._given or self._of_host()
        return tuple(server for server in servers if server.port != port or _parsed(server.address) not in own)

    def _of_host(self) -> tuple[Upstream, ...]:
        """A stat(2) each time, a read when the file is another: it may be replaced at any moment.  While it names none,
        those that it named before are asked on: who rewrites it may be half-way, and cannot mean that nobody is to be
        asked.
        """
        try:
            status = self._path.stat()
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                found = read(self._path.read_text(errors="replace"))
                self._seen = seen
                if found:
                    self._read = found
                else:
                    self._complain("names no server")
        except OSError as error:
            if self._seen != ():
                self._complain(f"cannot be read ({os.strerror(error.errno or 0)})")
            self._seen = ()
        return self._read

    def _complain(self, what: str) -> None:
        asked = ", ".join(map(str, self._read))
        log.warning(
            "%s %s, so %s", self._path, what, f"it is still {asked}" if asked else "there is no server to forward to"
        )


@lru_cache(64)  # asked for again with each batch of queries
def _parsed(address: str) -> Address:
    return ip_address(address)
