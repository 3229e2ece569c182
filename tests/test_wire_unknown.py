"""Keys that the contract does not have: passed over, told of, and refused to who asks for that."""

import json
from typing import Any

import pytest
from golden_meanings import KEY_A
from hypothesis import given
from hypothesis import strategies as st
from test_wire import compact, load

from overlayd import wire
from overlayd.wire import values

REQUESTS = [frame["request"] for frame in load("requests").values()]
# Nothing that any object of the contract has.
NEW_KEYS = ["isolation_netwrok", "x", "", "é", "\u202e", "k" * 5000, "op ", "a.b", '"']
PEER: dict[str, Any] = {"public_key": KEY_A, "endpoint": "", "allowed_ips": "", "persistent_keepalive_secs": 0}


def frame(request: dict[str, Any], **more: object) -> bytes:
    return json.dumps({"frame": "request", "id": 9, "request": request, **more}).encode()


def objects(value: object) -> list[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        return [value, *(inner for one in value.values() for inner in objects(one))]
    return [inner for one in value for inner in objects(one)] if isinstance(value, list) else []


def told(body: bytes) -> list[str]:
    said: list[wire.UnknownKey] = []
    wire.decode_request(body, said.extend)
    return [f"{key.path} {key.nearest}".rstrip() for key in said]


@given(st.data())
def test_unknown_keys_change_nothing_and_each_is_told(data: st.DataObject) -> None:
    asked = data.draw(st.sampled_from(REQUESTS))
    plain = wire.decode_request(frame(asked))
    asked = json.loads(json.dumps(asked))
    places = objects(asked)
    keys = data.draw(st.lists(st.tuples(st.sampled_from(places), st.sampled_from(NEW_KEYS)), min_size=1, max_size=4))
    for place, key in keys:
        place[key] = data.draw(st.sampled_from([None, 1, "x", [1, {"op": "status"}], {"x": {"pid": -1}}, 1e300]))
    said: list[wire.UnknownKey] = []
    assert wire.decode_request(frame(asked), said.extend) == plain
    assert len(said) == len({(id(place), key) for place, key in keys})
    for key in said:
        assert len(str(key)) < 500
        assert str(key).isprintable()
    assert wire.decode_request_object(json.dumps(asked).encode()) == plain[1]
    with pytest.raises(wire.BadRequest, match="unknown key"):
        wire.decode_request(frame(asked, strict=True))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request["op"])
def test_strict_frames_of_the_contract_pass(request_: dict[str, Any]) -> None:
    assert wire.decode_request(frame(request_, strict=True)) == wire.decode_request(frame(request_))


ATTACH: dict[str, Any] = {
    "op": "attach_container",
    "handle": {"platform": "linux_pid", "pid": 7},
    "service": "web",
    "join_global": False,
}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (frame(ATTACH | {"isolation_netwrok": "green"}), ["request.isolation_netwrok isolation_network"]),
        (frame(ATTACH | {"ephemral": True, "zzz": 1}), ["request.ephemral ephemeral", "request.zzz"]),
        (frame(ATTACH | {"handle": {"platform": "linux_pid", "pid": 7, "pdi": 8}}), ["request.handle.pdi pid"]),
        (
            frame({"op": "remove_peer", "pubkey": KEY_A, "scope": {"scope": "service", "service": "s", "sevice": "t"}}),
            ["request.scope.sevice service"],
        ),
        (
            frame(
                {"op": "add_peer", **PEER}
                | {"candidates": [{"candidate_type": "host", "address": "a:1", "priority": 1, "prority": 2}]}
            ),
            ["request.candidates[0].prority priority"],
        ),
        (
            frame(
                {"op": "setup_global_overlay", "deployment": "d", "instance_id": "i", "cluster_cidr": "c", "wg_port": 1}
                | {"nat": {"stun_sevrers": [], "turn_servers": [{"adr": "x"}], "relay_server": {"port": 1}}}
            ),
            [
                "request.nat.stun_sevrers stun_servers",
                "request.nat.turn_servers[0].adr addr",
                "request.nat.relay_server.port",
            ],
        ),
        (frame({"op": "status"}, strcit=True), ["frame.strcit strict"]),
        (frame({"op": "status"}, trace="t"), ["frame.trace"]),
        (
            b' {"frame" :"request","id":1 ,"request": { "op":"status", "y" : [ 1 ] } , "x":1 } ',
            ["frame.x", "request.y"],
        ),
    ],
)
def test_the_key_and_the_nearest_known_one(body: bytes, expected: list[str]) -> None:
    assert told(body) == expected


