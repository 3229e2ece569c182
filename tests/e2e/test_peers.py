"""Peers: where they are, where they have gone, and what their names say; with real devices and real lookups."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from lab import Lab, Refused, ping
from lab.cluster import PORT, Member, besides_version
from lab.frames import request_frame
from lab.lab import OUTSIDE
from lab.node import CONTROL
from lab.patience import LIMIT, until
from lab.processes import environment

NOBODY = "172.31.0.99"  # an address of the underlay that no node has
GHOST = "Z2hvc3QgZ2hvc3QgZ2hvc3QgZ2hvc3QgZ2hvc3QgZ2g="  # the key of a peer that is never there


def daemon(fresh: float) -> list[str]:
    """A daemon for which a handshake vouches for `fresh` seconds rather than 180."""
    return [
        sys.executable,
        "-c",
        f"import sys; from overlayd.daemon.main import main; main(sys.argv[1:], fresh={fresh})",
    ]


def endpoint(member: Member, public_key: str) -> str:
    """Where the device sends to, as `wg` shows it."""
    interface = member.request("status")["interface"]
    shown = dict(line.split("\t") for line in member.node.run(["wg", "show", interface, "endpoints"]).splitlines())
    return shown[public_key]


def name(member: Member, **hosts: object) -> None:
    """Write the node's /etc/hosts."""
    member.node.hosts.write_text("".join(f"{address} {host}.example\n" for host, address in hosts.items()))


def add(member: Member, public_key: str, at: str, allowed_ips: str = "") -> None:
    member.request("add_peer", public_key=public_key, endpoint=at, allowed_ips=allowed_ips, persistent_keepalive_secs=0)


def restart(member: Member, fresh: float) -> None:
    member.node.stop()
    member.node.program = daemon(fresh)
    member.start()


def shake_hands(member: Member, other: Member, address: str) -> None:
    """Let a node reach another by a new handshake: at once, where its device would try the old session for 15 s."""
    member.request("remove_peer", pubkey=other.public_key)
    member.introduce(other)
    ping(member.node, address)


def connections(member: Member) -> int:
    """How many sockets there are at the daemon's path: the one that listens, and one a client."""
    return member.node.run(["cat", "/proc/net/unix"]).count(str(member.node.socket))


@contextlib.contextmanager
def events(member: Member) -> Iterator[Callable[[], list[dict[str, object]]]]:
    """What `overlayctl events` prints meanwhile, but for the changes that were asked for."""
    printed = member.node.log.with_name("events")
    before = connections(member)
    with printed.open("wb") as into:
        printer = subprocess.Popen(
            member.node.command([*CONTROL, "--socket", str(member.node.socket), "events", "--output", "json"]),
            stdin=subprocess.DEVNULL,
            stdout=into,
            env=environment(member.node.prefix),
        )
    try:
        until(lambda: connections(member) > before)  # what was before it subscribed is not told
        yield lambda: [
            event for event in map(json.loads, printed.read_text().splitlines()) if event["event"] != "changed"
        ]
    finally:
        printer.terminate()
        printer.wait(LIMIT)


@pytest.fixture
def nodes() -> Iterator[tuple[Member, Member]]:
    """Two nodes with their devices up; beta knows alpha."""
    with Lab() as lab:
        alpha, beta = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
        for member in (alpha, beta):
            member.start()
            member.set_up()
        beta.introduce(alpha)
        yield alpha, beta


def test_a_name_is_followed_until_its_peer_answers_and_again_when_it_does_not(nodes: tuple[Member, Member]) -> None:
    alpha, beta = nodes
    add(alpha, beta.public_key, f"beta.example:{PORT}", beta.slice)
    add(alpha, GHOST, f"ghost.example:{PORT}")
    assert {peer["endpoint"] for peer in alpha.request("status")["peers"]} == {
        f"beta.example:{PORT}",
        f"ghost.example:{PORT}",
    }
    assert endpoint(alpha, beta.public_key) == "(none)"

    name(alpha, beta=beta.node.address, ghost="172.31.0.50")
    alpha.request("nat_tick")
    until(lambda: endpoint(alpha, beta.public_key) == f"{beta.node.address}:{PORT}")
    until(lambda: endpoint(alpha, GHOST) == f"172.31.0.50:{PORT}")
    ping(alpha.node, "10.200.2.1")

    name(alpha, beta=NOBODY, ghost="172.31.0.51")  # a peer that answers is left alone, whatever its name says
    restart(alpha, fresh=180)
    until(lambda: endpoint(alpha, GHOST) == f"172.31.0.51:{PORT}")
    add(alpha, beta.public_key, f"beta.example:{PORT}", beta.slice)
    assert endpoint(alpha, beta.public_key) == f"{beta.node.address}:{PORT}"
    ping(alpha.node, "10.200.2.1")

    restart(alpha, fresh=0.5)  # its handshake is older than that: it counts as gone
    until(lambda: endpoint(alpha, beta.public_key) == f"{NOBODY}:{PORT}")
    name(alpha, beta=beta.node.address, ghost="172.31.0.51")
    alpha.request("nat_tick")
    until(lambda: endpoint(alpha, beta.public_key) == f"{beta.node.address}:{PORT}")
    ping(alpha.node, "10.200.2.1")

    name(alpha, beta=NOBODY, ghost="172.31.0.52")  # what a name says of a peer that went is of no consequence
    alpha.request("remove_peer", pubkey=beta.public_key)
    add(alpha, beta.public_key, f"{beta.node.address}:{PORT}", beta.slice)
    alpha.request("nat_tick")
    until(lambda: endpoint(alpha, GHOST) == f"172.31.0.52:{PORT}")
    assert endpoint(alpha, beta.public_key) == f"{beta.node.address}:{PORT}"


