"""What an envelope costs: our reader, Google's runtime (upb, in C), the plain Python oracle, and all around it.

python bench/bench_envelope.py [pyperf options]
"""

import functools
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import oracles_envelope
from smoke import make_runner

from overlayd.proto import envelope, identity
from overlayd.proto.envelope import Frame
from overlayd.proto.mux import EndpointMux, json_wire

DAEMON = identity.DaemonProcess(
    pid=4242,
    exe_path="/usr/local/bin/overlayd",
    namespace_id="overlayd",
    path="/run/overlayd/overlayd.sock",
    started_at_unix_ms=1_700_000_000_000,
    boot_id="11111111-2222-3333-4444-555555555555",
    exe_hash=bytes(32),
    exe_sha256=bytes(32),
)
MUX = EndpointMux(
    legacy=json_wire,
    answer_probe=functools.partial(identity.answer_probe, identity=identity.encode(DAEMON)),
    served=frozenset({0xF0DE}),
)
REQUEST = Frame(version=1, protocol=0xF0DE, payload=b"x" * 200, request_id=77)
WIRE = envelope.encode(REQUEST)
BODY = WIRE[envelope.HEADER :]
PROBE = envelope.encode(identity.probe_request(bytes(range(32))))


def google_frame() -> Any:
    """The `Frame` message of Google's runtime, from a descriptor made here."""
    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="frame.proto", package="bench", syntax="proto3")
    message = file.message_type.add(name="Frame")
    types = [proto.TYPE_UINT32] * 3 + [proto.TYPE_BYTES, proto.TYPE_UINT64, proto.TYPE_UINT32, proto.TYPE_UINT64]
    types += [proto.TYPE_STRING] * 2
    for number, (name, kind) in enumerate(zip(Frame.__struct_fields__, types, strict=True), 1):
        message.field.add(name=name, number=number, type=kind, label=proto.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Frame"))


def main() -> None:
    runner = make_runner()
    google = google_frame()

    def google_reads() -> tuple[object, ...]:
        message = google.FromString(BODY)
        return message.protocol, message.kind, message.payload, message.request_id, message.payload

    runner.bench_func("decode a 200-byte payload frame", envelope.decode_body, BODY)
    runner.bench_func("... Google's runtime, parse only", google.FromString, BODY)
    runner.bench_func("... Google's runtime, and read five fields", google_reads)
    runner.bench_func("... plain Python oracle", oracles_envelope.decode, BODY)
    runner.bench_func("poll a 200-byte payload frame", MUX.poll, WIRE)
    runner.bench_func("poll and answer a probe", MUX.poll, PROBE)
    runner.bench_func("respond with 200 bytes", envelope.respond, REQUEST, b"x" * 200)


if __name__ == "__main__":
    main()
