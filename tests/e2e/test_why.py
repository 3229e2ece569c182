"""`overlayctl why` names each of these planted faults, with its remedy, and nothing on healthy nodes."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from lab import Container, Lab
from lab.cluster import Member, Pair
from lab.patience import until

KEY = "C" * 42 + "A="


class Place:
    """Two nodes with containers and names on them, and gamma, which knows both.  undo: called in reverse when a test is
    over.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pair = Pair(lab)
        self.alpha, self.beta = self.pair.alpha, self.pair.beta
        self.near, self.blue, self.other = (lab.container() for _ in range(3))
        self.near_address = self.alpha.attach(self.near, "web")
        self.blue_address = self.alpha.attach(self.blue, "web", isolation_network="blue")
        self.alpha.set_up_service("cache")
        self.other_address = self.alpha.attach(self.other, "cache")
        self.alpha.request("register_dns", name="db", ip=self.pair.db_address)
        self.alpha.request("register_dns", name="cache", ip=self.other_address)
        self.gamma = Member(lab, 3, "gamma")
        self.gamma.start()
        self.gamma.set_up()
        for each in (self.alpha, self.beta):
            each.introduce(self.gamma)
            self.gamma.introduce(each)
        self.undo = ExitStack()
        self.device_name = ""
        self.isolated = ""

    def meet_gamma(self) -> None:
        """Have both nodes' sessions with gamma live."""
        for each in (self.alpha, self.beta):
            until(lambda each=each: "ms" in each.node.overlayctl("ping", self.gamma.public_key[:10], "-c", "1"))  # type: ignore[misc]

    @property
    def device(self) -> str:
        return str(self.alpha.request("status")["interface"])

    def on(self, member: Member, *argv: str, back: tuple[str, ...] = ()) -> None:
        """Run a command on a node, and another one when the test is over."""
        member.node.run(argv)
        if back:
            self.undo.callback(member.node.run, back)

    def within(self, container: Container, *argv: str, back: tuple[str, ...] = ()) -> None:
        container.run(argv)
        if back:
            self.undo.callback(container.run, back)

    def ask(self, member: Member, op: str, back: Callable[[], object] | None = None, **keys: object) -> None:
        member.request(op, **keys)
        if back is not None:
            self.undo.callback(back)