def answer(query: bytes, address: str) -> bytes:
    """A DNS response (RFC 1035, section 4.1) to a query of one question: the address, or nothing for AAAA."""
    after_name = query.index(b"\0", 12) + 1
    question, asks_for_a = query[12 : after_name + 4], query[after_name : after_name + 2] == b"\0\1"
    records = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) if asks_for_a else b""
    return query[:2] + b"\x81\x80\0\1" + (b"\0\1" if asks_for_a else b"\0\0") + b"\0\0\0\0" + question + records


def test_nothing_waits_for_a_lookup(nodes: tuple[Member, Member]) -> None:
    alpha, beta = nodes
    alpha.node.resolv_conf.write_text(f"nameserver {OUTSIDE.ip}\noptions timeout:30 attempts:5\n")
    with alpha.lab.open_outside(kind=socket.SOCK_DGRAM) as server:
        server.bind((str(OUTSIDE.ip), 53))
        server.settimeout(LIMIT)
        add(alpha, beta.public_key, f"beta.example:{PORT}", beta.slice)
        queries = [server.recvfrom(512) for _ in range(2)]  # A and AAAA
        alpha.request("nat_tick")
        assert alpha.request("nat_status")["peers"] == [
            {"node_id": beta.public_key, "connection_type": "unreachable"}
        ], "it is asked, and everybody else is served"
        for query, asker in queries:
            server.sendto(answer(query, str(beta.node.address)), asker)
        until(lambda: endpoint(alpha, beta.public_key) == f"{beta.node.address}:{PORT}")
        ping(alpha.node, "10.200.2.1")

        add(alpha, GHOST, f"ghost.example:{PORT}")
        server.recvfrom(512)
        assert alpha.node.stop() == 0, "nor does the end of the daemon, for 150 seconds"


def test_a_peer_that_roams_is_followed_told_of_and_not_called_back(nodes: tuple[Member, Member]) -> None:
    alpha, beta = nodes
    add(alpha, beta.public_key, f"{beta.node.address}:{PORT}", beta.slice)
    with events(alpha) as told:
        ping(alpha.node, "10.200.2.1")
        elsewhere = "172.31.0.77"
        beta.node.run(["ip", "address", "delete", f"{beta.node.address}/24", "dev", "uplink"])
        beta.node.run(["ip", "address", "add", f"{elsewhere}/24", "dev", "uplink"])
        shake_hands(beta, alpha, "10.200.1.1")
        until(lambda: bool(told()))
        add(alpha, beta.public_key, f"{beta.node.address}:{PORT}", beta.slice)
        add(alpha, beta.public_key, f"{beta.node.address}:{PORT}", f"{beta.slice},10.201.0.0/24")
        assert endpoint(alpha, beta.public_key) == f"{elsewhere}:{PORT}"
        (peer,) = alpha.request("status")["peers"]
        assert peer["endpoint"] == f"{elsewhere}:{PORT}"
        ping(alpha.node, "10.200.2.1")

        restart(alpha, fresh=180)  # which ends the printer too
        assert endpoint(alpha, beta.public_key) == f"{elsewhere}:{PORT}"
        (peer,) = alpha.request("status")["peers"]
        assert peer["endpoint"] == f"{elsewhere}:{PORT}"
        ping(alpha.node, "10.200.2.1")
        status = alpha.request("nat_status")
        assert status["peers"] == [
            {"node_id": beta.public_key, "connection_type": "direct", "remote_endpoint": f"{elsewhere}:{PORT}"}
        ]
        assert told() == [
            {"event": "nat_endpoint_changed", "pubkey": beta.public_key, "endpoint": f"{elsewhere}:{PORT}"}
        ]


