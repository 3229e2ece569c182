"""Every kind of NAT against every other, and how long a tunnel takes to come back when its path is gone.

`make nat-matrix` runs all of it, and says how long each took; `make test` a sample, with more patience.  Changed
candidates are carried from node to node, as orchestrators do.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations_with_replacement

import pytest
from lab import Lab, Ping
from lab.cluster import PORT, Member
from lab.nat_kinds import KINDS, behave, forget
from lab.patience import FACTOR, LIMIT, until
from lab.processes import run
from lab.turn import CREDENTIAL, USERNAME, coturn
from lab.turn import PORT as STUN_PORT

WHOLE = "OVERLAYD_NAT_MATRIX" in os.environ
RECOVERY = 20 * FACTOR if WHOLE else LIMIT  # seconds; a session that nobody gives up lasts 180 s
PUBLIC, SECOND = "public", "172.31.0.200"

pytestmark = pytest.mark.timeout(600)
only_whole = pytest.mark.skipif(not WHOLE, reason="make nat-matrix runs it")


def reached(one: str, other: str) -> set[str]:
    """How full ICE connects two nodes behind such NATs."""
    kinds = {one, other}
    if kinds & {"symmetric"}:
        alone = kinds == {"symmetric"}
        return {"relayed"} if alone or kinds & {"port", "moved"} else {"direct", "hole-punched"}
    return {"direct", "hole-punched"}


class Bed:
    """A STUN and TURN server, two nodes behind NATs of these kinds, and a container on each."""

    def __init__(self, lab: Lab, stack: ExitStack, *kinds: str) -> None:
        self.lab, self.stack = lab, stack
        self.server = lab.node("server")
        self.server.run(["ip", "address", "add", f"{SECOND}/24", "dev", "uplink"])
        self.relay = ExitStack()
        stack.callback(self.relay.close)
        self.start_relay()
        self.members = []
        for number, (name, kind) in enumerate(zip(("alpha", "beta"), kinds, strict=True)):
            box = None
            if kind != PUBLIC:
                box = lab.nat(f"{name[0]}-nat", symmetric=kind == "symmetric")
                behave(box, kind, PORT)
            self.members.append(Member(lab, number + 1, name, behind=box))
        address = str(self.server.address)
        nat = {
            "stun_servers": [f"{address}:{STUN_PORT}", f"{SECOND}:{STUN_PORT}"],
            "turn_servers": [{"addr": f"{address}:{STUN_PORT}", "username": USERNAME, "credential": CREDENTIAL}],
            "stun_refresh_interval_secs": 10,
        }
        for member, kind in zip(self.members, kinds, strict=True):
            member.start()
            member.set_up(nat)
            until(lambda member=member: member.candidates("relay"))
            if kind != PUBLIC:
                until(lambda member=member: member.candidates("server-reflexive"))
        self.told = [member.candidates() for member in self.members]
        self.containers = (lab.container(), lab.container())
        addresses = []
        for member, container in zip(self.members, self.containers, strict=True):
            member.set_up_service("web")
            addresses.append(member.attach(container, "web"))
        alpha, beta = self.members
        self.ping = Ping(self.containers[0], addresses[1], 0.1)
        self.began = time.monotonic()
        for one, other, address in ((alpha, beta, addresses[1]), (beta, alpha, addresses[0])):
            one.introduce_by_candidates(other)
            other.announce(one, address)

    def start_relay(self) -> None:
        """Start the server, or the next one on the same address."""
        self.relay.close()
        self.relay.enter_context(coturn(self.server, self.lab.directory, "-L", SECOND))

    def carry(self) -> None:
        """Tell each node the other's candidates when they have changed."""
        for place, (one, other) in enumerate((self.members, self.members[::-1])):
            now = one.candidates()
            if now != self.told[place]:
                self.told[place] = now
                other.introduce_by_candidates(one)

    def types(self) -> set[str]:
        return {peer["connection_type"] for member in self.members for peer in member.request("nat_status")["peers"]}

    def connected(self, types: set[str]) -> float:
        """Seconds to the first echo; both sides then reach each other in one of these ways."""
        until(lambda: self.ping.received)
        took = time.monotonic() - self.began
        until(lambda: self.types() <= types, self.types)
        return took

    def recover(self, break_path: Callable[[], object]) -> float:
        """Seconds from a break of the path to the third echo after the silence."""
        break_path()
        began, heard = time.monotonic(), len(self.ping.received)
        quiet = began
        while time.monotonic() < began + RECOVERY:
            self.carry()
            time.sleep(0.1)
            now = len(self.ping.received)
            if now >= heard + 3 and time.monotonic() > quiet + 1:
                return time.monotonic() - began
        raise TimeoutError(f"no traffic within {RECOVERY:g} s; {self.types()}")


