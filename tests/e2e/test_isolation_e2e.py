"""Isolation networks as an orchestrator asks for them: who reaches whom, over the socket and with real connections.

The rules alone are tested more widely in tests/linux/test_isolation.py; here it counts that attach, restart, detach and
death put the right members into them.
"""

import contextlib
import re
import selectors
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from lab import Container, Lab, Node, ping
from lab.cluster import CLUSTER, CLUSTER6, Member, Pair
from lab.patience import LIMIT, until

PORT = 7
# On alpha: name -> service, network.
CONTAINERS = {
    "a1": ("web", "blue"),
    "a2": ("web", "blue"),
    "a3": ("api", "blue"),
    "b1": ("web", "green"),
    "b2": ("api", "green"),
    "p1": ("web", ""),
    "p2": ("api", ""),
}
ORDINARY = ("p1", "p2", "remote")  # in no network; the remote one is behind the tunnel


class Outside:
    """The host outside, as a place where traffic ends."""

    def __init__(self, lab: Lab) -> None:
        self.open_socket = lab.open_outside


class Matrix:
    """All places, their addresses, and a listener on each."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.alpha = pair, pair.alpha
        self.family = socket.AF_INET6 if ip_network(pair.alpha.cluster).version == 6 else socket.AF_INET
        self.places: dict[str, Container | Node | Outside] = {
            "remote": pair.db,
            "node": pair.alpha.node,
            "outside": Outside(pair.lab),
        }
        self.addresses = {
            "remote": pair.db_address,
            "node": str(ip_network(pair.alpha.slice)[1]),
            "outside": str(pair.lab.outside_address.ip),
        }
        self.alpha.set_up_service("api")
        for name, (service, network) in CONTAINERS.items():
            container = pair.lab.container()
            keys = {"isolation_network": network} if network else {}
            self.places[name] = container
            self.addresses[name] = self.alpha.attach(container, service, **keys)
        self.alpha.announce(pair.beta, self.addresses["p2"])
        ping(pair.web, pair.db_address)  # one handshake, before both ends begin one at the same time
        self.listeners = [self._listen(name) for name in self.places]

    def _listen(self, name: str) -> socket.socket:
        listener = self.places[name].open_socket(self.family, socket.SOCK_STREAM)
        listener.bind((self.addresses[name], PORT))
        listener.listen(64)
        return listener

    def reached(self, cells: dict[tuple[str, str], bool]) -> dict[tuple[str, str], bool]:
        """Connect along all `cells` at once; which of them were answered.

        Waits for those that should be (5 s at most), and a little longer for those that should not.
        """
        answered = dict.fromkeys(cells, False)
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for cell in cells:
                client = stack.enter_context(self.places[cell[0]].open_socket(self.family, socket.SOCK_STREAM))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect((self.addresses[cell[1]], PORT))
                selector.register(client, selectors.EVENT_WRITE, cell)
            missing = {cell for cell, passes in cells.items() if passes}
            deadline = time.monotonic() + LIMIT
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    selector.unregister(key.fileobj)
                    error = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
                    answered[key.data] = not error
                    missing.discard(key.data)
                if not missing:
                    missing = {("", "")}
                    deadline = min(deadline, time.monotonic() + 0.3)
        return answered


def passes(source: str, target: str) -> bool:
    networks = {name: network for name, (_, network) in CONTAINERS.items() if network}
    if source in networks and target in networks:
        return networks[source] == networks[target]
    if source in networks:
        return target in ("node", "outside")
    return target not in networks or source == "node"


CELLS = {
    (source, target): passes(source, target)
    for source in (*CONTAINERS, "remote", "node")
    for target in (*CONTAINERS, "remote", "node", "outside")
    if source != target
}


@pytest.fixture(scope="module", params=[CLUSTER, CLUSTER6], ids=["ipv4", "ipv6"])
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    with Lab(ipv6=request.param == CLUSTER6) as lab:
        matrix = Matrix(Pair(lab, request.param))
        yield matrix
        for listener in matrix.listeners:
            listener.close()


def check(matrix: Matrix) -> None:
    reached = matrix.reached(CELLS)
    wrong = [
        f"{a} -> {b} {'passes' if reached[a, b] else 'does not pass'}" for a, b in CELLS if reached[a, b] != CELLS[a, b]
    ]
    assert not wrong, wrong


def test_the_matrix_is_large_enough_to_mean_something() -> None:
    assert len(CELLS) >= 80
    assert sum(CELLS.values()) >= 24 and sum(not passing for passing in CELLS.values()) >= 24


def test_who_reaches_whom(matrix: Matrix) -> None:
    check(matrix)


def test_after_a_crash_and_a_restart_as_before(matrix: Matrix) -> None:
    matrix.alpha.node.kill()
    matrix.alpha.start()
    check(matrix)


def members(member: Member) -> str:
    """All that our tables hold, but for what packets have put there."""
    shown = member.node.run(["nft", "list", "ruleset"])
    return re.sub(r"\tset (link_local|newcomers) \{.*?\n\t\}\n", "", shown, flags=re.DOTALL)


def test_membership_ends_with_detach_and_death(matrix: Matrix) -> None:
    alpha, pair = matrix.alpha, matrix.pair
    before = members(alpha)
    gone, dead = pair.lab.container(), pair.lab.container()
    addresses = [alpha.attach(each, "web", isolation_network="red") for each in (gone, dead)]
    assert all(f"{address} :" in members(alpha) for address in addresses)
    alpha.detach(gone)
    assert f"{addresses[0]} :" not in members(alpha)
    dead.kill()
    until(lambda: members(alpha) == before, "a dead container is still a member")


def test_guests_and_host_shared_containers_are_members_too(matrix: Matrix) -> None:
    alpha = matrix.alpha
    before = members(alpha)
    handles = [{"platform": platform, "id": "m"} for platform in ("guest_managed", "host_shared")]
    for handle in handles:
        answer = alpha.request(
            "attach_container", handle=handle, service="web", join_global=False, isolation_network="blue"
        )
        assert f"{answer.get('ip') or answer['overlay_ip']} :" in members(alpha)
        alpha.request("detach_container", handle=handle)
    assert members(alpha) == before
