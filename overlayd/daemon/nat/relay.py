"""The built-in relay: the sockets of a TURN server.

Owns: the listening port, one relayed port a session, and what moves between them.  Must not know: who may relay, and
to whom (`proto.relay`).

    relay = Relay(config, refused=[cluster_cidr])
    relay.start()
    ...
    relay.close()

What cannot be sent at once is dropped, as routers do: the kernel's buffers are the only queues.
"""

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import ip_address, ip_network

from overlayd import wire
from overlayd.errors import MechanismError, RequestError
from overlayd.linux.egress import attachment, next_link, source_towards
from overlayd.linux.netlink import Netlink
from overlayd.model.endpoints import nobodys
from overlayd.model.objects import Address, Network, unmapped
from overlayd.proto.relay import RelayServer, SocketAddress, ToPeer
from overlayd.proto.relay_peers import Hop, RelayPeers
from overlayd.proto.stun import TRANSACTION_ID_SIZE

log = logging.getLogger(__name__)

SO_RCVBUFFORCE = 33  # asm-generic/socket.h: SO_RCVBUF without the limit, for CAP_NET_ADMIN
RELAYED_PORTS = range(49152, 65536)  # RFC 8656 7.2 recommends the dynamic ports

# Addresses that are nobody's (RFC 5737, RFC 3849): what is looked up is the way to them, nothing is sent there.
OUTSIDE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))

# Our own constants.
PORT_TRIES = 64  # random ports tried before there is none left; so many fail only when most are taken
BATCH = 32  # datagrams taken from a socket before others get their turn: under half a millisecond
LARGEST = 65536  # bytes, more than any datagram
LISTEN_BUFFER, PORT_BUFFER = 4 << 20, 1 << 18  # bytes that the kernel holds for us; the latter once a session
SWEEP = 1.0  # seconds between two looks for sessions that have ended
REPORT = 60.0  # seconds between two lines of the log about what was dropped or forged