@pytest.fixture
def bed() -> Iterator[Callable[..., Bed]]:
    with Lab() as lab, ExitStack() as stack:

        def make(*kinds: str) -> Bed:
            made = Bed(lab, stack, *kinds)
            stack.callback(made.ping.stop)
            return made

        yield make


SAMPLE = [(PUBLIC, "symmetric"), ("address", "moved"), ("moved", "symmetric")]
CELLS = list(combinations_with_replacement((PUBLIC, *KINDS), 2))


@pytest.mark.parametrize(("one", "other"), CELLS if WHOLE else SAMPLE)
def test_a_cell(bed: Callable[..., Bed], one: str, other: str) -> None:
    took = bed(one, other).connected(reached(one, other))
    print(f"{one} - {other}: first echo after {took:.1f} s")


# --- what becomes of a path ------------------------------------------------------------------------------------------


def give_other_port(bed: Bed) -> None:
    behave(bed.members[0].nat, "moved", PORT, moved_to=41000)
    forget(bed.members[0].nat)


def forget_mappings(bed: Bed) -> None:
    for member in bed.members:
        forget(member.nat)


def forbid(bed: Bed) -> None:
    """Let a firewall drop all that passes between the two NATs."""
    for member, other in (bed.members, bed.members[::-1]):
        table = (
            "table ip forbid {\n chain forward {\n type filter hook forward priority -10\n"
            f" ip daddr {other.nat.address} drop\n ip saddr {other.nat.address} drop\n }}\n}}\n"
        )
        run(["ip", "netns", "exec", member.nat.netns, "nft", "-f", "-"], stdin=table)


def allow(bed: Bed) -> None:
    for member in bed.members:
        run(["ip", "netns", "exec", member.nat.netns, "nft", "delete", "table", "ip", "forbid"])


def change_address(bed: Bed) -> None:
    """Of the node that only answers."""
    node = bed.members[1].node
    gateway = node.run(["ip", "route", "show", "default"]).split()
    node.run(["ip", "address", "flush", "dev", "uplink", "scope", "global"])
    node.run(["ip", "address", "add", "172.31.0.210/24", "dev", "uplink"])
    node.run(["ip", "route", "replace", *gateway])


def restart_both(bed: Bed) -> None:
    for member in bed.members:
        member.node.stop()
    for member in bed.members:
        member.start()


EVENTS = [
    pytest.param(("moved", "port"), give_other_port, id="the NAT gives another port"),
    pytest.param(("port", "port"), forbid, id="a firewall closes the direct way"),
    pytest.param(("symmetric", "symmetric"), Bed.start_relay, id="the relay was restarted"),
    pytest.param(("port", "moved"), forget_mappings, id="the NATs forget their mappings", marks=only_whole),
    pytest.param((PUBLIC, PUBLIC), change_address, id="a node gets another address", marks=only_whole),
    pytest.param(("symmetric", "symmetric"), restart_both, id="both relayed nodes are restarted", marks=only_whole),
    pytest.param(("port", "port"), restart_both, id="both nodes are restarted", marks=only_whole),
]


@pytest.mark.parametrize(("kinds", "event"), EVENTS)
def test_traffic_comes_back(bed: Callable[..., Bed], kinds: tuple[str, str], event: Callable[[Bed], object]) -> None:
    made = bed(*kinds)
    made.connected(reached(*kinds))
    took = made.recover(lambda: event(made))
    print(f"{kinds[0]} - {kinds[1]}: back after {took:.1f} s")


def test_a_relayed_peer_goes_back_to_a_direct_way_that_opens(bed: Callable[..., Bed]) -> None:
    made = bed("port", "port")
    made.connected({"hole-punched"})
    made.recover(lambda: forbid(made))
    until(lambda: made.types() == {"relayed"}, made.types)
    before = len(made.ping.received)
    allow(made)
    until(lambda: made.types() == {"hole-punched"}, made.types)
    until(lambda: len(made.ping.received) > before + 50)
