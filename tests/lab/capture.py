"""Recording and judging what crosses an interface.

Owns: tcpdump's process and the reading of what it wrote.  Must not know: who sends.  Formats: pcap file
(draft-ietf-opsawg-pcap), Ethernet II, IPv4 (RFC 791), IPv6 without extension headers (RFC 8200), UDP (RFC 768),
WireGuard messages (its paper, section 5.4).
"""

import re
import secrets
import signal
import socket
import struct
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType

from lab import netns
from lab.patience import LIMIT, until
from lab.processes import environment

MAGIC = 0xA1B2C3D4  # little-endian file with microseconds
FILE_HEADER = struct.Struct("<IHHiIII")
RECORD_HEADER = struct.Struct("<IIII")
ETHERNET_HEADER = 14
ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
IPV6_HEADER = 40
UDP = 17
WIREGUARD_SIZES = {1: 148, 2: 92, 3: 64}  # handshake initiation, response, cookie reply
WIREGUARD_TRANSPORT = 4
WIREGUARD_SMALLEST_TRANSPORT = 32  # header and tag of a keepalive

# Our own: room for what a 100 MB transfer sends while tcpdump waits for a processor.
BUFFER_KIB = 65536
# tcpdump reads in bulk and forgets what it has not read when it is stopped, so the last frame of a recording is one of
# ours: an IPv4 header of an experimental protocol (RFC 3692), to an address that nobody has, behind which a random tag
# is looked for.
EXPERIMENT = 253
LAST_FRAME = bytes.fromhex("02000000f0ff 02000000f0fe 0800 45000024 00000000 01fd0000 c0000201 c0000202")


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet.  size: of the whole packet, bytes.  protocol, ports: 0 where there is none.  data: what follows
    the last header that is understood.
    """

    size: int
    protocol: int
    source: IPv4Address | IPv6Address | None
    destination: IPv4Address | IPv6Address | None
    source_port: int
    destination_port: int
    data: bytes

    def is_wireguard(self, port: int) -> bool:
        """Whether this is a well-formed WireGuard message over UDP from or to `port`."""
        if self.protocol != UDP or port not in (self.source_port, self.destination_port) or len(self.data) < 4:
            return False
        kind = int.from_bytes(self.data[:4], "little")
        if kind == WIREGUARD_TRANSPORT:
            return len(self.data) >= WIREGUARD_SMALLEST_TRANSPORT
        return WIREGUARD_SIZES.get(kind) == len(self.data)

    def is_carried(self, port: int) -> bool:
        """Whether a packet is inside that went through the tunnel of `port`: no handshake and no keepalive."""
        kind = int.from_bytes(self.data[:4], "little")
        return self.is_wireguard(port) and kind == WIREGUARD_TRANSPORT and len(self.data) > WIREGUARD_SMALLEST_TRANSPORT


def read_frame(frame: bytes) -> Packet:
    """Take one Ethernet frame apart; all but IP keeps only its size and data."""
    packet = frame[ETHERNET_HEADER:]
    if int.from_bytes(frame[12:14], "big") == ETHERTYPE_IPV6:
        ends = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        return _read_payload(IPV6_HEADER + int.from_bytes(packet[4:6], "big"), packet[6], *ends, packet[IPV6_HEADER:])
    if int.from_bytes(frame[12:14], "big") != ETHERTYPE_IPV4:
        return Packet(len(packet), 0, None, None, 0, 0, packet)
    header = (packet[0] & 0x0F) * 4
    size = int.from_bytes(packet[2:4], "big")
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    payload = packet[header:size]
    if int.from_bytes(packet[6:8], "big") & 0x1FFF:  # a later fragment has no ports
        return Packet(size, packet[9], source, destination, 0, 0, payload)
    return _read_payload(size, packet[9], source, destination, payload)


def _read_payload(
    size: int,
    protocol: int,
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    payload: bytes,
) -> Packet:
    if protocol != UDP:
        return Packet(size, protocol, source, destination, 0, 0, payload)
    source_port, destination_port = struct.unpack_from("!HH", payload)
    return Packet(size, UDP, source, destination, source_port, destination_port, payload[8:])


class Capture:
    """Records IP packets between `start` and `stop`, or for a `with` block.

    namespace: the file behind which the network namespace is.  interface: in it.  directory: where the recording goes.
    """

    def __init__(self, namespace: Path, interface: str, directory: Path) -> None:
        self.namespace = namespace
        self.interface = interface
        self.file = directory / f"{interface}-{secrets.token_hex(4)}.pcap"
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Capture":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin; returns once packets are recorded."""
        options = ["-i", self.interface, "-w", str(self.file), "-B", str(BUFFER_KIB), "-Z", "root", "-U", "-n"]
        self.process = subprocess.Popen(
            ["nsenter", f"--net={self.namespace}", "--", "tcpdump", *options, "ip", "or", "ip6"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "listening on" in line:
                return
        raise RuntimeError(f"tcpdump ended with {self.process.wait()}: {''.join(said)}")

    def stop(self) -> None:
        """End; RuntimeError when the kernel dropped packets, for then the recording proves nothing."""
        assert self.process is not None
        self._wait_for_last_frame()
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=LIMIT)
        dropped = re.search(r"(\d+) packets? dropped by kernel", said)
        if self.process.returncode or dropped is None or int(dropped[1]):
            raise RuntimeError(f"incomplete capture (exit code {self.process.returncode}): {said}")

    def _wait_for_last_frame(self) -> None:
        tag = secrets.token_bytes(16)
        with netns.open_socket(self.namespace, socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((self.interface, 0))
            sender.send(LAST_FRAME + tag)
        until(lambda: tag in self._tail(), f"tcpdump lags behind on {self.interface}")

    def _tail(self) -> bytes:
        with self.file.open("rb") as recording:
            recording.seek(max(0, self.file.stat().st_size - 65536))
            return recording.read()

    def packets(self) -> list[Packet]:
        """What was recorded, in order."""
        recording = self.file.read_bytes()
        assert FILE_HEADER.unpack_from(recording)[0] == MAGIC, "not a pcap file of this machine's byte order"
        offset, packets = FILE_HEADER.size, []
        while offset < len(recording):
            _, _, kept, _ = RECORD_HEADER.unpack_from(recording, offset)
            offset += RECORD_HEADER.size
            packets.append(read_frame(recording[offset : offset + kept]))
            offset += kept
        return [packet for packet in packets if packet.protocol != EXPERIMENT]

    def holds(self, marker: bytes) -> bool:
        """Whether these bytes appear anywhere in the recording."""
        return marker in self.file.read_bytes()
