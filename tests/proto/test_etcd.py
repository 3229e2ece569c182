"""etcd's gateway: requests as it wants them, answers as it gave them (recorded of 3.4.23)."""

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import etcd
from overlayd.proto.store_answers import (
    Ahead,
    AuthFailed,
    Change,
    Changes,
    Compacted,
    Denied,
    Entry,
    LeaseGone,
    NoSpace,
    Page,
    StoreError,
    TooLarge,
    Unavailable,
    Watching,
)

HEADER = '"header":{"cluster_id":"324952591200643719","member_id":"3319814642761637952","revision":"7","raft_term":"2"}'
PAIR = '{"key":"L28vYy9h","create_revision":"2","mod_revision":"5","version":"1","value":"L28vYy9h"}'
ENTRY = Entry("/o/c/a", b"/o/c/a", 2, 5)


def sent(call: etcd.Call) -> dict[str, Any]:
    asked: dict[str, Any] = json.loads(call.body)
    return asked


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_page_of_keys() -> None:
    call = etcd.range("/o/", prefix=True, after="/o/a", limit=5, revision=9, any_member=True)
    assert call.path == "/v3/kv/range"
    assert sent(call) == {
        "key": b64(b"/o/a\0"),
        "range_end": b64(b"/o0"),
        "limit": 5,
        "revision": 9,
        "serializable": True,
    }
    answer = f'{{{HEADER},"kvs":[{PAIR}],"more":true,"count":"9"}}'
    assert etcd.read_page(answer.encode()) == Page((ENTRY,), 7, True)
    assert etcd.read_page(f"{{{HEADER}}}".encode()) == Page((), 7, False)


def test_a_transaction() -> None:
    call = etcd.transaction(
        [etcd.Same("a", 0), etcd.Same("b", 4)], [etcd.Delete("c"), etcd.Delete("d", True), etcd.Put("a", b"v", 3)]
    )
    asked = sent(call)
    assert [each["mod_revision"] for each in asked["compare"]] == [0, 4]
    assert asked["success"] == [
        {"request_delete_range": {"key": b64(b"c")}},
        {"request_delete_range": {"key": b64(b"d"), "range_end": b64(b"e")}},
        {"request_put": {"key": b64(b"a"), "value": b64(b"v"), "lease": 3}},
    ]
    assert [each["request_range"]["key"] for each in asked["failure"]] == [b64(b"a"), b64(b"b")]
    done = f'{{{HEADER},"succeeded":true,"responses":[{{"response_put":{{}}}}]}}'
    assert etcd.read_outcome(done.encode()) == etcd.Outcome(True, 7)
    refused = (
        f'{{{HEADER},"responses":[{{"response_range":{{"kvs":[{PAIR}],"count":"1"}}}},{{"response_range":{{}}}}]}}'
    )
    assert etcd.read_outcome(refused.encode()) == etcd.Outcome(False, 7, (ENTRY,))


def test_leases() -> None:
    assert sent(etcd.lease_grant(60)) == {"TTL": 60}
    assert etcd.read_lease(f'{{{HEADER},"ID":"2324035680236821512","TTL":"60"}}'.encode()) == (2324035680236821512, 60)
    assert etcd.read_lease(f'{{"result":{{{HEADER},"ID":"12","TTL":"60"}}}}'.encode()) == (12, 60)
    with pytest.raises(LeaseGone):
        etcd.read_lease(f'{{"result":{{{HEADER},"ID":"123"}}}}'.encode())
    with pytest.raises(LeaseGone):
        etcd.read_lease(f'{{{HEADER},"ID":"123","TTL":"-1"}}'.encode())


@pytest.mark.parametrize(
    "call, path",
    [(etcd.lease_keepalive, "keepalive"), (etcd.lease_revoke, "revoke"), (etcd.lease_time_to_live, "timetolive")],
)
def test_a_lease_is_named_by_its_number(call: Callable[[int], etcd.Call], path: str) -> None:
    assert call(12).path == f"/v3/lease/{path}"
    assert sent(call(12)) == {"ID": 12}


def test_a_token_is_asked_for_and_found() -> None:
    assert sent(etcd.authenticate("alpha", "secret")) == {"name": "alpha", "password": "secret"}
    assert etcd.read_token(f'{{{HEADER},"token":"t.9"}}'.encode()) == "t.9"
    with pytest.raises(ProtocolError, match="no token"):
        etcd.read_token(f"{{{HEADER}}}".encode())


