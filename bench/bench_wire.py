"""The contract's hot paths: one request decoded, one answer encoded, beside plain JSON libraries on the same bytes.

Run with `python bench/bench_wire.py`; pyperf's options apply (`--fast`, `-o FILE`).
"""

import json

import orjson
from smoke import SMOKE, make_runner

from overlayd import wire

KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
ADD_PEER = wire.AddPeer(KEY, "192.0.2.7:51820", "10.200.1.0/24", 25)
ADD_PEER_BODY = wire.encode_request(7, ADD_PEER)[4:]
STATUS_BODY = wire.encode_request(7, wire.GetStatus())[4:]
BAD_BODY = ADD_PEER_BODY.replace(b":25", b":-1")
PEERS = tuple(
    wire.StatusPeer(KEY, "192.0.2.7:51820", f"10.{n >> 8}.{n & 255}.0/24", 1767225600)
    for n in range(100 if SMOKE else 10_000)
)
STATUS = wire.Status(peer_count=len(PEERS), service_count=0, peers=PEERS)
STATUS_ANSWER = wire.encode_response_object(STATUS)
EVENT = wire.PeerHealthChanged(KEY, False)


def refuse() -> None:
    try:
        wire.decode_request(BAD_BODY)
    except wire.BadRequest:
        return
    raise AssertionError("a bad request was taken")


def main() -> None:
    runner = make_runner()
    runner.bench_func("decode add_peer", wire.decode_request, ADD_PEER_BODY)
    runner.bench_func("decode add_peer, orjson, no checks", orjson.loads, ADD_PEER_BODY)
    runner.bench_func("decode add_peer, json, no checks", json.loads, ADD_PEER_BODY)
    runner.bench_func("decode status", wire.decode_request, STATUS_BODY)
    runner.bench_func("refuse add_peer, naming the key", refuse)
    runner.bench_func("encode ok", wire.encode_response, 7, wire.Ok())
    runner.bench_func("encode ip", wire.encode_response, 7, wire.Ip("10.200.7.5"))
    runner.bench_func("encode event", wire.encode_event, EVENT)
    runner.bench_func("encode status of 10,000 peers", wire.encode_response, 7, STATUS)
    runner.bench_func("splice cached status of 10,000 peers", wire.encode_spliced, 7, STATUS_ANSWER)


if __name__ == "__main__":
    main()
