"""What overlayctl lists, as it looks at 80 and 200 columns; the golden files are renewed by OVERLAYD_GOLDEN=write."""

import json
import os
import random
from pathlib import Path

import pytest
from canned import KEY, Canned
from hypothesis import given
from hypothesis import strategies as st

from overlayd import cli, wire
from overlayd.cli import columns, lists, top, wgshow
from overlayd.cli.columns import Column, Paper, Row, table

GOLDEN = Path(__file__).parents[1] / "golden" / "terminal"
NOW = 1767225600
KEYS = [KEY] + [f"{letter * 42}A=" for letter in "BCDEFG"]

SERVICES = tuple(
    wire.ListedService(
        service=name,
        mode=mode,  # type: ignore[arg-type]
        subnet=f"10.200.{number}.64/26",
        gateway=f"10.200.{number}.65",
        bridge=f"zl-prod-i-{name}-b"[:15],
        device="zl-prod-i-db-d" if mode == "dedicated" else None,
        members=number % 7,
        held=number % 9,
        since_unix=NOW - 5000 * number or None,
    )
    for number, (name, mode) in enumerate(
        [("web", "shared"), ("db", "dedicated"), ("payments-processor-of-the-whole-company-and-more", "isolated")], 1
    )
)
CONTAINERS = (
    wire.ListedContainer(
        handle="pid:4194303",
        service="payments-processor",
        ip="10.200.40.66",
        global_ip="10.200.7.3",
        isolation_network="tenant-4711",
        link="veth-4194303-s",
        mac="02:6f:0a:c8:28:42",
        names=("payments", "payments.svc.example.org"),
        since_unix=NOW - 90,
    ),
    wire.ListedContainer(handle="guest:vm-1", service="db", ip="10.200.9.10"),
    wire.ListedContainer(handle="host:agent", service="db", ip="10.200.9.9", since_unix=NOW - 200_000),
)
POOLS = (
    wire.ListedPool(subnet="10.200.7.0/24", size=253, held=3),
    wire.ListedPool(service="web", subnet="10.200.40.64/26", size=61, held=61),
    wire.ListedPool(service="db", subnet="10.200.9.0/26", size=61, held=56),
)
ADDRESSES = (
    wire.ListedAddress(ip="10.200.7.10", holder="allocate_ip"),
    wire.ListedAddress(ip="10.200.7.9", holder="edge:laptop"),
    wire.ListedAddress(ip="10.200.9.2", service="db", holder="pid:71"),
)
NETWORKS = (
    wire.ListedNetwork(network="tenant-4711", members=2, services=("db", "web")),
    wire.ListedNetwork(network="blue", members=1, services=("web",)),
)
PEERS = tuple(
    wire.ListedPeer(
        name=name,
        public_key=KEYS[number],
        service=service,
        kind="guest" if name == "vm-1" else "node",
        endpoint=f"192.0.2.{number}:51820" if number else None,
        allowed_ips=tuple(f"10.200.{number * 9 + each}.0/24" for each in range(number)),
        path=path,  # type: ignore[arg-type]
        health=health,  # type: ignore[arg-type]
        last_handshake_unix_secs=shaken,
        rx_bytes=1000**number,
        tx_bytes=1024**number,
        persistent_keepalive_secs=25 * (number % 2),
    )
    for number, (name, service, path, health, shaken) in enumerate(
        [
            (None, None, "unreachable", None, 0),
            ("node-7.eu-central-1.example.org", None, "direct", None, NOW - 40),
            ("node-8", None, "hole-punched", "silent", NOW - 4000),
            (None, "db", None, "idle", NOW - 400),
            ("node-1", None, "relayed", None, NOW - 1),
            ("vm-1", None, "direct", None, 0),
        ]
    )
)


