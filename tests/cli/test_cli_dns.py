"""overlayctl dns: what it prints and asks."""

import json

import pytest
from canned import Canned

from overlayd import cli, wire

KNOWN = wire.Dns(
    zone="overlay.local",
    names=(wire.DnsName("db.example", ("10.200.7.6",)), wire.DnsName("web", ("10.200.7.5", "fd00::5"))),
    upstreams=(wire.DnsUpstream("192.0.2.1:53", "silent"), wire.DnsUpstream("[2001:db8::1]:53", "ok")),
    cached=12,
    cached_bytes=9000,
    hits=700,
    misses=40,
)


def test_list(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: KNOWN
    assert cli.run(["dns", "list"]) == 0
    assert capsys.readouterr().out == (
        "zone    overlay.local\n"
        "cache   12 answers, 9000 bytes, 94 % of 740 questions answered from there\n"
        "\n"
        "UPSTREAM          STATE\n"
        "192.0.2.1:53      silent\n"
        "[2001:db8::1]:53  ok\n"
        "\n"
        "NAME        ADDRESSES\n"
        "db.example  10.200.7.6\n"
        "web         10.200.7.5 fd00::5\n"
        "\n"
        "2 names\n"
    )
    assert cli.run(["dns", "list", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"][1] == {"name": "web", "ips": ["10.200.7.5", "fd00::5"]}
    assert canned.asked == [wire.ListDns()] * 2


def test_a_server_that_was_asked_nothing(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.Dns(
        zone="z", names=(), upstreams=(), cached=0, cached_bytes=0, hits=0, misses=0
    )
    assert cli.run(["dns", "list"]) == 0
    assert "cache   0 answers, 0 bytes\n" in capsys.readouterr().out


def test_flush(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.Ok()
    assert cli.run(["dns", "flush"]) == 0
    assert canned.asked == [wire.FlushDns()] and capsys.readouterr().out == ""


def test_query(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: wire.DnsAnswer(
        name="www.example.org.",
        type="A",
        rcode="NOERROR",
        source="stale",
        server="192.0.2.1:53",
        error="stale \x1banswer",
        records=(
            wire.DnsRecord("www.example.org.", "CNAME", 30, "a.example.org."),
            wire.DnsRecord("a.example.org.", "A", 5, "192.0.2.80"),
        ),
        left_out=3,
    )
    assert cli.run(["dns", "query", "www.example.org"]) == 0
    assert capsys.readouterr().out == (
        "www.example.org. A: NOERROR, from the cache, though its time is over, of 192.0.2.1:53\n"
        "stale \\x1banswer\n"
        "\n"
        "RECORD            TTL   TYPE   DATA\n"
        "www.example.org.  30 s  CNAME  a.example.org.\n"
        "a.example.org.    5 s   A      192.0.2.80\n"
        "and 3 more\n"
    )
    assert cli.run(["dns", "query", "www.example.org", "AAAA", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == 3
    assert canned.asked == [wire.QueryDns("www.example.org"), wire.QueryDns("www.example.org", "AAAA")]
