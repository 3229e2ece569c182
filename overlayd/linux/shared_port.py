"""Sending and receiving STUN on a UDP port that somebody else's socket owns: WireGuard's.

Owns: the raw sockets, the UDP header and the filter.  Must not know: what the messages say, or who is asked.

A NAT maps the port that WireGuard sends from, so what is to learn or to open that mapping must leave from there, and
WireGuard, in the kernel or in a process of its own, does not lend its socket.  A raw socket needs none: it writes the
UDP header itself, and gets a copy of what arrives.  WireGuard gets those answers as well and drops them, as no message
of its own.  The filter passes nothing but STUN for the port, so that tunnel traffic is not copied into this process;
it is still looked at once more in the kernel, so a socket is open only while an answer is awaited.
"""

import ctypes
import socket
import struct
from collections.abc import Sequence
from errno import EAFNOSUPPORT
from ipaddress import IPv4Address, ip_address

from overlayd.errors import MechanismError
from overlayd.model.objects import Address

# linux/filter.h, linux/bpf_common.h: opcodes of classic BPF
_LD_W_IND, _LD_H_IND, _LD_B_IND = 0x40, 0x48, 0x50  # accumulator = packet[X + k]
_LDX_MSH, _LDX_IMM = 0xB1, 0x01  # X = 4 * (packet[k] & 0xf), X = k
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06
_INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter
_WHOLE = 0xFFFF

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_IPV6_CHECKSUM = 7  # linux/in6.h
_UDP = struct.Struct("!HHHH")  # RFC 768: source, destination, length, checksum
_STUN_COOKIE = 0x2112A442  # RFC 8489, section 5
_DATAGRAM = 65536


class SharedPort:
    """One family's STUN on a UDP port.  version: 4 or 6.  Raises MechanismError without CAP_NET_RAW, or where this
    machine lacks the family.
    """

    def __init__(self, version: int, port: int) -> None:
        self._version = version
        self._port = port
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        try:
            self.socket = socket.socket(
                family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_UDP
            )
        except OSError as error:
            raise MechanismError("open a raw socket", f"UDP port {port}", error.errno or EAFNOSUPPORT) from error
        try:
            _attach(self.socket, _filter(version, port))
            if version == 6:  # the kernel knows the source address, and puts the checksum at this offset
                self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 6)
        except OSError as error:
            self.socket.close()
            raise MechanismError("filter a raw socket", f"UDP port {port}", error.errno or 0) from error

    def close(self) -> None:
        self.socket.close()

    def send(self, datagram: bytes, to: tuple[Address, int]) -> None:
        """Send a datagram from the port.  Raises MechanismError: there is no way to that address."""
        address, port = to
        try:
            size = _UDP.size + len(datagram)
            header = _UDP.pack(self._port, port, size, 0)
            if self._version == 4:
                header = _UDP.pack(self._port, port, size, _checksum(_source(address), address, header + datagram))
            self.socket.sendto(header + datagram, (str(address), 0))
        except OSError as error:
            raise MechanismError("send from", f"UDP port {self._port} to {address}", error.errno or 0) from error

    def receive(self) -> tuple[bytes, tuple[Address, int]] | None:
        """The next datagram and who sent it; None when there is none, or its header is no UDP header."""
        try:
            packet, sender = self.socket.recvfrom(_DATAGRAM)
        except BlockingIOError:
            return None
        start = (packet[0] & 0xF) * 4 if self._version == 4 else 0
        if len(packet) < start + _UDP.size:
            return None
        port, _, length, _ = _UDP.unpack_from(packet, start)
        return packet[start + _UDP.size : start + length], (ip_address(sender[0].partition("%")[0]), port)


def _source(destination: Address) -> Address:
    """The address that this host sends to another from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((str(destination), 9))  # sends nothing
        return IPv4Address(probe.getsockname()[0])


def _checksum(source: Address, destination: Address, datagram: bytes) -> int:
    """The checksum of a UDP datagram over IPv4 with a checksum of 0 in it (RFC 768)."""
    pseudo = source.packed + destination.packed + struct.pack("!HH", socket.IPPROTO_UDP, len(datagram))
    total = sum(struct.unpack(f"!{(len(datagram) + 1) // 2}H", datagram + bytes(len(datagram) % 2)))
    total += sum(struct.unpack("!6H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF or 0xFFFF  # 0 would mean that there is none


def _filter(version: int, port: int) -> list[tuple[int, int, int, int]]:
    """Classic BPF: pass STUN for the port.  It sees the IPv4 header, but not that of IPv6."""
    find_udp = (_LDX_MSH, 0, 0, 0) if version == 4 else (_LDX_IMM, 0, 0, 0)
    return [
        find_udp,
        (_LD_H_IND, 0, 0, 2),
        (_JEQ, 0, 5, port),
        (_LD_W_IND, 0, 0, 12),
        (_JEQ, 0, 3, _STUN_COOKIE),
        (_LD_B_IND, 0, 0, 8),
        (_JSET, 1, 0, 0xC0),  # the first two bits of a STUN message are zero
        (_RET, 0, 0, _WHOLE),
        (_RET, 0, 0, 0),
    ]


def _attach(raw: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Put a filter before a socket, and drop what arrived before it was there."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    while True:
        try:
            raw.recv(1)
        except BlockingIOError:
            return
