"""The client of gRPC: what a server of HTTP/2 may send, cut at every place.  The server's end is h2's."""

import contextlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto.grpc import WINDOW, Call, End, Event, Message, NotSpoken

OK = [(":status", "200"), ("content-type", "application/grpc")]
NO_LEADER = [("grpc-status", "14"), ("grpc-message", "etcdserver: no%20leader %e2%82%ac %zz")]


def prefixed(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


class Server:
    """It has read the call, and sends what a test says."""

    def __init__(self, call: Call) -> None:
        self.connection = H2Connection(H2Configuration(client_side=False))
        self.connection.initiate_connection()
        self.asked = self.connection.receive_data(call.begin("/s/M", b"request", (("token", "t"),)))

    def sent(self, *steps: Callable[[H2Connection], None]) -> bytes:
        for step in steps:
            step(self.connection)
        return self.connection.data_to_send()


def head(connection: H2Connection) -> None:
    connection.send_headers(1, OK)


def data(content: bytes) -> Callable[[H2Connection], None]:
    def send(connection: H2Connection) -> None:
        for start in range(0, len(content), 16384):
            connection.send_data(1, content[start : start + 16384])

    return send


def trailers(headers: list[tuple[str, str]]) -> Callable[[H2Connection], None]:
    return lambda connection: connection.send_headers(1, headers, end_stream=True)


def test_a_call_is_what_grpc_says_it_is() -> None:
    server = Server(Call("etcd:2379", "https"))
    (request,) = (each for each in server.asked if isinstance(each, RequestReceived))
    assert dict(request.headers) == {
        b":method": b"POST",
        b":path": b"/s/M",
        b":authority": b"etcd:2379",
        b":scheme": b"https",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        b"token": b"t",
    }
    assert [each.data for each in server.asked if isinstance(each, DataReceived)] == [prefixed(b"request")]
    assert not request.stream_ended
    assert server.connection.local_flow_control_window(1) >= WINDOW


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(0, 500), max_size=6), st.integers(0, 40))
def test_an_answer_is_the_same_wherever_it_is_cut(messages: list[bytes], cuts: list[int], part: int) -> None:
    call = Call("h:1", "http")
    content = b"".join(map(prefixed, messages))
    wire = Server(call).sent(head, data(content[:part]), data(content[part:]), trailers(NO_LEADER))
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    told = [event for start, end in pairwise(places) if start < end for event in call.receive(wire[start:end])]
    assert told == [*map(Message, messages), End(14, "etcdserver: no leader \N{EURO SIGN} %zz")]
    assert call.receive(b"more") == []


def test_an_answer_byte_by_byte() -> None:
    call = Call("h:1", "http")
    wire = Server(call).sent(head, data(prefixed(b"one") + prefixed(b"")), trailers([("grpc-status", "0")]))
    told = [event for byte in wire for event in call.receive(bytes((byte,)))]
    assert told == [Message(b"one"), Message(b""), End(0, "")]


