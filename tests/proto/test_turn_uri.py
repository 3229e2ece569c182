"""How TURN servers may be written."""

import pytest

from overlayd.proto.turn_uri import Server, read


@pytest.mark.parametrize(("written", "meant", "port"), [
    ("turn.example:3478", Server("turn.example:3478"), 3478),
    ("turn.example", Server("turn.example"), 3478),
    ("[2001:db8::1]:5", Server("[2001:db8::1]:5"), 3478),
    ("turn:turn.example", Server("turn.example"), 3478),
    ("turn:turn.example:5?transport=udp", Server("turn.example:5"), 3478),
    ("turn:turn.example?transport=tcp", Server("turn.example", "tcp"), 3478),
    ("TURN:turn.example?Transport=TCP", Server("turn.example", "tcp"), 3478),
    ("turns:turn.example", Server("turn.example", "tls"), 5349),
    ("turns:[2001:db8::1]:443?transport=tcp", Server("[2001:db8::1]:443", "tls"), 5349),
    ("turn:3478", Server("turn:3478"), 3478),  # a host of that name
    ("turns:443", Server("turns:443"), 3478),
])  # fmt: skip
def test_written_and_meant(written: str, meant: Server, port: int) -> None:
    assert read(written) == meant
    assert meant.default_port == port
    assert read(str(meant)) == meant


@pytest.mark.parametrize("wrong", [
    "turn://turn.example",
    "turns:turn.example?transport=udp",
    "turn:turn.example?transport=sctp",
    "turn:turn.example?tcp",
    "turn:turn.example?",
])  # fmt: skip
def test_what_is_none(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"TURN|DTLS"):
        read(wrong)