def why(member: Member, *words: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    code, printed, complained = member.node.try_overlayctl("why", *words)
    assert "Traceback" not in complained, complained
    return code, printed + complained


@pytest.fixture(scope="module")
def built() -> Iterator[Place]:
    with Lab() as lab:
        yield Place(lab)


@pytest.fixture
def place(built: Place) -> Iterator[Place]:
    assert built.undo is not None
    try:
        yield built
    finally:
        built.undo.close()
        until(lambda: why(built.alpha, str(built.pair.web.pid), built.pair.db_address)[0] == 0)


def to_db(place: Place) -> tuple[str, str]:
    return str(place.pair.web.pid), place.pair.db_address


def to_near(place: Place) -> tuple[str, str]:
    return str(place.pair.web.pid), place.near_address


class Fault(NamedTuple):
    """plant: does it, and tells `place.undo` how it is taken back.  named: what the broken hop says."""

    plant: Callable[[Place], object]
    named: str
    ends: Callable[[Place], tuple[str, str]] = to_db
    stops: bool = False  # alpha's daemon, which else would repair it


def _forward_drop(place: Place) -> None:
    chain = "add chain ip walls f { type filter hook forward priority 0; policy drop; }"
    place.on(place.alpha, "nft", "add table ip walls", back=("nft", "delete table ip walls"))
    place.on(place.alpha, "nft", chain)


def _input_drop(member: Callable[[Place], Member]) -> Callable[[Place], None]:
    """The other side forgets its session too, so that a handshake is needed."""

    def plant(place: Place) -> None:
        closed = member(place)
        place.on(closed, "nft", "add table ip walls", back=("nft", "delete table ip walls"))
        place.on(closed, "nft", "add chain ip walls i { type filter hook input priority 0; }")
        place.on(closed, "nft", "add rule ip walls i udp dport 51820 drop")
        _forget_session(place)

    return plant


def _forget_session(place: Place) -> None:
    """Both nodes meet anew: handshakes are needed."""
    alpha, beta = place.alpha, place.beta

    def meet() -> None:
        for one, another in ((alpha, beta), (beta, alpha)):
            one.request("remove_peer", pubkey=another.public_key)
            one.introduce(another)
        alpha.announce(beta, place.pair.web_address)
        beta.announce(alpha, place.pair.db_address)

    meet()
    place.undo.callback(meet)


def _peer_removed_there(place: Place) -> None:
    place.meet_gamma()
    _forget_session(place)
    place.beta.request("remove_peer", pubkey=place.alpha.public_key)


def _peer_removed_here(place: Place) -> None:
    _forget_session(place)
    place.alpha.request("remove_peer", pubkey=place.beta.public_key)


def _key_changed_there(place: Place) -> None:
    """To alpha: the peer it has is of another key."""
    alpha, beta = place.alpha, place.beta
    place.meet_gamma()
    _forget_session(place)
    alpha.request("remove_peer", pubkey=beta.public_key)
    peer = {"public_key": KEY, "endpoint": beta.node.endpoint(51820), "persistent_keepalive_secs": 0}
    alpha.request("add_peer", allowed_ips=f"{beta.slice},{beta.subnet_of(place.pair.db_address)}", **peer)
    place.undo.callback(alpha.request, "remove_peer", pubkey=KEY)


def _alone(plant: Callable[[Place], None]) -> Callable[[Place], None]:
    """Without gamma, which could pass a question on."""

    def planted(place: Place) -> None:
        plant(place)
        place.ask(
            place.alpha,
            "remove_peer",
            lambda: place.alpha.introduce(place.gamma),
            pubkey=place.gamma.public_key,
        )

    return planted


def _device_down_there(place: Place) -> None:
    """And no daemon that would put it up."""
    device = str(place.beta.request("status")["interface"])
    subnet = place.beta.subnet_of(place.pair.db_address)
    place.beta.node.stop()
    place.undo.callback(place.beta.start)
    place.on(place.beta, "ip", "link", "set", device, "down")
    place.alpha.request("remove_peer", pubkey=place.beta.public_key)
    place.alpha.introduce(place.beta)
    place.alpha.request("add_allowed_ip", pubkey=place.beta.public_key, cidr=subnet)


def _forward_drop_there(place: Place) -> None:
    place.undo.callback(place.beta.findings)  # has it look again: by itself it does once a minute
    place.on(place.beta, "nft", "add table ip walls", back=("nft", "delete table ip walls"))
    place.on(place.beta, "nft", "add chain ip walls f { type filter hook forward priority 0; policy drop; }")
    until(lambda: any(each["code"] == "forward-blocked" for each in place.beta.findings()))


def _inside_there(*argv: str, back: tuple[tuple[str, ...], ...]) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        place.pair.db.run(argv)

        def undo() -> None:
            gateway = place.beta.gateway(place.pair.db_address)
            for each in back:
                place.pair.db.run([gateway if word == "GATEWAY" else word for word in each])

        place.undo.callback(undo)

    return plant


_DEFAULT = ("ip", "route", "replace", "default", "via", "GATEWAY")


def _isolated_there(place: Place) -> None:
    db = place.lab.container()
    place.undo.callback(db.kill)
    place.isolated = place.beta.attach(db, "db", isolation_network="green")
    place.undo.callback(place.beta.detach, db)


def _other_endpoint(endpoint: str) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        alpha, beta = place.alpha, place.beta
        _forget_session(place)
        for one, another in ((alpha, beta), (beta, alpha)):
            one.request("remove_peer", pubkey=another.public_key)
        subnet = beta.subnet_of(place.pair.db_address)
        peer = {"public_key": beta.public_key, "endpoint": endpoint, "persistent_keepalive_secs": 0}
        alpha.request("add_peer", allowed_ips=f"{beta.slice},{subnet}", **peer)

    return plant


def _stale_name(place: Place) -> None:
    place.ask(
        place.alpha,
        "register_dns",
        lambda: place.alpha.request("unregister_dns", name="gone"),
        name="gone",
        ip="10.200.222.9",
    )


def _name_elsewhere(place: Place) -> None:
    place.alpha.request("unregister_dns", name="cache")
    place.alpha.request("register_dns", name="cache", ip=place.near_address)

    def back() -> None:
        place.alpha.request("unregister_dns", name="cache")
        place.alpha.request("register_dns", name="cache", ip=place.other_address)

    place.undo.callback(back)


def _withdraw(place: Place, at: Member, of: Member, address: str) -> None:
    """Have a node know no more that a container of another one is there."""
    subnet = of.subnet_of(address)
    place.ask(at, "remove_allowed_ip", lambda: of.announce(at, address), pubkey=of.public_key, cidr=subnet)


def _missing_there(place: Place) -> None:
    _withdraw(place, place.beta, place.alpha, place.pair.web_address)


def _missing_here(place: Place) -> None:
    _withdraw(place, place.alpha, place.beta, place.pair.db_address)


def _detached_there(place: Place) -> None:
    place.beta.detach(place.pair.db)
    place.alpha.request("unregister_dns", name="db")

    def back() -> None:
        place.pair.db_address = place.beta.attach(place.pair.db, "db")  # another one: the oldest is reused first
        place.alpha.request("register_dns", name="db", ip=place.pair.db_address)

    place.undo.callback(back)


def _taken_address(place: Place) -> None:
    """Its own address was taken from eth0 by somebody in it, who gave it another one."""
    place.within(place.near, "ip", "address", "add", "10.200.99.9/26", "dev", "eth0")
    place.within(place.near, "ip", "address", "del", f"{place.near_address}/26", "dev", "eth0")

    def back() -> None:
        place.near.run(["ip", "address", "add", f"{place.near_address}/26", "dev", "eth0"])
        place.near.run(["ip", "address", "del", "10.200.99.9/26", "dev", "eth0"])
        place.near.run(["ip", "route", "replace", "default", "via", place.alpha.gateway(place.near_address)])

    place.undo.callback(back)


def _eth0(
    *words: str, back: tuple[str, ...], whose: Callable[[Place], Container] = lambda place: place.pair.web
) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        container = whose(place)
        container.run(["ip", "link", "set", "eth0", *words])

        def undo() -> None:
            container.run(["ip", "link", "set", "eth0", *back])
            gateway = place.alpha.gateway(place.near_address)
            container.run(["ip", "route", "replace", "default", "via", gateway])

        place.undo.callback(undo)

    return plant


def _own_mac(place: Place) -> None:
    shown = json.loads(place.pair.web.run(["ip", "-j", "link", "show", "eth0"]))[0]["address"]
    _eth0("address", "02:00:00:00:00:01", back=("address", shown))(place)


def _no_default_route(place: Place) -> None:
    gateway = place.alpha.gateway(place.pair.web_address)
    back = ("ip", "route", "replace", "default", "via", gateway)
    place.within(place.pair.web, "ip", "route", "del", "default", back=back)


def _other_gateway(place: Place) -> None:
    gateway = place.alpha.gateway(place.pair.web_address)
    back = ("ip", "route", "replace", "default", "via", gateway)
    place.within(place.pair.web, "ip", "route", "replace", "default", "via", place.near_address, back=back)


def _link(name: Callable[[Place], str], *words: str) -> Callable[[Place], None]:
    return lambda place: place.on(place.alpha, "ip", "link", "set", name(place), *words)


def _bridge(place: Place) -> str:
    return place.pair.bridges[0]


def _port(place: Place) -> str:
    return f"veth-{place.pair.web.pid}-s"


def _gateway_gone(place: Place) -> None:
    gateway = place.alpha.gateway(place.pair.web_address)
    place.on(place.alpha, "ip", "address", "del", f"{gateway}/26", "dev", _bridge(place))


def _device_mtu(place: Place) -> None:
    mtu = str(json.loads(place.alpha.node.run(["ip", "-j", "link", "show", place.device]))[0]["mtu"])
    place.pair.web.run(["ip", "link", "set", "eth0", "mtu", str(int(mtu) + 40)])
    place.undo.callback(place.pair.web.run, ["ip", "link", "set", "eth0", "mtu", mtu])


def _peer_off_the_device(place: Place) -> None:
    place.on(place.alpha, "wg", "set", place.device_name, "peer", place.beta.public_key, "remove")


def _host_route(place: Place) -> None:
    route = f"{place.pair.db_address}/32"
    back = ("ip", "route", "del", route)
    place.on(place.alpha, "ip", "route", "add", route, "dev", "uplink", back=back)


FAULTS = {
    "allowed IP missing here": Fault(_missing_here, r"no peer has 10\.200\..*add_allowed_ip"),
    "allowed IP missing there": Fault(_missing_there, r"lacks it among the allowed IPs.*add_allowed_ip pubkey="),
    "UDP closed by the input chain here": Fault(_input_drop(lambda place: place.alpha), r"table ip walls chain i"),
    "UDP closed by the input chain there": Fault(_input_drop(lambda place: place.beta), r"firewall drops the port"),
    "forward drop": Fault(_forward_drop, r"table ip walls chain f.*nft insert rule"),
    "no default route inside": Fault(_no_default_route, r"routes of pid.*have no way.*ip route replace default"),
    "another gateway inside": Fault(_other_gateway, r"routes of pid.*the gateway is"),
    "eth0 down": Fault(_eth0("down", back=("up",)), r"eth0 of pid.*is down.*link set eth0 up"),
    "eth0 down at the other end": Fault(
        _eth0("down", back=("up",), whose=lambda place: place.near), r"eth0 of pid.*is down", to_near
    ),
    "another MAC inside": Fault(_own_mac, r"eth0 of pid.*has the MAC 02:00:00:00:00:01"),
    "wrong MTU": Fault(_device_mtu, r"an MTU of \d+.*large packets are lost.*mtu"),
    "peer removed here": Fault(_peer_removed_here, r"no peer has 10\.200\."),
    "peer removed there": Fault(_peer_removed_there, r"on node .*: peers of device .* lack .*add_peer public_key="),
    "peer removed there, and nobody to ask": Fault(
        _alone(_peer_removed_there), r"removed this node's key from its peers"
    ),
    "key changed there": Fault(_key_changed_there, r"on node .* another key than the node that asks was told"),
    "key changed there, and nobody to ask": Fault(_alone(_key_changed_there), r"its own key has changed"),
    "nobody at the endpoint's port": Fault(
        _alone(lambda place: _other_endpoint(f"{place.beta.node.address}:51999")(place)), r"nobody is at its port"
    ),
    "nobody at the endpoint's address": Fault(
        _alone(_other_endpoint("172.31.0.250:51820")), r"does not answer a ping either|cannot be sent to"
    ),
    "no endpoint": Fault(_other_endpoint(""), r"endpoint of .* is not known"),
    "isolation": Fault(
        lambda place: None,
        r"isolation.*in the isolation network blue",
        lambda place: (str(place.near.pid), place.blue_address),
    ),
    "isolation from other nodes": Fault(
        lambda place: None, r"blue, which ends at this node", lambda place: (str(place.blue.pid), place.pair.db_address)
    ),
    "address that nobody has": Fault(
        lambda place: None, r"no peer has 10\.200\.250\.1", lambda place: (str(place.near.pid), "10.200.250.1")
    ),
    "address given up there": Fault(_detached_there, r"on node .*nobody has it there"),
    # wireguard-go gives its port up or keeps it, by chance.
    "device down there, without a daemon": Fault(
        _device_down_there, r"that host says that nobody is at its port|holds a session.*or its device be down"
    ),
    "forward drop there": Fault(_forward_drop_there, r"on node .*: .*table ip walls chain f.*nft insert rule"),
    "eth0 down there": Fault(
        _inside_there("ip", "link", "set", "eth0", "down", back=(("ip", "link", "set", "eth0", "up"), _DEFAULT)),
        r"on node .*: eth0 of pid:\d+ is down.*remedy: on node .*link set eth0 up",
    ),
    "no default route there": Fault(
        _inside_there("ip", "route", "del", "default", back=(_DEFAULT,)), r"on node .*: routes of pid.*have no way"
    ),
    "wrong MTU there": Fault(
        _inside_there("ip", "link", "set", "eth0", "mtu", "1500", back=(("ip", "link", "set", "eth0", "mtu", "1440"),)),
        r"on node .*: eth0 of pid:\d+ has an MTU of 1500",
    ),
    "isolation there": Fault(
        _isolated_there,
        r"on node .*: isolation .*green, which ends at this node",
        lambda place: (str(place.pair.web.pid), place.isolated),
    ),
    "address taken away inside": Fault(_taken_address, r"lacks its address", to_near),
    "name of nobody": Fault(
        _stale_name, r"name gone stands for .*nobody has", lambda place: (str(place.near.pid), "gone")
    ),
    "name points elsewhere": Fault(
        _name_elsewhere, r"which is in service web", lambda place: (str(place.near.pid), "cache")
    ),
    "a route of the host": Fault(_host_route, r"routes of this host lead to .* through uplink"),
    "no such end": Fault(
        lambda place: None,
        r"is no container, address, registered name",
        lambda place: (str(place.near.pid), "nonsense"),
    ),
    "device down": Fault(_link(lambda place: place.device_name, "down"), r"device zl-.*is down", stops=True),
    "bridge down": Fault(_link(_bridge, "down"), r"bridge zl-.*is down", stops=True),
    "host end of the veth down": Fault(_link(_port, "down"), r"veth-\d+-s is down", stops=True),
    "host end on no bridge": Fault(_link(_port, "nomaster"), r"veth-\d+-s is on no bridge", stops=True),
    "gateway's address gone": Fault(_gateway_gone, r"lacks the gateway's address", stops=True),
    "peer off the device": Fault(_peer_off_the_device, r"is not on the device", stops=True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(place: Place, name: str) -> None:
    fault = FAULTS[name]
    place.device_name = place.device
    options: list[str] = []
    if fault.stops:
        place.alpha.node.stop()
        place.undo.callback(place.alpha.start)
        options = ["--data-dir", str(place.alpha.node.data_dir)]
    fault.plant(place)
    code, said = why(place.alpha, *fault.ends(place), *options)
    assert re.search(fault.named, said.replace("\n", " ")), said
    assert code == 4, said
    assert "remedy: " in said


@pytest.mark.parametrize("number", range(7))
def test_nothing_is_named_on_healthy_ways(place: Place, number: int) -> None:
    web, beta = str(place.pair.web.pid), place.beta
    place.alpha.introduce(beta, name="beta")
    ways = [
        (web, place.pair.db_address),
        (web, "db"),
        (web, place.near_address),
        (place.near_address, place.other_address),
        ("node", "beta"),
        (web, "outside"),
        ("beta", web),
    ]
    code, said = why(place.alpha, *ways[number])
    assert code == 0 and "BROKEN" not in said, said
    if number < 6:
        assert said.endswith("all is well on this way\n"), said
    assert bool(re.search(r"ok +router \S+ answers a ping in", said)) == (number == 5), said
    code, said = why(place.alpha, *ways[number], "--json")
    assert {each["state"] for each in json.loads(said)["hops"]} <= {"ok", "unknown"}


def test_a_node_that_does_not_tell_its_side_is_no_fault(place: Place) -> None:
    place.beta.node.stop()
    place.undo.callback(place.beta.start)
    place.beta.start("--no-inquiries")
    place.undo.callback(place.beta.node.stop)
    code, said = why(place.alpha, str(place.pair.web.pid), place.pair.db_address)
    assert code == 0
    assert re.search(r"\?  +the side of node .* is not known: it does not answer", said), said
    assert said.endswith("the other end answers, though not every hop could be looked at\n")


def test_a_peer_is_pinged_through_the_tunnel(place: Place) -> None:
    said = place.alpha.node.overlayctl("ping", place.beta.public_key[:10], "-c", "2")
    assert len(re.findall(r"10\.200\.2\.1: \d+\.\d ms, direct to ", said)) == 2
    said = place.alpha.node.overlayctl("ping", place.beta.public_key[:10], "-c", "2", "--json")
    for told in map(json.loads, said.splitlines()):
        assert (told["address"], told["path"], told["milliseconds"] > 0) == ("10.200.2.1", "direct", True)
    assert said.count("\n") == 2
