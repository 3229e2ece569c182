"""Where WireGuard finds relayed peers: sockets on the loopback.

Owns: the sockets, one for each remote address.  Must not know: what carries their datagrams.

Each remote address has a socket of its own, so that it is WireGuard, which knows authentic packets, that decides where
a peer has moved to.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

import msgspec

from overlayd.model.candidates import Endpoint

ADDRESS = "127.0.0.1"

# Our own constants.
REMOTES = 1024  # sockets; the one that was silent longest makes room for a new one
AT_ONCE = 64  # datagrams read before other work gets its turn
BUFFER = 1 << 20  # bytes of a socket's buffers: a tunnel's bursts
DATAGRAM = 65536


class _Remote(msgspec.Struct, eq=False):
    """used: when a datagram passed last, in the loop's time."""

    endpoint: Endpoint
    local: Endpoint
    socket: socket.socket
    used: float


class Loopback:
    """wg_port: WireGuard's.  carry: takes what WireGuard sends to a remote address."""

    def __init__(self, wg_port: int, carry: Callable[[bytes, Endpoint], None]) -> None:
        self._wireguard = (ADDRESS, wg_port)
        self._carry = carry
        self._remotes: dict[Endpoint, _Remote] = {}
        self._locals: dict[Endpoint, _Remote] = {}

    def close(self) -> None:
        for remote in list(self._remotes.values()):
            self._close(remote)

    def local(self, remote: Endpoint) -> Endpoint:
        """Where WireGuard has to send to for a remote address.  OSError: there is no socket to be had."""
        return self._of(remote).local

    def remote(self, local: Endpoint) -> Endpoint | None:
        """Whom WireGuard means when it sends to `local`; None when that is no socket of ours."""
        known = self._locals.get(local)
        return known.endpoint if known is not None else None

    def deliver(self, datagram: bytes, remote: Endpoint) -> None:
        """Give WireGuard what came from a remote address."""
        with suppress(OSError):  # WireGuard is not there, or its buffer is full: as lost on the way
            self._of(remote).socket.send(datagram)

    def _of(self, endpoint: Endpoint) -> _Remote:
        now = asyncio.get_running_loop().time()
        known = self._remotes.get(endpoint)
        if known is None:
            if len(self._remotes) >= REMOTES:
                self._close(min(self._remotes.values(), key=lambda remote: remote.used))
            known = self._open(endpoint, now)
        known.used = now
        return known

    def _open(self, endpoint: Endpoint, now: float) -> _Remote:
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            enlarge_buffers(here)
            here.bind((ADDRESS, 0))
            here.connect(self._wireguard)  # from nobody else
        except BaseException:
            here.close()
            raise
        remote = _Remote(endpoint, (ip_address(ADDRESS), here.getsockname()[1]), here, now)
        self._remotes[endpoint] = self._locals[remote.local] = remote
        asyncio.get_running_loop().add_reader(here, self._read, remote)
        return remote

    def _close(self, remote: _Remote) -> None:
        asyncio.get_running_loop().remove_reader(remote.socket)
        remote.socket.close()
        del self._remotes[remote.endpoint], self._locals[remote.local]

    def _read(self, remote: _Remote) -> None:
        remote.used = asyncio.get_running_loop().time()
        for _ in range(AT_ONCE):
            try:
                datagram = remote.socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # WireGuard was not there when we sent last
                continue
            self._carry(datagram, remote.endpoint)


def enlarge_buffers(one: socket.socket) -> None:
    """As far as the system lets us."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        one.setsockopt(socket.SOL_SOCKET, option, BUFFER)
