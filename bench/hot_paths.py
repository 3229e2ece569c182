"""The hot paths that need no kernel, a benchmark each, to be compared with an earlier record of this machine.

    make bench-record       # before a change, or at a release
    make bench-compare      # after it: fails when a median has grown by a third

Records are kept in .benchmarks, by machine and interpreter; `python bench/hot_paths.py` only shows the times.  What a
path costs beside another program is what the bench_* scripts tell.
"""

import base64
import random
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parent)]

from model.decisions import FACTS, KEYS, attach, new_state, serve, set_up  # noqa: E402
from smoke import SMOKE  # noqa: E402

from overlayd import wire  # noqa: E402
from overlayd._fast import addresses  # noqa: E402
from overlayd._fast.allowedips import AllowedIPs  # noqa: E402
from overlayd._fast.bitmap import Bitmap  # noqa: E402
from overlayd._fast.dnsquery import wire_name  # noqa: E402
from overlayd._fast.frame import Inbox, frame  # noqa: E402
from overlayd._fast.nametable import NameTable  # noqa: E402
from overlayd.linux.rtnetlink import parse_link  # noqa: E402
from overlayd.model import attachments, peers  # noqa: E402
from overlayd.model.attachments import AttachSpec  # noqa: E402
from overlayd.model.layout import layout  # noqa: E402
from overlayd.model.objects import GLOBAL, Netns  # noqa: E402
from overlayd.model.plan import plan  # noqa: E402
from overlayd.model.state import Draft, State  # noqa: E402
from overlayd.proto import envelope, identity  # noqa: E402
from overlayd.proto.mux import EndpointMux, json_wire  # noqa: E402
from overlayd.proto.netlink import attribute, attributes, message, messages, nested, text, u32  # noqa: E402

Timed = Callable[..., Any]  # pytest-benchmark's fixture

PEERS = 1_000
CONTAINERS = 300
PREFIXES = 100_000
KEY = base64.b64encode(KEYS[0]).decode()
ADD_PEER = {
    "op": "add_peer",
    "public_key": KEY,
    "endpoint": "192.0.2.1:51820",
    "allowed_ips": "10.200.7.0/24,10.200.8.0/24",
    "persistent_keepalive_secs": 25,
}


def request(id: int, request: dict[str, Any]) -> bytes:
    return frame(msgspec.json.encode({"frame": "request", "id": id, "request": request}))


@pytest.fixture(scope="module")
def busy() -> State:
    """A node with containers and peers."""
    state = new_state()
    set_up(state, slice=ip_network("10.200.16.0/20"))
    serve(state, "web", subnet=ip_network("10.200.32.0/20"))
    for pid in range(1, CONTAINERS + 1):
        attach(state, pid)
    for number in range(PEERS):
        state.apply(_add_peer(state, number))
    return state


def _add_peer(state: State, number: int) -> Any:
    draft = Draft(state)
    network = ip_network((int(ip_address("10.200.64.0")) + 4 * number, 30))
    peers.add_peer(
        draft,
        GLOBAL,
        (number + 1).to_bytes(32, "big"),
        own_key=bytes(32),
        endpoint="192.0.2.1:51820",
        keepalive=0,
        allowed_ips=(network,),
        candidates=(),
    )
    return draft.rows


def test_frames_of_one_read(benchmark: Timed) -> None:
    """64 requests that came together become bodies."""
    inbox, data = Inbox(), b"".join(request(id, {"op": "status"}) for id in range(64))

    def split() -> list[memoryview]:
        inbox.feed(data)
        return inbox.take(64)

    assert len(benchmark(split)) == 64


def test_decode_add_peer(benchmark: Timed) -> None:
    body = request(7, ADD_PEER)[4:]
    assert benchmark(wire.decode_request, body)[0] == 7


def test_encode_a_status_of_a_thousand_peers(benchmark: Timed) -> None:
    one = wire.StatusPeer(KEY, "192.0.2.1:51820", "10.200.7.0/24", 1_700_000_000)
    status = wire.Status(peer_count=PEERS, service_count=1, peers=(one,) * PEERS)
    assert len(benchmark(wire.encode_response_object, status)) > PEERS * len(KEY)


def test_answer_an_identity_probe(benchmark: Timed) -> None:
    process = identity.DaemonProcess(
        pid=1,
        exe_path="/usr/bin/python3",
        namespace_id="overlayd",
        path="/run/overlayd/overlayd.sock",
        started_at_unix_ms=1,
        boot_id="b",
        exe_hash=bytes(32),
    )
    told = identity.encode(process)
    mux = EndpointMux(
        legacy=json_wire, answer_probe=lambda asked: identity.answer_probe(asked, told), served=frozenset({0xF0DE})
    )
    probe = memoryview(envelope.encode(identity.probe_request(bytes(32))))
    assert benchmark(mux.poll, probe).consumed == len(probe)


