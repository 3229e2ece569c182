"""The node's name server, asked by real containers with dig, in front of a real dnsmasq."""

import re
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.rrset
import pytest
from lab import Lab, Refused
from lab.cluster import Pair
from lab.dig import dig, listening
from lab.dnsmasq import LONG, Outside
from lab.patience import LIMIT, until
from lab.processes import CommandFailed

NODE = "10.200.1.1"  # alpha's node address


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
        assert place.alpha.request("list_dns")["upstreams"] == [{"address": f"{lasting.address}:53", "state": "ok"}]
        lasting.stop()
        for protocol in ("+notcp", "+tcp"):
            assert dig(place.web, place.gateway, "WWW.example.org", "A", protocol).records == ["192.0.2.80"]
        known = place.alpha.request("list_dns")
        assert {"name": "web", "ips": [place.pair.web_address]} in known["names"]
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
        for text, error in (
            ("", f"no answer from {lasting.address}:53"),  # somebody is rewriting it
            (f"nameserver {place.gateway}\n", "this node knows no server to forward to"),
        ):
            conf.write_text(text)
            assert place.alpha.request("query_dns", name="www.example.org")["error"] == error
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
        for nobodys in ("www.invalid", "x.onion", "_dns.resolver.arpa"):
            assert "aa" in dig(place.web, place.gateway, nobodys, "A", protocol).flags


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
        opened.settimeout(LIMIT)
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