class Relay:
    """config: as the contract has it.  refused: networks that nothing is relayed to, beside what never is: those of the
    overlay, which must not be entered past its encryption.  is_known: whether a node is known to be at an address.

    Raises RequestError for a configuration that cannot work.  A missing credential is one: a relay that asks for none
    sends for anybody who finds its port, from an address that the rest of the cluster trusts.  Making one up would not
    help, since the other nodes have to know it.
    """

    def __init__(
        self,
        config: wire.RelayServer,
        refused: Iterable[Network],
        is_known: Callable[[Address], bool] = lambda address: False,
    ) -> None:
        field = "request.nat.relay_server"
        if not config.auth_credential:
            raise RequestError(f"{field}.auth_credential: a relay without one would be open to anybody: set a secret")
        if not config.listen_port:
            raise RequestError(f"{field}.listen_port: 0 is no port that nodes could be told of, 3478 is usual")
        field = f"{field}.external_addr"
        texts = [each.strip() for each in config.external_addr.split(",")] if config.external_addr else []
        self._external = [_external_address(text, field) for text in texts] or [_own_address(field)]
        if len({address.version for address in self._external}) < len(self._external):
            raise RequestError(f"{field}: at most one address of IPv4 and one of IPv6")
        self._port = config.listen_port
        self._rules = {
            "refused": tuple(refused),
            "denied": _networks(config.denied_peers, "denied_peers"),
            "allowed": _networks(config.allowed_peers, "allowed_peers"),
        }
        self._is_known = is_known
        self._links: set[int] = set()  # that have the external addresses
        self._bind_to: dict[int, str] = {}  # by IP version
        self._listeners: dict[int, socket.socket] = {}  # the same
        self._ports: dict[int, socket.socket] = {}
        self._dropped, self._reported, self._report_at = 0, (0, 0), 0.0
        self._sweeping: asyncio.TimerHandle | None = None
        self.server = RelayServer(
            config.auth_credential,
            self._external,
            config.max_sessions,
            nonce_key=secrets.token_bytes(32),
            new_id=partial(secrets.token_bytes, TRANSACTION_ID_SIZE),
            refusal=self._refusal,
            open_port=self._open_port,
            close_port=self._close_port,
        )

    def start(self) -> None:
        """Listen.  An external address is used itself where this host has it, else, behind a NAT, every address of its
        IP version.

        Raises MechanismError when the port cannot be had.
        """
        self._loop = asyncio.get_running_loop()
        self._netlink = Netlink()
        try:
            attached = [found for address in self._external if (found := attachment(self._netlink, address))]
            self._links = {link for link, _ in attached}
            beside = [network for _, networks in attached for network in networks]
            self._peers = RelayPeers(**self._rules, is_known=self._is_node, hop=self._hop, beside=beside)
            for address in self._external:
                self._listeners[address.version] = self._listen(address)
        except MechanismError:
            self._close_sockets()
            raise
        for listener in self._listeners.values():
            self._loop.add_reader(listener.fileno(), self._from_clients, listener)
        self._sweep()
        log.info("relaying on port %d for %s", self._port, " and ".join(map(str, self._external)))

    def close(self) -> None:
        """End every session and close every socket.  Idempotent."""
        if not self._listeners:
            return
        self.server.close()
        for listener in self._listeners.values():
            self._loop.remove_reader(listener.fileno())
        self._close_sockets()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _close_sockets(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._netlink.close()

    def _refusal(self, address: Address) -> str:
        return self._peers.refusal(address)

    def _is_node(self, address: Address) -> bool:
        """A client that relays here knows the credential, and so is a node as well."""
        return self._is_known(address) or self.server.has_client_at(address)

    def _hop(self, address: Address) -> Hop:
        """The uplink is where the outside is, and where our own address is; three look-ups of some 20 us at most."""
        link = next_link(self._netlink, address)
        if link is None:
            return "none"
        if link in self._links or any(link == next_link(self._netlink, outside) for outside in OUTSIDE):
            return "uplink"
        return "inside"

    # --- moving data --------------------------------------------------------------------------------------------------

    def _from_clients(self, listener: socket.socket) -> None:
        now = self._loop.time()
        handle, ports = self.server.client_datagram, self._ports
        for _ in range(BATCH):
            try:
                datagram, address = listener.recvfrom(LARGEST)
            except BlockingIOError:
                return
            client = address[:2]
            answer = handle(client, datagram, now)
            if answer is None:
                continue
            if type(answer) is ToPeer:
                self._send(ports[answer.port], answer.data, answer.peer)
            else:
                self._send(listener, answer, client)  # type: ignore[arg-type]

    def _from_peers(self, port: socket.socket, number: int) -> None:
        now = self._loop.time()
        session = self.server.by_port.get(number)
        if session is None:
            return
        listener = self._listeners[_version(session.client)]
        handle = self.server.peer_datagram
        for _ in range(BATCH):
            try:
                data, address = port.recvfrom(LARGEST)
            except BlockingIOError:
                return
            datagram = handle(session, address[:2], data, now)
            if datagram is not None:
                self._send(listener, datagram, session.client)

    def _send(self, sender: socket.socket, data: bytes, to: SocketAddress) -> None:
        try:
            sender.sendto(data, to)
        except OSError as error:  # full, too large, no route, a firewall: nobody waits for it
            self._dropped += 1
            log.debug("relay: %d bytes to %s: %s", len(data), to, error)

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _listen(self, address: Address) -> socket.socket:
        for host in (str(address), ""):
            try:
                self._bind_to[address.version] = host
                return self._bind(address.version, self._port, LISTEN_BUFFER)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and host:
                    continue
                detail = "is another TURN server running?" if error.errno == errno.EADDRINUSE else ""
                raise MechanismError(
                    "listen for the relay", f"udp port {self._port}", error.errno or 0, detail
                ) from None
        raise AssertionError("the wildcard address is always available")

    def _bind(self, version: int, port: int, buffer: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        try:
            if version == 6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            with contextlib.suppress(PermissionError):  # then it is what net.core.rmem_max leaves of it
                bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
            bound.setblocking(False)
            bound.bind((self._bind_to[version], port))
        except OSError:
            bound.close()
            raise
        return bound

    def _open_port(self, client: SocketAddress, version: int, even: bool) -> int | None:
        """A relayed port for a client, at random so that nobody can guess it (RFC 8656 21.2)."""
        for _ in range(PORT_TRIES):
            number = secrets.choice(RELAYED_PORTS[:: 2 if even else 1])
            if number in self._ports:
                continue  # of the other IP version
            try:
                port = self._bind(version, number, PORT_BUFFER)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                log.error("relay: no port for %s: %s", client[0], error)
                return None
            self._ports[number] = port
            self._loop.add_reader(port.fileno(), self._from_peers, port, number)
            log.info("relay: IPv%d port %d is relayed for %s port %d", version, number, *client)
            return number
        log.error("relay: no port for %s: %d random ones are all in use", client[0], PORT_TRIES)
        return None

    def _close_port(self, number: int) -> None:
        port = self._ports.pop(number)
        self._loop.remove_reader(port.fileno())
        port.close()
        log.info("relay: port %d is closed", number)

    def _sweep(self) -> None:
        now = self._loop.time()
        self.server.expire(now)
        self._report(now)
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)

    def _report(self, now: float) -> None:
        counted = (self._dropped, self.server.forged)
        if counted == self._reported or now < self._report_at:
            return
        dropped, forged = (new - old for new, old in zip(counted, self._reported, strict=True))
        log.warning("relay: %d datagrams could not be sent on, %d requests had a wrong credential", dropped, forged)
        self._reported, self._report_at = counted, now + REPORT


def _version(address: SocketAddress) -> int:
    return 6 if ":" in address[0] else 4


def _own_address(field: str) -> Address:
    """The address from which this host reaches the outside."""
    with Netlink() as netlink:
        for somewhere in OUTSIDE:
            address = source_towards(netlink, somewhere)
            if address is not None:
                return address
    raise RequestError(f"{field}: this host has no route to the outside that would tell its address: write it")


def _networks(texts: Iterable[str], field: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise RequestError(f"request.nat.relay_server.{field}: {error}") from None


def _external_address(text: str, field: str) -> Address:
    """The address in `192.0.2.1:3478`, `[2001:db8::1]:3478`, or one without a port."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and (host.count(":") == 0 or host.startswith("[")):
        text = host
    try:
        address = unmapped(ip_address(text.removeprefix("[").removesuffix("]")))
        if "%" in text or (host == text and int(port) > 65535):  # a zone may be any text
            raise ValueError
    except ValueError:
        raise RequestError(f"{field}: {text!r} is no IP address and port like 192.0.2.1:3478") from None
    if nobody := nobodys(address):
        raise RequestError(f"{field}: {address} {nobody}; name an address at which other nodes reach this one")
    return address
