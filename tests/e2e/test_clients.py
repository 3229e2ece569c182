"""Many clients, and bad ones: nobody harms anybody else."""

import contextlib
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from lab import Connection
from lab.cluster import Member
from lab.frames import frame, request_frame

LARGEST_BODY = 8 * 1024 * 1024  # wire.md
MEBIBYTE = 1024 * 1024


def resident(member: Member) -> float:
    """The resident set (VmRSS) of the daemon's process in MiB; wireguard-go is a process of its own and not counted."""
    assert member.node.daemon is not None
    return float(psutil.Process(member.node.daemon.pid).memory_info().rss / MEBIBYTE)


def assert_served(member: Member) -> None:
    """Another client gets an answer."""
    with member.node.connect() as other:
        assert other.request("status")["public_key"] == member.public_key


def test_idle_memory(member: Member) -> None:
    container = member.lab.container()
    member.set_up_service("idle")
    member.attach(container, "idle")
    member.detach(container)
    assert resident(member) <= 60


def test_a_thousand_requests_in_one_write_are_answered_in_order(member: Member) -> None:
    with member.node.connect() as client:
        client.send(b"".join(request_frame(number, "status") for number in range(1000)))
        answers = [client.receive() for _ in range(1000)]
    assert [answer["id"] for answer in answers] == list(range(1000))
    assert {answer["response"]["result"] for answer in answers} == {"status"}
    assert len({answer["response"]["public_key"] for answer in answers}) == 1


def test_a_service_set_up_in_one_write_with_the_node_number_has_its_subnet_by_that_number(member: Member) -> None:
    numbered = [
        {"op": "set_local_wg_pubkey", "pubkey": member.public_key},
        {"op": "set_local_node_id", "node_id": 4711},
        {"op": "setup_service_overlay", "service": "numbered", "mode": "auto"},
    ]
    with member.node.connect() as client:
        client.request("set_local_node_id", node_id=1)
        client.send(b"".join(request_frame(number, **request) for number, request in enumerate(numbered)))
        assert [client.receive()["id"] for _ in numbered] == [0, 1, 2]
        at_once = client.request("allocate_ip", service="numbered", join_global=False)
        client.request("teardown_service_overlay", service="numbered")
        for request in numbered:
            client.request(**request)
        assert client.request("allocate_ip", service="numbered", join_global=False) == at_once


def test_two_hundred_clients_at_once(member: Member) -> None:
    meeting = threading.Barrier(200)

    def work(number: int) -> list[int]:
        with member.node.connect() as client:
            meeting.wait(30)
            client.send(b"".join(request_frame(number * 100 + turn, "status") for turn in range(20)))
            return [client.receive()["id"] for _ in range(20)]

    with ThreadPoolExecutor(200) as pool:
        results = list(pool.map(work, range(200)))
    assert results == [[number * 100 + turn for turn in range(20)] for number in range(200)]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(b"not json"), id="not-json"),
        pytest.param(frame(b"[1, 2]"), id="not-an-object"),
        pytest.param(frame(b"\xff\xfe{}"), id="not-utf8"),
        pytest.param(frame(b""), id="empty"),
        pytest.param(struct.pack("<I", LARGEST_BODY + 2), id="too-large"),
        # Its first byte, 1, might also begin an envelope: the fifth byte tells.
        pytest.param(struct.pack("<I", LARGEST_BODY + 1) + b"{", id="too-large-or-an-envelope"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: overlay\r\n\r\n", id="http"),
        pytest.param(bytes(range(255, 127, -1)) * 64, id="noise"),
    ],
)
def test_garbage_costs_its_sender_the_connection_and_nobody_else_anything(member: Member, data: bytes) -> None:
    with member.node.connect() as bystander, member.node.connect() as client:
        client.send(data)
        with pytest.raises(EOFError):
            client.receive()
        assert bystander.request("status")["public_key"] == member.public_key
    assert_served(member)


def test_a_bad_request_is_answered_and_the_connection_stays(member: Member) -> None:
    with member.node.connect() as client:
        client.send(request_frame(1, "no_such_op"))
        client.send(
            request_frame(2, "setup_global_overlay", deployment="d", instance_id="i", cluster_cidr="c", wg_port=70000)
        )
        client.send(request_frame(3, "status"))
        client.send(frame(b'{"frame": "response", "id": 4, "response": {"result": "ok"}}'))
        client.send(request_frame(2**64 - 1, "status"))
        unknown, range_error, status, last = (client.receive() for _ in range(4))
    assert (unknown["id"], unknown["response"]["result"]) == (1, "err")
    assert "no_such_op" in unknown["response"]["message"]
    assert range_error["response"]["message"] == "request.wg_port: expected u16, got 70000"
    assert status["response"]["result"] == "status"
    assert last["id"] == 2**64 - 1


def test_a_frame_cut_short_is_only_a_hang_up(member: Member) -> None:
    with member.node.connect() as client:
        client.send(request_frame(1, "status")[:-5])
    with member.node.connect() as client:
        client.send(b"\x10")
    assert_served(member)


def test_the_largest_body_is_still_read(member: Member) -> None:
    body = request_frame(5, "status")[4:]
    with member.node.connect() as client:
        client.send(frame(body + b" " * (LARGEST_BODY - len(body))))
        assert client.receive()["id"] == 5


def test_a_client_that_does_not_read_is_not_read_and_delays_nobody(member: Member) -> None:
    before = resident(member)
    with member.node.connect() as stalled:
        taken = fill(stalled)
        assert_served(member)
        assert resident(member) - before < 32, "answers pile up in memory for a client that does not read them"
        stalled.socket.settimeout(30)
        for number in range(taken):
            assert stalled.receive()["id"] == number


def fill(client: Connection) -> int:
    """Send requests without reading until the daemon takes no more; return how many it was sent in full."""
    client.socket.settimeout(1)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            data = memoryview(request_frame(sent, "status"))
            while data:
                data = data[client.socket.send(data) :]
            sent += 1
            assert sent < 1_000_000, "the daemon reads without end"
    return sent


def test_a_hundred_announced_giants_cost_nothing_before_they_arrive(member: Member) -> None:
    before = resident(member)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(member.node.connect())
            client.send(struct.pack("<I", LARGEST_BODY) + b"{")
        assert_served(member)
        assert resident(member) - before < 32, "memory is set aside for bytes that never came"
