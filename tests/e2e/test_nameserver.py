"""The node's name server, asked by real containers with dig, in front of a real dnsmasq."""

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple

import dns.message
import dns.rrset
import pytest
from lab import Container, Lab, Node, Refused
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.node import CONTROL
from lab.patience import LIMIT, until
from lab.processes import CommandFailed, environment, run

NODE = "10.200.1.1"  # alpha's node address
LONG = [f"{number:02}-{'x' * 200}" for number in range(12)]  # texts that no datagram holds together


class Answer(NamedTuple):
    status: str
    flags: set[str]
    records: list[str]  # data of the answer section
    text: str


def dig(place: Container | Node, server: str, name: str, type: str = "A", *options: str) -> Answer:
    """Ask once.  CommandFailed when nobody answers."""
    argv = ["dig", "+tries=1", "+time=6", "+nocookie", f"@{server}", *options, name, type]
    said = place.run(argv)
    status, flags = re.search(r"status: (\w+)", said), re.search(r"flags: ([a-z ]+);", said)
    assert status and flags, said
    answers = said.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0].splitlines()
    return Answer(status[1], set(flags[1].split()), [line.split(maxsplit=4)[4] for line in answers], said)


def listening(node: Node) -> set[str]:
    """The protocols and addresses that somebody serves at port 53."""
    shown = node.run(["ss", "-Hlntu", "sport = :53"]).splitlines()
    return {f"{line.split()[0]} {line.split()[4]}" for line in shown}


class Outside:
    """A dnsmasq on the host outside, or on a node."""

    def __init__(self, lab: Lab, address: str = "", *more: str, node: Node | None = None) -> None:
        self.address = address or str(lab.outside_address.ip)
        options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]
        options += ["--pid-file=", "--address=/www.example.org/192.0.2.80", "--local=/example.org/"]
        options += [f"--txt-record=long.example.org,{text}" for text in LONG]
        options += [f"--listen-address={address}", "--bind-interfaces"] if address else []
        self._argv = ["ip", "netns", "exec", node.netns if node else lab.outside, "dnsmasq", *options, *more]
        self._prefix = lab.prefix
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._argv, env=environment(self._prefix))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Place:
    """Two nodes; on alpha the service web with containers, of which `blue` is isolated; and an upstream."""

    def __init__(self, lab: Lab) -> None:
        self.pair = Pair(lab)
        self.alpha, self.web = self.pair.alpha, self.pair.web
        self.blue = lab.container()
        self.alpha.attach(self.blue, "web", isolation_network="blue", dns_domain="blue.example")
        shown = self.web.run(["ip", "route", "show", "default"])
        self.gateway = shown.split()[2]
        self.outside = Outside(lab)
        self.alpha.node.resolv_conf.write_text(f"nameserver {self.gateway}\nnameserver {self.outside.address}\n")
        self.alpha.request("register_dns", name="web", ip=self.pair.web_address)
        self.alpha.request("register_dns", name="Db.Deep.overlay.local", ip="fd00::5")
        until(lambda: dig(self.web, self.gateway, "www.example.org").status == "NOERROR")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab)
        yield place
        place.outside.stop()


@pytest.mark.parametrize("protocol", ["+notcp", "+tcp"])
@pytest.mark.parametrize("isolated", [False, True], ids=["plain", "isolated"])
def test_a_container_asks_its_gateway(place: Place, protocol: str, isolated: bool) -> None:
    container = place.blue if isolated else place.web
    for name in ("web", "WEB.overlay.local"):
        answer = dig(container, place.gateway, name, "A", protocol)
        assert (answer.status, answer.records) == ("NOERROR", [place.pair.web_address])
        assert {"aa", "ra", "rd"} <= answer.flags and name in answer.text
    assert dig(container, place.gateway, "www.example.org", "A", protocol).records == ["192.0.2.80"]