@contextlib.contextmanager
def calling(member: Member, address: str) -> Iterator[None]:
    """Send something there all the time, answered or not."""
    caller = subprocess.Popen(
        member.node.command(["ping", "-q", "-i", "0.2", address]),
        stdout=subprocess.DEVNULL,
        env=environment(member.node.prefix),
    )
    try:
        yield
    finally:
        caller.kill()
        caller.wait()


def test_a_peer_that_nobody_calls_is_idle_and_not_ill(nodes: tuple[Member, Member]) -> None:
    alpha, beta = nodes
    restart(alpha, fresh=3)
    add(alpha, beta.public_key, f"{beta.node.address}:{PORT}", beta.slice)
    with events(alpha) as told:
        shake_hands(beta, alpha, "10.200.1.1")
        until(lambda: alpha.request("status")["peers"][0].get("health") == "idle")
        (shown,) = alpha.request("nat_status")["peers"]
        assert shown["connection_type"] == "direct"
        (peer,) = alpha.request("status")["peers"]
        assert peer["health"] == "idle" and peer["last_handshake_unix_secs"] > 0
        assert "direct (idle)" in alpha.node.overlayctl("nat")
        assert " idle " in alpha.node.overlayctl("peers")
        assert alpha.node.overlayctl("doctor").startswith("all is as it should be\n")
        ping(alpha.node, "10.200.2.1", count=1)
        assert told() == []


def test_health_is_told_once_a_change(nodes: tuple[Member, Member]) -> None:
    alpha, beta = nodes
    restart(alpha, fresh=3)
    add(alpha, beta.public_key, f"{beta.node.address}:{PORT}", beta.slice)
    shake_hands(beta, alpha, "10.200.1.1")
    beta.node.run(["ip", "link", "set", "uplink", "down"])
    try:
        with events(alpha) as told, calling(alpha, "10.200.2.1"):
            until(lambda: len(told()) == 1)
            assert doctor_codes(alpha) == ["peer-silent"]
            assert alpha.request("status")["peers"][0]["health"] == "silent"
            assert alpha.request("nat_status")["peers"][0]["connection_type"] == "unreachable"
            beta.node.run(["ip", "link", "set", "uplink", "up"])
            shake_hands(beta, alpha, "10.200.1.1")
            until(lambda: len(told()) == 2)
            changes = [(event["event"], event["pubkey"], event["healthy"]) for event in told()]
        assert changes == [("peer_health_changed", beta.public_key, healthy) for healthy in (False, True)]
        assert doctor_codes(alpha) == []
    finally:
        beta.node.run(["sh", "-c", "ip link set uplink up; ip route replace default via 172.31.0.254"])


def test_a_peer_that_never_answers_goes_stale_after_its_time(nodes: tuple[Member, Member]) -> None:
    alpha, _ = nodes
    restart(alpha, fresh=2)
    with events(alpha) as told:
        add(alpha, GHOST, f"{NOBODY}:{PORT}", "10.200.9.0/24")
        with calling(alpha, "10.200.9.1"):
            until(lambda: bool(told()))
        assert [(event["event"], event["healthy"]) for event in told()] == [("peer_health_changed", False)]


def doctor_codes(member: Member) -> list[str]:
    found = json.loads(member.node.try_overlayctl("doctor", "-o", "json")[1])
    return [finding["code"] for finding in besides_version(found)]


def test_many_changes_on_one_connection_end_as_if_made_one_by_one(nodes: tuple[Member, Member]) -> None:
    alpha, _ = nodes
    keys = [f"{number:042}A=" for number in range(300)]
    requests = []
    for number, key in enumerate(keys):
        peer = {"endpoint": f"{NOBODY}:{PORT}", "persistent_keepalive_secs": 0}
        requests.append(("add_peer", {"public_key": key, "allowed_ips": f"10.201.{number % 200}.0/24", **peer}))
        if number % 3 == 0:
            requests.append(("add_allowed_ip", {"pubkey": key, "cidr": "10.202.0.0/16"}))
        if number % 50 == 7:
            requests.append(("add_allowed_ip", {"pubkey": GHOST, "cidr": "10.203.0.0/16"}))
            requests.append(("remove_peer", {"pubkey": key}))
    with alpha.node.connect() as client:
        client.send(b"".join(request_frame(number, op, **keys) for number, (op, keys) in enumerate(requests)))
        answers = {answer["id"]: answer["response"]["result"] for answer in (client.receive() for _ in requests)}
    refused = [number for number, (op, keys) in enumerate(requests) if keys.get("pubkey") == GHOST]
    assert [number for number in sorted(answers) if answers[number] != "ok"] == refused

    expected: dict[str, set[str]] = {}
    for op, keys_of in requests:
        key, cidr = (
            str(keys_of.get("public_key", keys_of.get("pubkey"))),
            keys_of.get("allowed_ips", keys_of.get("cidr")),
        )
        if op == "remove_peer":
            del expected[key]
        elif key != GHOST:
            for others in expected.values():
                others.discard(str(cidr))
            expected.setdefault(key, set()).add(str(cidr))
    interface = alpha.request("status")["interface"]
    shown = alpha.node.run(["wg", "show", interface, "allowed-ips"])
    device = {key: set(ips.split()) - {"(none)"} for key, ips in (line.split("\t") for line in shown.splitlines())}
    status = {
        peer["public_key"]: set(filter(None, peer["allowed_ips"].split(",")))
        for peer in alpha.request("status")["peers"]
    }
    assert device == status == expected


