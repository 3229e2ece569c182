"""What a NatConfig comes to: the built-in values for what is left out, empty or 0, and servers with their ports."""

from typing import Any

import pytest

from overlayd.daemon.handlers.overlay import effective
from overlayd.errors import RequestError
from overlayd.wire import NatConfig, RelayServer, TurnServer

NUMBERS = {"hole_punch_timeout_secs": 15, "stun_refresh_interval_secs": 60, "max_candidate_pairs": 10}


@pytest.mark.parametrize(
    "nat",
    [NatConfig(), NatConfig(stun_servers=()), *(NatConfig(**{name: 0}) for name in NUMBERS)],  # type: ignore[arg-type]
    ids=str,
)
def test_empty_and_zero_are_the_built_in_configuration(nat: NatConfig) -> None:
    assert effective(nat) == NatConfig(
        enabled=True, stun_servers=("stun.l.google.com:19302", "stun1.l.google.com:19302"), **NUMBERS
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_written_counts(name: str) -> None:
    kept: dict[str, Any] = {name: 3}
    assert effective(NatConfig(**kept)) == NatConfig(**kept)


@pytest.mark.parametrize(("written", "asked"), [
    (("none",), ()),
    (("192.0.2.1",), ("192.0.2.1:3478",)),
    (("none:3478",), ("none:3478",)),
    (("a.example", "[2001:db8::1]:5"), ("a.example:3478", "[2001:db8::1]:5")),
])  # fmt: skip
def test_stun_servers(written: tuple[str, ...], asked: tuple[str, ...]) -> None:
    assert effective(NatConfig(stun_servers=written)).stun_servers == asked


@pytest.mark.parametrize("wrong", [("none", "a.example"), ("a.example", "none"), ("none", "none"), ("",), ("a b",)])
def test_what_is_no_list_of_stun_servers(wrong: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"request\.nat\.stun_servers"):
        effective(NatConfig(stun_servers=wrong))


def test_a_turn_server_without_an_address_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    nat = effective(NatConfig(turn_servers=(TurnServer(username="x"), TurnServer("192.0.2.1"))))
    assert nat.turn_servers == (TurnServer("192.0.2.1:3478"),)
    assert "nat.turn_servers[0] has no addr" in caplog.text


@pytest.mark.parametrize(("written", "kept"), [
    ("turn:192.0.2.1", "192.0.2.1:3478"),
    ("turn:a.example?transport=tcp", "turn:a.example:3478?transport=tcp"),
    ("turns:a.example", "turns:a.example:5349"),
    ("turns:[2001:db8::1]:443", "turns:[2001:db8::1]:443"),
])  # fmt: skip
def test_a_turn_server_that_is_a_uri(written: str, kept: str) -> None:
    assert effective(NatConfig(turn_servers=(TurnServer(written),))).turn_servers == (TurnServer(kept),)


@pytest.mark.parametrize("wrong", [
    TurnServer("turns:a.example?transport=udp"),
    TurnServer("turn:a b?transport=tcp"),
    TurnServer("turns:a.example:0"),
    TurnServer("turn:"),
    TurnServer("turn:a.example?transport=tcp", ca_file="/etc/ssl/ca.pem"),
    TurnServer("turns:a.example", ca_file="ca.pem"),
])  # fmt: skip
def test_what_is_no_turn_server(wrong: TurnServer) -> None:
    with pytest.raises(RequestError, match=r"request\.nat\.turn_servers\."):
        effective(NatConfig(turn_servers=(wrong,)))


def test_a_relay_has_the_usual_port_and_room() -> None:
    assert effective(NatConfig(relay_server=RelayServer())).relay_server == RelayServer(3478, "", 100)
    written = RelayServer(19302, "192.0.2.1", 5, "secret")
    assert effective(NatConfig(relay_server=written)).relay_server == written