def test_allocate_a_subnet(benchmark: Timed) -> None:
    """All addresses of a /20."""

    def fill() -> int:
        bitmap = Bitmap(4096)
        while bitmap.allocate() >= 0:
            pass
        return bitmap.count

    assert benchmark(fill) == 4096


def test_longest_prefix(benchmark: Timed) -> None:
    """A hundred addresses among a hundred thousand allowed IPs."""
    rng = random.Random(1)
    table = AllowedIPs[int]()
    for number in range(PREFIXES):
        table.insert(rng.randbytes(4), rng.randint(16, 28), number)
    addresses = [rng.randbytes(4) for _ in range(100)]
    benchmark(lambda: [table.lookup(address) for address in addresses])


def test_answer_a_dns_query(benchmark: Timed) -> None:
    """A hundred queries, from bytes to bytes: names that are there, and names that are not."""
    table = NameTable()
    table.add_zone(wire_name("overlay.local"))
    for number in range(1000):
        table.set_addresses(wire_name(f"svc{number}.overlay.local"), (number.to_bytes(4, "big"),))
    head = bytes([0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    queries = [head + wire_name(f"svc{number}.overlay.local") + b"\0\1\0\1" for number in range(950, 1050)]
    assert len(benchmark(lambda: [table.respond(query, False) for query in queries])) == 100


def test_read_links(benchmark: Timed) -> None:
    """A hundred messages about a veth, as long as the kernel's."""
    settings = [nested(family, attribute(1, bytes(size))) for family, size in ((2, 132), (10, 240))]
    info = nested(18, text(1, "veth"), text(4, "bridge"), nested(5, *(attribute(at, b"\1") for at in range(1, 45))))
    named = [text(3, "veth-1234-s"), attribute(1, bytes(6)), *(u32(at, at) for at in (4, 5, 10, 27, *range(60, 85)))]
    body = bytes(16) + b"".join([*named, info, nested(26, *settings)])
    assert len(benchmark(lambda: [parse_link(memoryview(body)) for _ in range(100)])) == 100


def test_write_and_read_netlink(benchmark: Timed) -> None:
    """A hundred messages of ten attributes."""

    def there_and_back() -> int:
        fields = [u32(number, number) for number in range(9)]
        data = b"".join(message(16, 0, number, b"".join([*fields, text(9, "veth-1234-s")])) for number in range(100))
        return sum(len(attributes(each.body)) for each in messages(data))

    assert benchmark(there_and_back) == 1000


def test_read_cidrs(benchmark: Timed) -> None:
    """A hundred, half of them IPv6."""
    texts = [f"10.201.{number}.7/32" for number in range(50)] + [f"fd00:{number:x}::/64" for number in range(50)]
    assert None not in benchmark(lambda: [addresses.network(text) for text in texts])


def test_decide_and_plan_an_attach(benchmark: Timed, busy: State) -> None:
    """What one container more costs before the disk and the kernel hear of it: nothing of it may grow with the rest."""
    spec, namespace = AttachSpec(service="web"), Netns(pid=9999, started=1, inode=9999)

    def decide() -> int:
        draft = Draft(busy)
        attachments.attach_container(draft, spec, namespace, "boot")
        have = layout(busy, FACTS, draft.rows.keys())
        inverse = busy.apply(draft.rows)
        steps = plan(have, layout(busy, FACTS, draft.rows.keys()))
        busy.apply(inverse)
        return len(steps)

    assert benchmark(decide) > 0


def test_decide_and_plan_a_peer(benchmark: Timed, busy: State) -> None:
    def decide() -> int:
        rows = _add_peer(busy, PEERS)
        have = layout(busy, FACTS, rows.keys())
        inverse = busy.apply(rows)
        steps = plan(have, layout(busy, FACTS, rows.keys()))
        busy.apply(inverse)
        return len(steps)

    assert benchmark(decide) == 1


def test_plan_a_start(benchmark: Timed, busy: State) -> None:
    """All objects of the node, against a kernel that has none."""
    assert len(benchmark(lambda: plan({}, layout(busy, FACTS)))) > PEERS + CONTAINERS


if __name__ == "__main__":
    once = ["--benchmark-disable"] if SMOKE else ["--benchmark-enable", "--benchmark-columns=median,iqr,rounds"]
    sys.exit(pytest.main([__file__, *once, *sys.argv[1:]]))