def test_what_is_ours_and_what_is_not_there(place: Place) -> None:
    pointer = dig(
        place.web, place.gateway, ".".join(reversed(place.pair.web_address.split("."))) + ".in-addr.arpa", "PTR"
    )
    assert pointer.records == ["web.overlay.local."]
    assert dig(place.web, place.gateway, "db.deep.overlay.local", "AAAA").records == ["fd00::5"]
    for name, type, status in (
        ("web", "AAAA", "NOERROR"),
        ("deep.overlay.local", "A", "NOERROR"),
        ("nope.overlay.local", "A", "NXDOMAIN"),
        ("nope", "A", "NXDOMAIN"),
        ("9.9.200.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("nope.blue.example", "A", "NXDOMAIN"),
    ):
        answer = dig(place.web, place.gateway, name, type)
        assert (answer.status, answer.records) == (status, []) and "aa" in answer.flags
        assert "nobody.invalid. 1 3600 1200 604800 5" in answer.text


def test_another_nodes_container_asks_a_gateway(place: Place) -> None:
    assert dig(place.pair.db, place.gateway, "web").records == [place.pair.web_address]
    assert dig(place.pair.db, place.gateway, "www.example.org", "A", "+tcp").records == ["192.0.2.80"]


def test_the_host_asks_it_too(place: Place) -> None:
    assert dig(place.alpha.node, place.gateway, "web").records == [place.pair.web_address]


def test_nobody_outside_is_answered(place: Place) -> None:
    """A machine of the underlay with a route to the gateway: neither names nor a relay for it."""
    stranger = place.pair.lab.node("stranger")
    stranger.run(["ip", "route", "add", f"{place.gateway}/32", "via", str(place.alpha.node.address)])
    for protocol in ("+notcp", "+tcp"):
        with pytest.raises(CommandFailed):
            dig(stranger, place.gateway, "web", "A", protocol, "+time=1")


def test_a_long_answer_is_cut_and_then_fetched_by_tcp(place: Place) -> None:
    cut = dig(place.web, place.gateway, "long.example.org", "TXT", "+ignore")
    assert "tc" in cut.flags and len(cut.records) < len(LONG)
    whole = dig(place.web, place.gateway, "long.example.org", "TXT")
    assert sorted(whole.records) == [f'"{text}"' for text in LONG] and "(TCP)" in whole.text


def test_when_the_upstream_is_dead_and_when_it_is_back(place: Place) -> None:
    place.outside.stop()
    answer = dig(place.web, place.gateway, "www.example.org")
    assert answer.status == "SERVFAIL"
    assert f"No Reachable Authority): (no answer from {place.outside.address}:53)" in answer.text
    assert dig(place.web, place.gateway, "web").records == [place.pair.web_address], "ours go on"
    place.outside.start()
    until(lambda: dig(place.web, place.gateway, "www.example.org").status == "NOERROR")


def test_answers_are_kept_listed_and_forgotten(place: Place) -> None:
    """Of another upstream, whose names live for an hour, since those of the usual one are not to be kept at all."""
    lasting = Outside(place.pair.lab, "127.0.0.9", "--local-ttl=3600", node=place.alpha.node)
    conf = place.alpha.node.resolv_conf
    before = conf.read_text()
    try:
        conf.write_text(f"nameserver {lasting.address}\n")
        until(lambda: dig(place.web, place.gateway, "www.example.org").status == "NOERROR")
        lasting.stop()
        for protocol in ("+notcp", "+tcp"):
            assert dig(place.web, place.gateway, "WWW.example.org", "A", protocol).records == ["192.0.2.80"]
        known = place.alpha.request("list_dns")
        assert {"name": "web", "ips": [place.pair.web_address]} in known["names"]
        assert known["upstreams"] == [{"address": f"{lasting.address}:53", "state": "ok"}]
        assert known["cached"] == 1 and known["hits"] >= 2 and known["zone"] == "overlay.local"
        place.alpha.request("flush_dns")
        assert dig(place.web, place.gateway, "www.example.org").status == "SERVFAIL"
    finally:
        conf.write_text(before)


def test_the_node_asks_itself_and_learns_who_answered(place: Place) -> None:
    def ask(name: str, type: str = "") -> dict[str, Any]:
        answer = place.alpha.request("query_dns", name=name, type=type)
        records = [each["data"] for each in answer.get("records", [])]
        return {key: answer.get(key) for key in ("source", "server", "rcode")} | {"records": records}

    def own(rcode: str, *records: str) -> dict[str, Any]:
        return {"source": "own", "server": None, "rcode": rcode, "records": list(records)}

    assert ask("web") == ask("WEB.overlay.local", "A") == own("NOERROR", place.pair.web_address)
    assert ask(place.pair.web_address) == own("NOERROR", "web.overlay.local.")
    assert ask("nope") == own("NXDOMAIN")
    assert ask("web", "MX") == own("NOERROR")
    lasting = Outside(place.pair.lab, "127.0.0.8", "--local-ttl=3600", node=place.alpha.node)
    conf = place.alpha.node.resolv_conf
    before = conf.read_text()
    try:
        conf.write_text(f"nameserver {lasting.address}\n")
        known = {"server": f"{lasting.address}:53", "rcode": "NOERROR", "records": ["192.0.2.80"]}
        until(lambda: ask("www.example.org") == {"source": "upstream", **known})
        assert ask("www.example.org") == {"source": "cache", **known}
        lasting.stop()
        place.alpha.request("flush_dns")
        answer = place.alpha.request("query_dns", name="www.example.org")
        assert (answer["source"], answer["rcode"]) == ("none", "SERVFAIL")
        assert answer["error"] == f"no answer from {lasting.address}:53"
        conf.write_text("")
        answer = place.alpha.request("query_dns", name="www.example.org")
        assert answer["error"] == "this node knows no server to forward to"
    finally:
        conf.write_text(before)
    for name, type in (("a..b", ""), ("x", "NOTYPE")):
        with pytest.raises(Refused, match="request: "):
            place.alpha.request("query_dns", name=name, type=type)


def test_localhost_and_top_level_domains(place: Place) -> None:
    for protocol in ("+notcp", "+tcp"):
        assert dig(place.web, place.gateway, "localhost", "A", protocol).records == ["127.0.0.1"]
        assert dig(place.web, place.gateway, "app.localhost", "AAAA", protocol).records == ["::1"]
        assert "aa" not in dig(place.web, place.gateway, "com", "DS", protocol).flags, "forwarded"


def test_cookies_are_answered_by_everybody_alike(place: Place) -> None:
    for name in ("web", "www.example.org", "nope"):
        said = dig(place.web, place.gateway, name, "A", "+cookie=0102030405060708").text
        assert re.search(r"COOKIE: 0102030405060708[0-9a-f]{16} \(good\)", said)


@pytest.mark.parametrize("where", ["container", "ipv6"])
def test_an_upstream_may_be_in_the_overlay_or_be_reached_by_ipv6(place: Place, where: str) -> None:
    conf = place.alpha.node.resolv_conf
    before = conf.read_text()
    if where == "container":
        address, opened = str(place.pair.db_address), place.pair.db.open_socket(kind=socket.SOCK_DGRAM)
    else:
        address, opened = "::1", place.alpha.node.open_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with opened:
        opened.bind((address, 53))
        opened.settimeout(10)
        conf.write_text(f"nameserver {address}\n")
        asking = threading.Thread(target=answer_one, args=(opened, f"{where}.example.org."))
        asking.start()
        assert dig(place.web, place.gateway, f"{where}.example.org").records == ["192.0.2.81"]
        asking.join()
    conf.write_text(before)


def answer_one(opened: socket.socket, name: str) -> None:
    """Be a server for one name, once."""
    while True:
        asked, client = opened.recvfrom(2000)
        query = dns.message.from_wire(asked)
        if str(query.question[0].name) == name:
            response = dns.message.make_response(query)
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.81"))
            opened.sendto(response.to_wire(), client)
            return


def test_the_hosts_servers_are_read_again_when_they_change(place: Place) -> None:
    conf = place.alpha.node.resolv_conf
    before = conf.read_text()
    conf.write_text(f"nameserver {place.gateway}\n")
    assert "knows no server to forward to" in dig(place.web, place.gateway, "www.example.org").text
    conf.write_text(before)
    assert dig(place.web, place.gateway, "www.example.org").records == ["192.0.2.80"]


def test_a_restart_keeps_the_names_and_a_change_shows_at_once(place: Place) -> None:
    served = listening(place.alpha.node)
    assert len(served) == 2
    for end in (place.alpha.node.kill, place.alpha.node.stop):
        end()
        place.alpha.start()
        assert listening(place.alpha.node) == served
        assert dig(place.web, place.gateway, "web").records == [place.pair.web_address]
    place.alpha.request("register_dns", name="web", ip="10.200.7.7")
    both = sorted([place.pair.web_address, "10.200.7.7"])
    assert sorted(dig(place.web, place.gateway, "web.overlay.local").records) == both
    place.alpha.request("unregister_dns", name="web", ip=place.pair.web_address)
    assert dig(place.web, place.gateway, "web.overlay.local").records == ["10.200.7.7"]
    place.alpha.request("unregister_dns", name="web")
    assert dig(place.web, place.gateway, "web").status == "NXDOMAIN"
    place.alpha.request("register_dns", name="web", ip=place.pair.web_address)


def test_a_bridge_that_is_put_back_is_served_as_before(place: Place) -> None:
    place.alpha.node.run(["ip", "link", "delete", place.pair.bridges[0]])
    place.alpha.set_up_service("web")
    until(lambda: "eth0" in place.web.run(["ip", "-br", "link"]))
    assert dig(place.web, place.gateway, "web").records == [place.pair.web_address]


def test_the_zone_of_a_domain_goes_with_its_last_container(place: Place) -> None:
    place.alpha.detach(place.blue)
    answer = dig(place.web, place.gateway, "nope.blue.example")
    assert "aa" not in answer.flags, "forwarded"


def test_replicas_of_a_name_go_with_their_containers(place: Place) -> None:
    """Detached, dead or released: none of a name's addresses leads to who comes next.  A restart changes nothing."""
    alpha, lab = place.alpha, place.pair.lab
    leaving, dying = lab.container(), lab.container()
    detached, dead = (alpha.attach(each, "web") for each in (leaving, dying))
    released = alpha.request("allocate_ip", service="web", join_global=False)["ip"]
    for name, address in (
        *(("many", each) for each in (detached, dead, released, "10.200.9.9", "fd00::9")),
        ("many", detached),
        ("only", detached),
    ):
        alpha.request("register_dns", name=name, ip=address)

    def named(name: str = "many", type: str = "A") -> list[str]:
        return sorted(dig(place.web, place.gateway, name, type).records)

    assert named() == sorted([detached, dead, released, "10.200.9.9"])
    assert named(type="AAAA") == ["fd00::9"]
    firsts = {dig(place.web, place.gateway, "many").records[0] for _ in range(4)}
    assert len(firsts) == 4, "each in turn"
    alpha.detach(leaving)
    assert detached not in named() and dig(place.web, place.gateway, "only").status == "NXDOMAIN"
    assert dig(place.web, place.gateway, "-x", detached).status == "NXDOMAIN"
    alpha.request("release_ip", ip=released)
    assert named() == sorted([dead, "10.200.9.9"])
    dying.kill()
    until(lambda: named() == ["10.200.9.9"])
    alpha.node.kill()
    alpha.start()
    assert named() == ["10.200.9.9"] and named(type="AAAA") == ["fd00::9"]
    alpha.request("unregister_dns", name="many", ip="10.200.9.9")
    alpha.request("unregister_dns", name="many", ip="fd00::9")
    assert dig(place.web, place.gateway, "many").status == "NXDOMAIN"


def test_names_of_isolated_members_are_for_them_and_the_node(place: Place) -> None:
    alpha, lab = place.alpha, place.pair.lab
    red, friend, other = lab.container(), lab.container(), lab.container()
    address = alpha.attach(red, "web", isolation_network="red")
    alpha.attach(friend, "web", isolation_network="red")
    alpha.attach(other, "web", isolation_network="green")
    alpha.request("register_dns", name="secret", ip=address)
    for _ in range(2):
        for asking, answer in (
            *((each, [address]) for each in (red, friend, alpha.node)),
            *((each, []) for each in (other, place.web, place.pair.db)),
        ):
            for protocol in ("+notcp", "+tcp"):
                assert dig(asking, place.gateway, "secret", "A", protocol).records == answer
                pointers = ["secret.overlay.local."] if answer else []
                assert dig(asking, place.gateway, "-x", address, protocol).records == pointers
        alpha.node.kill()
        alpha.start()


def test_another_node_knows_no_isolated_member_and_answers_what_it_was_told(place: Place) -> None:
    """Members reach members of their own node alone, so their names are of use there alone: register them there."""
    alpha, beta, lab = place.alpha, place.pair.beta, place.pair.lab
    here, there = lab.container(), lab.container()
    address = alpha.attach(here, "web", isolation_network="violet")
    alpha.request("register_dns", name="hidden", ip=address)
    gateway = beta.gateway(beta.attach(there, "db", isolation_network="violet"))
    reverse = ip_address(address).reverse_pointer
    for asking in (there, place.pair.db, beta.node):
        for name, type in (("hidden", "A"), ("hidden.overlay.local", "A"), (reverse, "PTR")):
            assert dig(asking, gateway, name, type).status == "NXDOMAIN"
    assert dig(place.pair.db, place.gateway, "hidden").status == "NXDOMAIN", "nor from afar"
    beta.request("register_dns", name="hidden", ip=address)
    for asking in (there, place.pair.db, beta.node):
        assert dig(asking, gateway, "hidden").records == [address]
    beta.request("unregister_dns", name="hidden")


def test_teardown_closes_what_setup_opened(lab: Lab) -> None:
    member = Member(lab, 1, "closing")
    member.start()
    assert listening(member.node) == set()
    member.set_up()
    assert listening(member.node) == set()
    member.set_up_service("web")
    assert len(listening(member.node)) == 2
    member.request("teardown_service_overlay", service="web")
    assert listening(member.node) == set()
    member.set_up_service("web")
    assert member.node.stop() == 0
    assert listening(member.node) == set()


def test_the_node_address_is_served_as_long_as_it_is_asked_for(lab: Lab) -> None:
    member = Member(lab, 1, "asked")
    member.start("--dns-node-address")
    member.set_up()
    at_node = {f"udp {NODE}:53", f"tcp {NODE}:53"}
    assert listening(member.node) == at_node
    member.set_up_service("web")
    container, isolated = lab.container(), lab.container()
    address = member.attach(container, "web")
    member.attach(isolated, "web", isolation_network="blue")
    member.request("register_dns", name="web", ip=address)
    assert len(listening(member.node)) == 4
    for place in (container, isolated, member.node):
        for protocol in ("+notcp", "+tcp"):
            assert dig(place, NODE, "web", "A", protocol).records == [address]
    member.request("teardown_global_overlay")
    assert at_node.isdisjoint(listening(member.node))
    member.set_up()
    assert at_node <= listening(member.node)
    member.node.stop()
    member.start()
    assert len(listening(member.node)) == 2 and at_node.isdisjoint(listening(member.node))
    member.node.kill()
    member.start("--dns-node-address")
    assert at_node <= listening(member.node)
    member.request("teardown_service_overlay", service="web")
    assert listening(member.node) == at_node


@pytest.mark.parametrize("cluster", [CLUSTER, CLUSTER6], ids=["IPv4", "IPv6"])
def test_the_orchestrators_own_resolver_has_the_node_address(cluster: str) -> None:
    """It opens it after the set-up, plainly, as an orchestrator does; overlayd neither had it nor takes it later."""
    with Lab(ipv6=":" in cluster) as lab:
        member = Member(lab, 1, "alpha", cluster)
        member.start()
        address = member.set_up()["node_ip"]
        member.set_up_service("web")
        container = lab.container()
        web = member.attach(container, "web")
        member.request("register_dns", name="web", ip=web)
        gateway = member.gateway(web)
        family = socket.AF_INET6 if ":" in cluster else socket.AF_INET
        with (
            member.node.open_socket(family, socket.SOCK_DGRAM) as udp,
            member.node.open_socket(family, socket.SOCK_STREAM) as tcp,
        ):
            for each in (udp, tcp):
                each.bind((address, 53))
            tcp.listen()
            query = "AAAA" if ":" in cluster else "A"
            for restart in (None, member.node.stop, member.node.kill):
                if restart is not None:
                    restart()
                    member.start()
                assert dig(container, gateway, "web", query).records == [web]
                assert dig(container, gateway, "web", query, "+tcp").records == [web]
            udp.settimeout(5)
            container.run(["sh", "-c", f"dig +tries=1 +time=1 @{address} hello.example >/dev/null; true"])
            assert b"hello" in udp.recv(512), "queries to the node address are the orchestrator's"
        assert "is not served" not in member.node.log.read_text()
        assert "is as it should be" in doctor(member)


def doctor(member: Member) -> str:
    argv = member.node.command([*CONTROL, "--socket", str(member.node.socket), "doctor"])
    return subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=LIMIT, check=False).stdout


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_port_that_is_taken(lab: Lab, kind: socket.SocketKind) -> None:
    member = Member(lab, 1, f"taken{kind}")
    with member.node.open_socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 53))
        if kind == socket.SOCK_STREAM:
            other.listen()
        member.start("--dns-node-address")
        member.set_up()
        assert f"DNS at {NODE}:53 is not served: another program has the port" in doctor(member)
        assert len(listening(member.node)) == 1, "the other program's; none of ours is left half open"
    until(lambda: f"udp {NODE}:53" in listening(member.node))
    assert dig(member.node, NODE, "nope").status == "NXDOMAIN"
    assert "is as it should be" in doctor(member)
    assert member.node.log.read_text().count("is not served") == 1, "logged once"