def test_a_nodes_candidates_are_its_addresses(nodes: tuple[Member, Member]) -> None:
    alpha, _ = nodes
    alpha.request("nat_tick")
    status = alpha.request("nat_status")
    first = {"candidate_type": "host", "address": f"{alpha.node.address}:{PORT}", "priority": 2130706431}
    assert status["candidates"] == [first]
    assert abs(status["last_refresh"] - time.time()) < 60
    alpha.node.run(["ip", "address", "add", "172.31.0.200/24", "dev", "uplink"])
    assert alpha.request("nat_status")["candidates"] == [first]
    alpha.request("nat_tick")
    assert [candidate["address"] for candidate in alpha.request("nat_status")["candidates"]] == [
        f"{alpha.node.address}:{PORT}",
        f"172.31.0.200:{PORT}",
    ]


def test_an_endpoint_that_nobody_could_have_is_refused(nodes: tuple[Member, Member]) -> None:
    alpha, _ = nodes
    for at in ("beta.example", "beta.example:", "beta.example:0", "a..b:7", "a b:7", "fd00::1:7", "[fd00::g]:7", ":7"):
        with pytest.raises(Refused, match=r"request\.endpoint"):
            add(alpha, GHOST, at)
    for at in ("0.0.0.0:7", "[::]:7", "224.0.0.1:7", "[ff02::1]:7", "255.255.255.255:7"):
        with pytest.raises(Refused, match=r"request\.endpoint: .* is the address of"):
            add(alpha, GHOST, at)


def test_an_endpoint_that_is_this_node_itself_is_told(nodes: tuple[Member, Member]) -> None:
    alpha, _ = nodes
    for at, why in (
        (alpha.node.endpoint(PORT), "is this node's own WireGuard port"),
        (f"127.0.0.1:{PORT}", "is this node's own WireGuard port"),
        ("172.31.0.255:7", "is the broadcast address of network 172.31.0.0/24"),
    ):
        add(alpha, GHOST, at)
        assert f"the endpoint {at} of peer {GHOST} {why}" in alpha.node.log_tail()
        (found,) = [each for each in alpha.findings() if each["code"] == "endpoint-misplaced"]
        assert at in found["problem"] and why in found["problem"]
    add(alpha, GHOST, "127.0.0.1:7")  # where a tunnel of another kind may begin
    assert "endpoint-misplaced" not in [each["code"] for each in alpha.findings()]
    name(alpha, nobody="0.0.0.0")
    add(alpha, GHOST, "nobody.example:7")
    until(lambda: "nobody.example does not resolve: 0.0.0.0 is the address of nobody" in alpha.node.log_tail())
    alpha.request("remove_peer", pubkey=GHOST)


def test_names_and_zones_are_checked(nodes: tuple[Member, Member]) -> None:
    alpha, _ = nodes
    for _ in range(2):
        alpha.request("register_dns", name="Web.Example.", ip="10.200.1.7")
    alpha.request("register_dns", name="web.example", ip="fd00::7")
    for _ in range(2):
        alpha.request("unregister_dns", name="web.example")
    alpha.request("write_scoped_resolver", zone="example", node_ip="10.200.1.1", port=53)
    alpha.request("write_scoped_resolver", zone="example", node_ip="fd00::1")
    alpha.request("remove_scoped_resolver", zone="example")
    for op, keys, complaint in (
        ("register_dns", {"name": "a..b", "ip": "10.200.1.7"}, "request.name: 'a..b'"),
        ("register_dns", {"name": "web", "ip": "10.200.1"}, "request.ip: '10.200.1'"),
        ("unregister_dns", {"name": ""}, "request.name"),
        ("write_scoped_resolver", {"zone": "-x", "node_ip": "10.200.1.1"}, "request.zone: '-x'"),
        ("write_scoped_resolver", {"zone": "x", "node_ip": "here"}, "request.node_ip: 'here'"),
        ("remove_scoped_resolver", {"zone": "x y"}, "request.zone: 'x y'"),
    ):
        with pytest.raises(Refused, match=complaint):
            alpha.request(op, **keys)