def test_strict_names_the_key_and_the_nearest() -> None:
    with pytest.raises(wire.BadRequest) as caught:
        wire.decode_request(frame(ATTACH | {"isolation_netwrok": "green"}, strict=True))
    assert str(caught.value) == "request.isolation_netwrok: unknown key; did you mean isolation_network?"
    assert caught.value.id == 9


def test_what_is_wrong_with_a_known_key_is_told_beside_unknown_ones() -> None:
    with pytest.raises(wire.BadRequest, match=r"request\.wg_port: expected u16, got 70000"):
        wire.decode_request(
            frame(
                {"op": "setup_global_overlay", "deployment": "d", "instance_id": "i", "cluster_cidr": "c"}
                | {"wg_port": 70000, "new": 1}
            )
        )
    with pytest.raises(wire.BadRequest, match="strict: expected bool"):
        wire.decode_request(frame({"op": "status"}, strict=1))


def test_a_hundred_unknown_keys_are_told_shortly() -> None:
    assert len(told(frame({"op": "status"} | {f"k{n}": n for n in range(100)}))) == 8


def test_a_known_key_is_known_however_it_is_written_and_however_often_it_comes() -> None:
    again = b'{"frame":"request","id":1,"request":{"op":"unregister_dns","name":"a"%b}}'
    assert told(again % b',"n\\u0061me":"b"') == []
    body = again % (b',"n\\u0061me":"b"' * 500 + b',"x\\u0061":1')
    assert told(body) == ["request.xa"]
    assert wire.decode_request(body)[1] == wire.UnregisterDns("b")


def test_a_list_that_is_too_long_is_named_also_beside_unknown_keys() -> None:
    candidate = {"candidate_type": "host", "address": "a:1", "priority": 1, "x": 1}
    asked = {"op": "add_peer", **PEER, "candidates": [candidate] * (values.MOST_CANDIDATES + 1), "y": 1}
    with pytest.raises(wire.BadRequest, match=r"^request\.candidates: at most 64 items, got 65$"):
        wire.decode_request(frame(asked))


def test_a_client_takes_answers_of_a_newer_daemon() -> None:
    answer = {"result": "nat_status", "last_refresh": 1, "new": [1]}
    answer["candidates"] = [{"candidate_type": "host", "address": "a:1", "priority": 1, "foundation": "f"}]
    body = compact({"frame": "response", "id": 3, "response": answer, "more": {}})
    expected = wire.NatStatus(candidates=(wire.NatCandidate("host", "a:1", 1),), last_refresh=1)
    assert wire.decode_server_frame(body) == (3, expected)


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"op": "prune_orphan_bridges", "live_bridge_names": ["b"] * (values.MOST_BRIDGES + 1)}, "live_bridge_names"),
    ({"op": "unregister_dns", "name": "n" * (values.LONGEST_TEXT + 1)}, "name"),
    ({"op": "add_peer", **PEER, "allowed_ips": " " * (values.LONGEST_ALLOWED_IPS + 1)}, "allowed_ips"),
    (
        {"op": "add_peer", **PEER}
        | {"candidates": [{"candidate_type": "host", "address": "a:1", "priority": 1}] * (values.MOST_CANDIDATES + 1)},
        "candidates",
    ),
    ({"op": "mint_edge_peer", "name": "n", "ttl_secs": 1, "allow": ["a"] * (values.MOST_GRANTS + 1)}, "allow"),
    *(
        (
            {"op": "setup_global_overlay", "deployment": "d", "instance_id": "i", "cluster_cidr": "c", "wg_port": 1}
            | {"nat": {key: [one] * (values.MOST_SERVERS + 1)}},
            f"nat.{key}",
        )
        for key, one in (("stun_servers", "s"), ("turn_servers", {}))
    ),
]


@pytest.mark.parametrize(("asked", "key"), LIMITS, ids=[key for _, key in LIMITS])
def test_limits_are_named_by_key(asked: dict[str, Any], key: str) -> None:
    with pytest.raises(wire.BadRequest, match=rf"^request\.{key}: at most \d+ (items|characters), got \d+$"):
        wire.decode_request(frame(asked))
    with pytest.raises(wire.BadRequest, match=rf"^request\.{key}: at most \d+ (items|characters), got \d+$"):
        wire.decode_request(frame(asked | {"unknown": 1}))