def test_the_lines_of_a_watch() -> None:
    assert sent(etcd.watch("/o/", 8))["create_request"]["start_revision"] == 8
    assert etcd.read_watch_line(f'{{"result":{{{HEADER},"created":true}}}}'.encode()) == [Watching(7)]
    removed = '{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"6"}}'
    line = f'{{"result":{{{HEADER},"events":[{{"kv":{PAIR}}},{removed}]}}}}'
    assert etcd.read_watch_line(line.encode()) == [Changes((Change("/o/c/a", ENTRY, 5), Change("a", None, 6)), 6)]
    assert etcd.read_watch_line(f'{{"result":{{{HEADER}}}}}'.encode()) == [Changes((), 7)]  # progress


@pytest.mark.parametrize(
    "line, error",
    [
        (f'{{"result":{{{HEADER},"canceled":true,"compact_revision":"2"}}}}', Compacted),
        (
            f'{{"result":{{{HEADER},"created":true,"canceled":true,"cancel_reason":"invalid auth token"}}}}',
            AuthFailed,
        ),
        (f'{{"result":{{{HEADER},"canceled":true}}}}', Unavailable),
        ('{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"x"}}', Unavailable),
        ('{"error":{"code":7,"message":"etcdserver: permission denied"}}', Denied),
        ("{}", ProtocolError),
        ("[1]", ProtocolError),
        ("no json", ProtocolError),
    ],
)
def test_a_stream_that_has_ended_says_so(line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        etcd.read_watch_line(line.encode())


@pytest.mark.parametrize(
    "status, body, error",
    [
        (404, '{"error":"etcdserver: requested lease not found","code":5}', Unavailable),
        (404, '{"message":"etcdserver: requested lease not found","code":5}', LeaseGone),
        (429, '{"message":"etcdserver: mvcc: database space exceeded","code":8}', NoSpace),
        (400, '{"message":"etcdserver: request is too large","code":3}', TooLarge),
        (400, '{"message":"etcdserver: mvcc: required revision has been compacted","code":11}', Compacted),
        (400, '{"message":"etcdserver: mvcc: required revision is a future revision","code":11}', Ahead),
        (401, '{"message":"etcdserver: invalid auth token","code":16}', AuthFailed),
        (400, '{"message":"etcdserver: authentication failed, invalid user ID or password","code":3}', AuthFailed),
        (400, '{"message":"etcdserver: user name is empty","code":3}', AuthFailed),
        (403, '{"message":"etcdserver: permission denied","code":7}', Denied),
        (503, '{"message":"etcdserver: leader changed","code":14}', Unavailable),
        (502, "<html>Bad Gateway</html>", Unavailable),
        (502, "", Unavailable),
    ],
)
def test_what_is_refused_is_classed(status: int, body: str, error: type[Exception]) -> None:
    failure = etcd.read_failure(status, body.encode())
    assert type(failure) is error
    assert str(failure)


def test_a_page_for_people_is_told_in_one_line_without_its_marks() -> None:
    page = b"<!DOCTYPE html>\n<html><style>p { x }</style>\n<title>Bad  Gateway</title></html>" + b"x" * 5000
    said = str(etcd.read_failure(502, page))
    assert said.startswith("no answer of etcd, HTTP status 502: is this its port for clients? Bad Gateway xxx")
    assert len(said) < 200


def test_only_a_token_that_expired_is_worth_another_try() -> None:
    def failed(text: str, code: int) -> AuthFailed:
        found = etcd.read_failure(401, json.dumps({"message": text, "code": code}).encode())
        assert isinstance(found, AuthFailed)
        return found

    assert failed("etcdserver: invalid auth token", 16).expired
    assert not failed("etcdserver: authentication failed, invalid user ID or password", 3).expired


@given(st.binary())
def test_damage_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    for read in (etcd.read_page, etcd.read_outcome, etcd.read_lease, etcd.read_token, etcd.read_watch_line):
        with contextlib.suppress(ProtocolError, StoreError):
            read(data)
    assert isinstance(etcd.read_failure(500, data), StoreError)


@given(st.binary(max_size=6), st.binary(max_size=9))
def test_the_end_of_a_prefix_is_behind_all_that_begin_so_and_before_all_others(prefix: bytes, key: bytes) -> None:
    end = etcd.prefix_end(prefix)
    inside = prefix <= key and (end == b"\0" or key < end)
    if prefix:
        assert inside == (key.startswith(prefix) or (end == b"\0" and key >= prefix))