def test_options(lab: Lab) -> None:
    member = Member(lab, 1, "options")
    member.start("--dns-port", "0")
    member.set_up()
    assert listening(member.node) == set()
    member.node.stop()
    outside = Outside(lab)
    try:
        options = [
            "--dns-node-address",
            "--dns-port",
            "5353",
            "--dns-zone",
            "Svc.Example.",
            "--dns-upstream",
            f"192.0.2.1,{outside.address}:53",
        ]
        member.start(*options)
        assert listening(member.node) == set()
        member.request("register_dns", name="web", ip="10.200.1.9")
        answer = dig(member.node, NODE, "web.svc.example", "A", "-p", "5353")
        assert answer.records == ["10.200.1.9"]
        assert dig(member.node, NODE, "www.example.org", "A", "-p", "5353").records == ["192.0.2.80"]
    finally:
        outside.stop()


def test_ipv6() -> None:
    with Lab(ipv6=True) as lab:
        member = Member(lab, 1, "alpha", CLUSTER6)
        outside = Outside(lab)
        try:
            member.node.resolv_conf.write_text(f"nameserver {outside.address}\n")
            member.start("--dns-node-address")
            member.set_up()
            member.set_up_service("web")
            container = lab.container()
            address = member.attach(container, "web", isolation_network="blue")
            member.request("register_dns", name="web", ip=address)
            gateway = run(["ip", "netns", "exec", member.node.netns, "ss", "-Hlnu", "sport = :53"])
            servers = re.findall(r"\[(fd00:200:[0-9a-f:]+)\]:53", gateway)
            assert len(servers) == 2
            for server in servers:
                for protocol in ("+notcp", "+tcp"):
                    assert dig(container, server, "web", "AAAA", protocol).records == [address]
            assert dig(container, servers[0], "-x", address).records == ["web.overlay.local."]
            assert dig(container, servers[0], "www.example.org", "A").records == ["192.0.2.80"]
        finally:
            outside.stop()