def answers(request: wire.Request) -> wire.Response:
    if isinstance(request, wire.ListThings):
        rows = {
            "services": SERVICES,
            "containers": CONTAINERS,
            "pools": POOLS,
            "addresses": ADDRESSES,
            "networks": NETWORKS,
            "peers": PEERS,
        }
        return wire.Listing(**{request.what: rows[request.what]})
    if isinstance(request, wire.ListDns):
        names = (wire.DnsName("web", ("10.200.40.66", "fd00::5")), wire.DnsName("db", ("10.200.9.2",)))
        upstreams = (wire.DnsUpstream("192.0.2.1:53", "ok"),)
        return wire.Dns(
            zone="overlay.local", names=names, upstreams=upstreams, cached=1, cached_bytes=90, hits=3, misses=1
        )
    shown = tuple(
        wire.StatusPeer(each.public_key, each.endpoint or "", ",".join(each.allowed_ips), 0, None, each.name)
        for each in PEERS
        if each.service is None
    )
    return wire.Status(
        interface="zl-prod-i-g", public_key=KEY, peer_count=len(shown), service_count=3, peers=shown, wg_port=51820
    )


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("command", ["services", "containers", "ip", "networks", "peers", "dns", "show", "show dump"])
def test_as_it_looked(
    command: str, width: int, canned: Canned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canned.answer = answers
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("time.time", lambda: float(NOW))
    assert cli.run(command.split()) == 0
    out = capsys.readouterr().out
    if not command.startswith("show"):
        assert max(map(len, out.splitlines())) <= width
    golden = GOLDEN / f"{command.replace(' ', '-')}-{width}.txt"
    if os.environ.get("OVERLAYD_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(out)
    assert out == golden.read_text()


def test_what_is_amiss_comes_first_and_the_filter_takes_every_text() -> None:
    kind = lists.peers(NOW, wide=False)
    shown = [lists.state(each) for each in lists.matching(kind, PEERS, ())]
    assert set(shown[:2]) == {"unreachable", "silent"}
    assert not {"unreachable", "silent"} & set(shown[2:])
    (one,) = lists.matching(kind, PEERS, ("NODE-", "relayed"))
    assert one.name == "node-1"
    assert lists.text(kind, PEERS, ("nothing of this",), columns.PLAIN).endswith("; 0 shown")


@pytest.mark.parametrize("id", ["default-web", "9f" * 32], ids=["ctr", "podman"])
def test_the_handle_of_a_container_is_never_cut(id: str) -> None:
    """The next command takes it; a terminal wraps a line that is too long."""
    handle = f"netns:{id}/eth0"
    one = wire.ListedContainer(
        handle=handle, service="overlay", ip="10.200.1.15", names=("web.shop",), link="vo-0123456789ab"
    )
    shown = lists.text(lists.containers(NOW), [one, *CONTAINERS], (), Paper(80))
    assert f"{handle}  overlay" in shown
    held = wire.ListedAddress(ip="10.200.1.15", service="overlay", holder=handle)
    assert f"overlay  {handle}" in lists.text(lists.addresses(), [held], (), Paper(80))


def test_lists_as_json(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = answers
    for command, count in (("services", 3), ("containers", 3), ("networks", 2), ("peers", 5)):
        assert cli.run([command, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == count
    assert cli.run(["ip", "--json"]) == 0
    assert {key: len(rows) for key, rows in json.loads(capsys.readouterr().out).items()} == {"pools": 3, "addresses": 3}
    assert cli.run(["peers", "--json", "--filter", "node-8"]) == 0
    (peer,) = json.loads(capsys.readouterr().out)
    assert peer["name"] == "node-8"
    assert cli.run(["containers", "--json", "--filter", "vm-1"]) == 0
    assert [each["handle"] for each in json.loads(capsys.readouterr().out)] == ["guest:vm-1"]


def _many() -> tuple[list[wire.ListedPeer], list[wire.ListedService]]:
    """500 peers, of which some are not well, and 200 services, with names of every length."""
    chance = random.Random(1)
    peers = [
        wire.ListedPeer(
            name=f"node-{number}.{'x' * chance.randrange(40)}",
            public_key=KEY,
            kind="node",
            endpoint=f"[2001:db8::{number:x}]:51820",
            allowed_ips=tuple(f"10.{each}.{number % 256}.0/24" for each in range(chance.randrange(1, 9))),
            path=chance.choice(["direct", "direct", "hole-punched", "relayed"]),  # type: ignore[arg-type]
            health=chance.choice([*[None] * 40, "idle", "silent"]),  # type: ignore[arg-type]
            last_handshake_unix_secs=NOW - chance.randrange(9999),
            rx_bytes=chance.randrange(2**50),
            tx_bytes=chance.randrange(2**50),
            persistent_keepalive_secs=0,
        )
        for number in range(500)
    ]
    services = [
        wire.ListedService(
            service=f"service-{number}{'-of-the-company' * chance.randrange(5)}",
            mode=chance.choice(["shared", "shared", "isolated", "dedicated"]),  # type: ignore[arg-type]
            subnet=f"10.200.{number}.64/26",
            gateway=f"10.200.{number}.65",
            bridge=f"zl-{number:09x}-b",
            members=chance.randrange(62),
            held=chance.randrange(62),
            since_unix=NOW - chance.randrange(10**7),
        )
        for number in range(200)
    ]
    return peers, services


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("kind", ["peers", "services"])
def test_five_hundred_peers_and_two_hundred_services(kind: str, width: int) -> None:
    """The golden file has what a person sees first, and the last lines."""
    peers, services = _many()
    if kind == "peers":
        lines = lists.text(lists.peers(NOW, wide=False), peers, (), Paper(width)).splitlines()
        assert len(lines) == 503
    else:
        lines = lists.text(lists.services(NOW), services, (), Paper(width)).splitlines()
        assert len(lines) == 203
    assert max(map(len, lines)) <= width
    shown = "\n".join([*lines[:24], "...", *lines[-3:], ""])
    golden = GOLDEN / f"many-{kind}-{width}.txt"
    if os.environ.get("OVERLAYD_GOLDEN") == "write":
        golden.write_text(shown)
    assert shown == golden.read_text()


def test_colours_on_a_terminal_only() -> None:
    rows = [Row(("a", "silent"), "bad"), Row(("b", "answers"))]
    assert "\x1b" not in table(("PEER", "STATE"), rows)
    shown = table(("PEER", "STATE"), rows, Paper(80, colours=True)).splitlines()
    assert shown == ["\x1b[1mPEER  STATE\x1b[0m", "\x1b[31ma     silent\x1b[0m", "b     answers"]


@given(
    st.lists(st.lists(st.text("ab.:/", min_size=1, max_size=30), min_size=4, max_size=4), max_size=6),
    st.integers(30, 120),
)
def test_a_table_keeps_to_its_width_and_cuts_only_what_may_be(rows: list[list[str]], width: int) -> None:
    made = (Column("FIRST", 6), Column("SECOND", 8, rank=1), Column("THIRD", 6, rank=2), Column("LAST", 4, rank=3))
    text = table(made, rows, Paper(width))
    lines = text.splitlines()
    assert len(lines) == len(rows) + 1
    assert max(map(len, lines)) <= width
    assert "FIRST" in lines[0]
    if max((sum(map(len, row)) for row in rows), default=0) + 40 < width:
        assert "LAST" in lines[0]


def test_rates_are_of_the_time_between_two_looks() -> None:
    later = tuple(
        wire.ListedPeer(
            **{
                **{field: getattr(each, field) for field in each.__struct_fields__},
                "rx_bytes": each.rx_bytes + 2048 * number,
                "tx_bytes": each.tx_bytes + 4096 * number,
            }
        )
        for number, each in enumerate(PEERS)
    )
    looks = top.Look(PEERS, {"web": (0, 0)}, 10.0), top.Look(later, {"web": (4096, 0)}, 12.0)
    lines = top.text(top.rates(*looks, ()), columns.PLAIN).splitlines()
    assert lines[0] == "6 peers: 15.0 KiB/s received, 30.0 KiB/s sent"
    assert lines[3].split() == ["vm-1", "new", "5.0", "KiB/s", "10.0", "KiB/s"]
    assert lines[-1].split() == ["web", "2.0", "KiB/s", "0", "B/s"]
    restarted = top.rates(top.Look(later, {}, 0), top.Look(PEERS, {}, 1), ())
    assert top.text(restarted, columns.PLAIN).startswith("6 peers: 0 B/s received")
    told = json.loads(top.as_json(top.rates(*looks, ["VM"])))
    assert (told["received"], told["sent"]) == (15 * 1024, 30 * 1024)
    (peer,) = told["peers"]
    assert (peer["name"], peer["state"], peer["received"], peer["sent"]) == ("vm-1", "new", 5 * 1024, 10 * 1024)
    assert told["services"] == []
    everything = json.loads(top.as_json(top.rates(*looks, ())))
    assert everything["services"] == [{"service": "web", "to_containers": 2048.0, "from_containers": 0.0}]


def test_ages_as_wg_says_them() -> None:
    assert wgshow._ago(0) == "Now"
    assert wgshow._ago(61) == "1 minute, 1 second ago"
    assert wgshow._ago(90061) == "1 day, 1 hour, 1 minute, 1 second ago"
