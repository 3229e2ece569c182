"""etcd's watch in protobuf tells what its gateway tells in JSON; protobuf's own library writes both."""

import contextlib
from typing import Any

import pytest
from etcd_messages import message
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import OverlaydError, ProtocolError
from overlayd.proto import etcd
from overlayd.proto.etcd import read_end, read_watch_line, read_watch_message
from overlayd.proto.store_answers import AuthFailed, Compacted, Denied, StoreError, Unavailable

WatchRequest, WatchResponse = message("WatchRequest"), message("WatchResponse")

numbers = st.integers(-(1 << 63), (1 << 63) - 1)
pairs = st.builds(
    dict,
    key=st.binary(max_size=9),
    value=st.binary(max_size=300),
    create_revision=numbers,
    mod_revision=numbers,
    version=numbers,
    lease=numbers,
)
events = st.builds(dict, type=st.sampled_from(["PUT", "DELETE"]), kv=pairs, prev_kv=st.none() | pairs)
headers = st.builds(dict, cluster_id=st.integers(0, (1 << 64) - 1), revision=numbers, raft_term=st.just(3))
responses = st.builds(
    WatchResponse,
    header=st.none() | headers,
    watch_id=numbers,
    created=st.booleans(),
    canceled=st.booleans(),
    compact_revision=st.just(0) | numbers,
    cancel_reason=st.sampled_from(["", "etcdserver: permission denied", "rpc error: etcdserver: invalid auth token"]),
    events=st.lists(events, max_size=4),
)


def outcome(read: Any, data: bytes) -> object:
    """What is read, or why not."""
    try:
        return read(data)
    except OverlaydError as error:
        return type(error), str(error)


@given(responses)
def test_a_message_says_what_the_line_of_the_gateway_says(response: Any) -> None:
    line = json_format.MessageToJson(response, preserving_proto_field_name=True)
    assert outcome(read_watch_message, response.SerializeToString()) == outcome(
        read_watch_line, f'{{"result":{line}}}'.encode()
    )


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, (1 << 63) - 1))
def test_the_request_is_the_one_of_the_gateway(prefix: str, revision: int) -> None:
    asked = WatchRequest.FromString(etcd.watch_message(prefix, revision)).create_request
    assert (asked.key, asked.start_revision) == (prefix.encode(), revision)
    assert asked.range_end == etcd.prefix_end(prefix.encode())


@given(responses)
def test_a_message_says_which_watch_it_is_of(response: Any) -> None:
    assert etcd.read_watch_number(response.SerializeToString()) == (response.watch_id, response.created)


@given(st.integers(0, (1 << 63) - 1))
def test_a_watch_is_ended_by_its_number(number: int) -> None:
    asked = WatchRequest.FromString(etcd.unwatch_message(number))
    assert asked.HasField("cancel_request")
    assert asked.cancel_request.watch_id == number


@given(st.binary())
def test_damage_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError, StoreError):
        read_watch_message(data)
    with contextlib.suppress(ProtocolError):
        etcd.read_watch_number(data)


@given(responses, st.data())
def test_a_message_that_is_cut_or_spoilt_is_an_error_or_another_message(response: Any, data: st.DataObject) -> None:
    whole = response.SerializeToString()
    at = data.draw(st.integers(0, len(whole)))
    for spoilt in (whole[:at], whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + 1 :]):
        with contextlib.suppress(ProtocolError, StoreError):
            read_watch_message(spoilt)


@pytest.mark.parametrize(
    "data", [b"\x0a\x02\x18", b"\x08\x01", b"\x5a\x02\x10\x01", b"\x2a\x00", b"\x18", b"\x5a\x04\x12\x02\x08\x01"]
)
def test_what_has_another_type_or_ends_early_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_watch_message(data)


@pytest.mark.parametrize(
    "status, reason, error",
    [
        (14, "etcdserver: no leader", Unavailable),
        (16, "etcdserver: invalid auth token", AuthFailed),
        (7, "etcdserver: permission denied", Denied),
        (11, "etcdserver: mvcc: required revision has been compacted", Compacted),
        (2, "", Unavailable),
        (0, "", Unavailable),
    ],
)
def test_the_end_of_a_call_is_classed(status: int, reason: str, error: type[Exception]) -> None:
    failure = read_end(status, reason)
    assert type(failure) is error
    assert str(failure)
