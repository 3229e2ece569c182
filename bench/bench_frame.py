"""Framing: bytes of one read in, bodies out, decoded by msgspec; `frame.Inbox` beside the same in Python with struct.

Run: python bench/bench_frame.py [--fast]
"""

import struct

import msgspec
from smoke import make_runner

from overlayd._fast.frame import Inbox, frame

HEADER = struct.Struct("<I")
BODY = msgspec.json.encode(
    {
        "frame": "request",
        "id": 4711,
        "request": {"op": "attach_container", "handle": {"platform": "linux_pid", "pid": 71}, "service": "web" * 20},
    }
)


class StructInbox:
    """What one writes first: a bytearray, unpack_from, slices."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def take(self, limit: int) -> list[bytes]:
        bodies: list[bytes] = []
        at, end = 0, len(self.buffer)
        while len(bodies) < limit and end - at >= 4:
            (length,) = HEADER.unpack_from(self.buffer, at)
            if length > 8 * 1024 * 1024:
                raise ValueError(length)
            if end - at < 4 + length:
                break
            bodies.append(bytes(self.buffer[at + 4 : at + 4 + length]))
            at += 4 + length
        del self.buffer[:at]
        return bodies


def split(inbox: Inbox | StructInbox, chunks: list[bytes]) -> None:
    for chunk in chunks:
        inbox.feed(chunk)
        inbox.take(1 << 20)


def split_and_decode(inbox: Inbox | StructInbox, chunks: list[bytes]) -> None:
    decode = msgspec.json.decode
    for chunk in chunks:
        inbox.feed(chunk)
        for body in inbox.take(1 << 20):
            decode(body)


def main() -> None:
    runner = make_runner()
    large = frame(b'"' + b"x" * (1 << 20) + b'"')
    for name, make in (("frame.Inbox", Inbox), ("struct", StructInbox)):
        inbox = make()
        runner.bench_func(f"one request a read: {name}", split, inbox, [frame(BODY)])
        runner.bench_func(f"64 requests a read, each: {name}", split, inbox, [frame(BODY) * 64], inner_loops=64)
        runner.bench_func(
            f"64 requests a read, decoded, each: {name}", split_and_decode, inbox, [frame(BODY) * 64], inner_loops=64
        )
        chunks = [large[at : at + 65536] for at in range(0, len(large), 65536)]
        runner.bench_func(f"1 MiB body in reads of 64 KiB: {name}", split, inbox, chunks)
    runner.bench_func(f"pack {len(BODY)} bytes: frame.frame", frame, BODY)
    runner.bench_func(f"pack {len(BODY)} bytes: struct", lambda: HEADER.pack(len(BODY)) + BODY)


if __name__ == "__main__":
    main()
