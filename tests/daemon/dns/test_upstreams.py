"""Which servers are asked: as given, or as the host's resolv.conf says now; never ourselves."""

from ipaddress import ip_address

import pytest

from overlayd.daemon.dns import upstreams
from overlayd.daemon.dns.upstreams import Upstream, Upstreams, parse

OWN = {ip_address("10.200.1.1"), ip_address("fd00::1")}


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 53),
        ("192.0.2.1:5353", "192.0.2.1", 5353),
        ("2001:db8::1", "2001:db8::1", 53),
        ("[2001:db8::1]", "2001:db8::1", 53),
        ("[2001:0db8::1]:5353", "2001:db8::1", 5353),
        ("fe80::1%eth0", "fe80::1%eth0", 53),
    ],
)
def test_how_an_upstream_is_written(text, address, port):
    assert parse(text) == Upstream(address, port)
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text", ["", "host", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x", "[::1]53", "[::1]:", "1.2.3"]
)
def test_what_is_no_upstream(text):
    with pytest.raises(ValueError):
        parse(text)


def test_what_was_given_counts_alone(tmp_path):
    given = [Upstream("192.0.2.1"), Upstream("10.200.1.1", 5353), Upstream("fd00::1", 53)]
    assert Upstreams(given, tmp_path / "none").other_than(OWN, 53) == tuple(given[:2])


def test_the_hosts_servers_as_they_are_now(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# nameserver 192.0.2.9\nsearch a b\nnameserver 192.0.2.1\nnameserver\nnameserver x\nnameserver 10.200.1.1\n"
        "nameserver fe80::1%eth0\nnameserver 192.0.2.1 # again\n"
    )
    servers = Upstreams([], path)
    assert servers.other_than(OWN, 53) == (Upstream("192.0.2.1"), Upstream("fe80::1%eth0"))
    assert servers.other_than(OWN, 5353) == (Upstream("192.0.2.1"), Upstream("10.200.1.1"), Upstream("fe80::1%eth0"))
    other = tmp_path / "other"
    other.write_bytes(b"nameserver 192.0.2.2\n\xff\xfe\n")
    other.replace(path)
    assert servers.other_than(OWN, 53) == (Upstream("192.0.2.2"),)


def test_a_file_that_is_not_there_is_told_once(tmp_path, caplog):
    path = tmp_path / "resolv.conf"
    servers = Upstreams([], path)
    for _ in range(2):
        assert servers.other_than(OWN, 53) == ()
    assert len(caplog.records) == 1 and "cannot be read (No such file" in caplog.text
    path.write_text("nameserver 192.0.2.1\n")
    assert servers.other_than(OWN, 53) == (Upstream("192.0.2.1"),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text("search corp.example\nnameserver 192.0.\n"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_while_the_file_names_nobody_those_before_are_asked(tmp_path, caplog, spoil):
    """Who rewrites it in place, or removes it first, is seen half-way."""
    path, other = tmp_path / "resolv.conf", tmp_path / "other"
    path.write_text("nameserver 192.0.2.1\n")
    servers = Upstreams([], path)
    servers.other_than(OWN, 53)
    spoil(path)
    for _ in range(2):
        assert servers.other_than(OWN, 53) == (Upstream("192.0.2.1"),)
    assert len(caplog.records) == 1 and "still 192.0.2.1:53" in caplog.text
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    other.write_text("nameserver 192.0.2.2\n")
    path.symlink_to(other)
    assert servers.other_than(OWN, 53) == (Upstream("192.0.2.2"),)
    other.write_text("nameserver 192.0.2.30\n")
    assert servers.other_than(OWN, 53) == (Upstream("192.0.2.30"),), "what a link points to has changed"


def test_the_hosts_own_file():
    assert upstreams.RESOLV_CONF.name == "resolv.conf"
