"""The HTTP client: what a server may send, cut at every place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto.http import Body, Client, End, Event, Head, Lines

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def whole(events: list[Event]) -> tuple[int, bytes, bool]:
    """Status, body and whether the connection may be used again."""
    status = [each.status for each in events if isinstance(each, Head)]
    ends = [each.reusable for each in events if isinstance(each, End)]
    assert len(status) == len(ends) == 1
    return status[0], b"".join(each.data for each in events if isinstance(each, Body)), ends[0]


@pytest.mark.parametrize("answer, body", [(ANSWER, b"hello"), (CHUNKED, b"abcde")])
@given(cut=st.integers(0, 80))
def test_an_answer_is_the_same_wherever_it_is_cut(answer: bytes, body: bytes, cut: int) -> None:
    client = Client("h:1")
    client.post("/x", b"{}")
    parts = (answer[:cut], answer[cut:])
    assert whole([event for part in parts if part for event in client.receive(part)]) == (200, body, True)


def test_a_request_names_its_host_its_length_and_its_headers() -> None:
    sent = Client("etcd:2379").post("/v3/kv/range", b'{"a":1}', (("Authorization", "t"),))
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /v3/kv/range HTTP/1.1"
    lines = {line.lower() for line in head.split(b"\r\n")[1:]}
    assert {b"host: etcd:2379", b"content-length: 7", b"authorization: t"} <= lines
    assert body == b'{"a":1}'


def test_a_connection_serves_one_request_after_the_other() -> None:
    client = Client("h:1")
    for _ in range(3):
        client.post("/x", b"{}")
        assert whole(client.receive(ANSWER)) == (200, b"hello", True)


def test_a_server_that_wants_to_close_is_not_asked_again() -> None:
    client = Client("h:1")
    client.post("/x", b"{}")
    answer = ANSWER.replace(b"Content-Length", b"Connection: close\r\nContent-Length")
    assert whole(client.receive(answer)) == (200, b"hello", False)


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"x" * 70000, b"\0\1\2\r\n\r\n"])
def test_what_is_no_http_is_an_error_of_the_server(data: bytes) -> None:
    client = Client("h:1")
    client.post("/x", b"{}")
    with pytest.raises(ProtocolError):
        client.receive(data)


def test_an_answer_that_is_cut_short_is_an_error() -> None:
    client = Client("h:1")
    client.post("/x", b"{}")
    client.receive(ANSWER[:-1])
    with pytest.raises(ProtocolError):
        client.receive(b"")


@given(st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_are_the_same_however_they_come(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reader = Lines()
    assert [line for part in parts for line in reader.feed(part)] == [line for line in lines if line]


def test_a_line_without_an_end_is_bounded() -> None:
    reader = Lines(largest=10)
    reader.feed(b"123456")
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        reader.feed(b"789012")