def test_a_server_may_send_for_ever_since_it_hears_what_we_got() -> None:
    call = Call("h:1", "http")
    server, size = Server(call), 1 << 20
    wire = server.sent(head)
    for _ in range(3 * WINDOW // size):
        wire += server.sent(data(prefixed(bytes(size - 5))))
        assert call.receive(wire) == [Message(bytes(size - 5))]
        server.connection.receive_data(call.to_send())
        wire = b""


def test_a_ping_is_answered() -> None:
    call = Call("h:1", "http")
    server = Server(call)
    call.receive(server.sent())
    call.to_send()
    assert call.receive(server.sent(lambda connection: connection.ping(b"12345678"))) == []
    assert b"12345678" in call.to_send()


@pytest.mark.parametrize(
    "steps, end",
    [
        ((trailers([*OK, *NO_LEADER[:1]]),), End(14, "")),
        ((head, trailers([("grpc-status", "what")])), End(2, "")),
        ((head, trailers([("grpc-status", "9" * 5000)])), End(2, "")),
        ((head, trailers([("x", "y")])), End(2, "")),
        (
            (head, lambda connection: connection.end_stream(1)),
            End(2, "the server ended the call, and does not say why"),
        ),
        (
            (head, lambda connection: connection.reset_stream(1, ErrorCodes.INTERNAL_ERROR)),
            End(14, "the server broke off the call (INTERNAL_ERROR)"),
        ),
        (
            (head, lambda connection: connection.close_connection(ErrorCodes.NO_ERROR)),
            End(14, "the server closes the connection (NO_ERROR)"),
        ),
        (
            (head, lambda connection: connection.reset_stream(1, 0xABCDE)),
            End(14, "the server broke off the call (error 703710)"),
        ),
    ],
    ids=["at once", "no number", "a long one", "no status", "no trailers", "reset", "goodbye", "unknown reason"],
)
def test_an_end_of_every_kind(steps: tuple[Callable[[H2Connection], None], ...], end: End) -> None:
    call = Call("h:1", "http")
    assert call.receive(Server(call).sent(*steps)) == [end]


def test_what_stands_before_a_goodbye_counts_and_what_stands_behind_it_does_not() -> None:
    """A server in Go that is told to end says goodbye and sends a PING, often in one piece with the last messages."""
    call = Call("h:1", "http")
    server = Server(call)
    wire = server.sent(head, data(prefixed(b"last")), lambda connection: connection.ping(b"12345678"))
    ping = wire[-17:]
    wire += server.sent(lambda connection: connection.close_connection(ErrorCodes.NO_ERROR)) + ping
    assert call.receive(wire) == [Message(b"last"), End(14, "the server closes the connection (NO_ERROR)")]


def test_a_frame_of_more_than_was_allowed_is_not_waited_for() -> None:
    call = Call("h:1", "http")
    call.receive(Server(call).sent(head))
    with pytest.raises(ProtocolError, match="at most 16384 allowed"):
        call.receive(b"\xff\xff\xff\0\0\0\0\0\1")


def test_a_server_that_hangs_up_amid_the_call() -> None:
    call = Call("h:1", "http")
    call.receive(Server(call).sent(head))
    assert call.receive(b"") == [End(14, "the server closed the connection")]


def answers(*headers: tuple[str, str]) -> bytes:
    return Server(Call("h:1", "http")).sent(lambda connection: connection.send_headers(1, list(headers)))


@pytest.mark.parametrize(
    "wire, why",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no HTTP/2"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "no HTTP/2"),
        (b"SSH-2.0-x\r\n", "no HTTP/2"),
        (b"", "hangs up"),
        (answers((":status", "502"), ("content-type", "text/html")), "HTTP status 502, text/html"),
        (answers((":status", "200"), ("content-type", "application/json")), "200, application/json"),
        (answers((":status", "200")), "200, of no type"),
    ],
)
def test_who_speaks_no_grpc_is_found_out(wire: bytes, why: str) -> None:
    for cut in (0, 2, 5):
        call = Call("h:1", "http")
        call.begin("/s/M", b"")
        with pytest.raises(NotSpoken, match=why):
            for part in (wire[:cut], wire[cut:]) if wire else (b"",):
                if part or not wire:
                    call.receive(part)


def test_a_call_that_was_broken_off_takes_nothing_more() -> None:
    call = Call("h:1", "http")
    call.receive(Server(call).sent(head, lambda connection: connection.reset_stream(1, ErrorCodes.CANCEL)))
    with pytest.raises(ProtocolError, match="the server takes nothing more"):
        call.say(b"another")


def test_who_wants_an_older_http_gets_it() -> None:
    call = Call("h:1", "http")
    wire = Server(call).sent(lambda connection: connection.reset_stream(1, ErrorCodes.HTTP_1_1_REQUIRED))
    with pytest.raises(NotSpoken, match=r"wants HTTP/1\.1"):
        call.receive(wire)


@pytest.mark.parametrize(
    "content, why",
    [(b"\1\0\0\0\0", "compressed"), (b"\0\xff\xff\xff\xff", "more than")],
)
def test_what_we_did_not_ask_for_is_no_message(content: bytes, why: str) -> None:
    call = Call("h:1", "http")
    with pytest.raises(ProtocolError, match=why):
        call.receive(Server(call).sent(head, data(content)))


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 120), st.booleans())
def test_damage_is_a_protocol_error_and_nothing_else(noise: bytes, at: int, drop: bool) -> None:
    call = Call("h:1", "http")
    wire = Server(call).sent(head, data(prefixed(b"message")), trailers(NO_LEADER))
    told: list[Event] = []
    with contextlib.suppress(ProtocolError):
        told += call.receive(wire[:at] + noise + wire[at + (len(noise) if drop else 0) :])
        told += call.receive(b"")
    assert all(isinstance(each, Message | End) for each in told)
    call.to_send()
