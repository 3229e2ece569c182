"""`overlayctl web`: who is answered, and what the page is told, by real daemons; tests/web opens it in a browser."""

import json
import time
from collections.abc import Iterator

import pytest
from lab import Lab
from lab.cluster import Pair
from lab.patience import until
from lab.web import Web, serving

from overlayd import wire
from overlayd.web import view

KEY = "C" * 42 + "A="


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab)


@pytest.fixture(scope="module")
def web(pair: Pair) -> Iterator[Web]:
    with serving(pair.alpha.node) as web:
        yield web


def test_the_page_is_one_file_that_may_run_nothing_but_itself(web: Web) -> None:
    status, headers, page = web.ask("/", token="")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert all(policy[each].startswith("'sha256-") for each in ("script-src", "style-src"))
    assert "http://" not in page and "https://" not in page, "nothing is loaded from elsewhere"
    assert "innerHTML" not in page and web.token not in page
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/api/node", "/api/findings", "/api/why?a=node&b=outside", "/api/events"])
def test_nobody_without_the_token_hears_anything(web: Web, path: str) -> None:
    for token in ("", "wrong", web.token[:-1]):
        status, _, body = web.ask(path, token=token)
        assert (status, web.token in body) == (401, False)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "[::2]", ""])
def test_a_name_that_was_rebound_to_the_loopback_is_told(web: Web, host: str) -> None:
    for path in ("/", "/api/node"):
        assert web.ask(path, host=host)[0] == 421


def test_what_is_no_request_of_the_page_is_refused(web: Web) -> None:
    assert web.ask("/api/node", sec_fetch_site="cross-site")[0] == 403
    assert web.ask("/api/node", sec_fetch_site="same-origin")[0] == 200
    assert web.ask("/", method="POST")[0] == 405
    assert web.ask("/nothing")[0] == 404
    assert web.ask("/../../etc/passwd")[0] == 404
    assert web.ask("/api/node", x="y" * 9000)[0] == 400
    assert web.ask("/", host="localhost:80\r\nHost: evil")[0] == 400
    assert web.ask("/api/node", host="localhost")[0] == 200, "and it is served as before"


def test_it_listens_on_the_loopback_alone(web: Web) -> None:
    with web.node.open_socket() as link, pytest.raises(ConnectionRefusedError):
        link.connect((str(web.node.address), web.port))


def test_who_asks_nothing_or_reads_nothing_keeps_no_browser_out(web: Web) -> None:
    """Connections of another user of this machine, more than there may be."""
    idle = [web.node.open_socket() for _ in range(200)]
    try:
        for each in idle:
            each.connect(("127.0.0.1", web.port))
        began = time.monotonic()
        assert web.ask("/api/node")[0] == 200
        assert time.monotonic() - began < 10, "which is how long an idle connection has"
    finally:
        for each in idle:
            each.close()
    deaf = [web.open("/", {"Host": "localhost"}) for _ in range(200)]
    try:
        assert web.ask("/api/node")[0] == 200
    finally:
        for each in deaf:
            each.close()


def test_what_the_page_is_told(pair: Pair, web: Web) -> None:
    pair.alpha.introduce(pair.beta, name="<b>beta")
    pair.alpha.request("register_dns", name="db", ip=pair.db_address)
    told = web.json("/api/node")
    status = pair.alpha.request("status")
    assert told["status"]["node_ip"] == status["node_ip"]
    (service,) = told["services"]
    assert [each["ip"] for each in service["containers"]] == [pair.web_address]
    assert told["peers"]["total"] == 1 and len(told["peers"]["shown"]) == 1
    assert told["peers"]["shown"][0]["name"] == "<b>beta", "as it is: the page shows no markup"
    assert [each["name"] for each in told["names"]["shown"]] == ["db"]
    assert {each.get("service", "") for each in told["pools"]} == {"", "web"}
    walked = web.json(f"/api/why?a={pair.web.pid}&b={pair.db_address}")
    assert {each["state"] for each in walked["hops"]} == {"ok"}
    walked = web.json(f"/api/why?a={pair.web.pid}&b=10.200.250.1")
    assert walked["hops"][-1]["state"] == "broken" and walked["hops"][-1]["remedy"]
    code = [each["code"] for each in json.loads(web.ask("/api/findings")[2])]
    assert "network-overlap" not in code


def test_events_arrive_as_they_happen_and_a_dead_daemon_is_said_to_be(pair: Pair, web: Web) -> None:
    headers = {"Host": "localhost", "Authorization": f"Bearer {web.token}"}
    with web.open("/api/events", headers) as link, link.makefile() as lines:
        while lines.readline().strip():
            pass
        assert lines.readline() == "\n", "it has begun"
        pair.alpha.request("allocate_ip", service="", join_global=True)
        pair.alpha.request("register_dns", name="new", ip=pair.web_address)
        event = json.loads(lines.readline())
        assert (event["kind"], event["object"], event["what"]) == ("name", "new", "set")
        pair.alpha.node.stop()
        assert lines.read() == "", "the feed ends with the daemon"
    status, _, body = web.ask("/api/node")
    assert status == 503 and "is overlayd running" not in body and "overlayd" in body
    pair.alpha.start()
    until(lambda: web.ask("/api/node")[0] == 200)


def test_more_than_two_hundred_peers_are_groups_and_those_that_are_not_well() -> None:
    def peer(number: int, **keys: object) -> wire.ListedPeer:
        given = {"path": "direct", "health": None, "last_handshake_unix_secs": 1, "rx_bytes": 0, "tx_bytes": 0}
        return wire.ListedPeer(
            name=f"n{number:03}",
            public_key=KEY,
            kind="node",
            allowed_ips=(),
            persistent_keepalive_secs=0,
            **given | keys,
        )

    few = [peer(number) for number in range(200)]
    assert len(view.peers(few)["shown"]) == 200
    ill = [peer(900, health="silent"), peer(901, path="unreachable")]
    shown = view.peers([*few, *ill])
    assert [each["name"] for each in shown["shown"]] == ["n900", "n901"]
    assert shown["groups"] == [
        {"health": "answers", "path": "direct", "peers": 200},
        {"health": "answers", "path": "unreachable", "peers": 1},
        {"health": "silent", "path": "direct", "peers": 1},
    ]
