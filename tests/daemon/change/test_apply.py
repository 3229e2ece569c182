"""The way there and back: what can be put back is, whatever else cannot."""

from errno import EBUSY, EEXIST, ESRCH
from ipaddress import ip_address, ip_interface, ip_network
from types import SimpleNamespace

import pytest

from overlayd.daemon.change import apply
from overlayd.daemon.change.apply import HalfDone, Kernel
from overlayd.errors import MechanismError
from overlayd.linux.nft import Nft
from overlayd.model.objects import GLOBAL, Bridge, DevicePeer, Netns, Route, Step, Veth


def leg(pid: int) -> Veth:
    return Veth(
        name=f"veth-{pid}-s",
        netns=Netns(pid, pid, pid),
        interface="eth0",
        service="web",
        bridge="zl-web-b",
        address=ip_interface(f"10.9.0.{pid}/24"),
        gateway=ip_address("10.9.0.1"),
        routes=frozenset({ip_network("0.0.0.0/0")}),
        mac=bytes(6),
        mtu=1340,
    )


def test_a_container_that_died_does_not_keep_the_others_from_coming_back(monkeypatch) -> None:
    """Veths are deleted together, and come back one by one."""
    back = []

    def create(veth: Veth) -> None:
        if veth.netns.pid == 2:
            raise MechanismError("find", "process 2", ESRCH)
        back.append(veth.netns.pid)

    monkeypatch.setattr(apply.veth, "create", create)
    kernel = Kernel(None, Nft())
    kernel.undo([Step(leg(pid), None) for pid in (1, 2, 3)])
    kernel.close()
    assert sorted(back) == [1, 3]


def test_one_route_that_cannot_be_made_does_not_keep_the_others_from_being_repaired(monkeypatch) -> None:
    """Routes of one device are made together, and then one by one."""
    made = []

    def create(routes: list[Route]) -> None:
        if any(route.destination == ip_network("10.3.7.0/24") for route in routes):
            raise MechanismError("add route", "10.3.7.0/24", EEXIST)
        made.append(len(routes))

    monkeypatch.setattr(apply.device, "create_routes", create)
    kernel = Kernel(None, Nft())
    steps = [Step(None, Route(GLOBAL, "zl-g", ip_network(f"10.3.{number}.0/24"))) for number in range(20)]
    failed = kernel.repair(steps)
    others = [step for step in steps if step != steps[7]]
    assert (kernel.repair(others), made) == ([], [1] * 19 + [19])
    kernel.close()
    assert [step for step, _ in failed] == [steps[7]]


def bridge(name: str) -> Bridge:
    return Bridge("web", name, ip_interface("10.9.0.1/24"), 1340)


def peer(endpoint: int) -> DevicePeer:
    return DevicePeer(GLOBAL, "zl-g", bytes(32), (ip_address("192.0.2.1"), endpoint), 0, frozenset())


@pytest.mark.parametrize(
    ("failing", "is_undone"),
    [
        ([Step(None, leg(2))], False),
        ([Step(leg(2), leg(3))], True),
        ([Step(None, peer(1)), Step(None, peer(2))], True),
    ],
    ids=["making one thing cleans up by itself", "a change may be half done", "peers are set together"],
)
def test_what_a_failure_leaves_to_be_undone(monkeypatch, failing: list[Step], is_undone: bool) -> None:
    def refuse(*_: object) -> None:
        raise MechanismError("change", "zl", EBUSY)

    first = Step(None, bridge("zl-web-b"))
    monkeypatch.setattr(apply.bridge, "create", lambda _: None)
    monkeypatch.setattr(apply.veth, "create", refuse)
    monkeypatch.setattr(apply.veth, "change", refuse)
    backend = SimpleNamespace(set_peers=refuse)
    kernel = Kernel(backend, Nft())  # type: ignore[arg-type]
    with pytest.raises(HalfDone) as caught:
        kernel.apply([first, *failing])
    kernel.close()
    assert isinstance(caught.value.error, MechanismError)
    assert caught.value.done == [first, *(failing if is_undone else [])]
