"""An attach that cannot be done says why, and leaves no link, no address and no record."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lab import Lab, Refused
from lab.cluster import Member

CONTAINERS_OF_A_26 = 61  # 64 addresses less network, broadcast and gateway


@contextmanager
def unchanged(member: Member) -> Iterator[None]:
    """What the kernel shows and what `status` tells are the same after the block as before; but for how many findings
    there are, which change by the clock.
    """
    kernel, status = member.node.footprint(), member.request("status")
    yield
    assert member.node.footprint() == kernel
    assert member.request("status") | {"findings": status["findings"]} == status


def host_pid(member: Member) -> int:
    """A process that lives in the node's own namespace: the daemon."""
    assert member.node.daemon is not None
    return member.node.daemon.pid


def dead_pid(_member: Member) -> int:
    """The number of a process that is gone."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    return gone.pid


@pytest.mark.parametrize(
    ("pid", "says"), [(dead_pid, "does not exist|no process|no such process"), (host_pid, "host")], ids=["dead", "host"]
)
def test_a_pid_that_is_no_container(member: Member, lab: Lab, pid: Callable[[Member], int], says: str) -> None:
    service = f"refuses-{pid.__name__}"
    member.set_up_service(service)
    number = pid(member)
    with unchanged(member), pytest.raises(Refused, match=f"(?i){says}") as refusal:
        member.request("attach_container", handle=handle(number), service=service, join_global=True)
    assert str(number) in str(refusal.value)
    address = member.attach(lab.container(), service)
    assert address.endswith(first_address_suffixes()), "the refused attach kept an address"


def handle(pid: int) -> dict[str, Any]:
    return {"platform": "linux_pid", "pid": pid}


def first_address_suffixes() -> tuple[str, ...]:
    """The last bytes of the first container address of every /26: network, gateway, then it."""
    return tuple(f".{start + 2}" for start in range(0, 256, 64))


def test_an_unknown_service(member: Member, lab: Lab) -> None:
    container = lab.container()
    with unchanged(member), pytest.raises(Refused, match=r"nowhere"):
        member.attach(container, "nowhere")
    assert interfaces(container) == ["lo"]


def test_a_full_subnet(member: Member, lab: Lab) -> None:
    member.set_up_service("crowd")
    crowd = [lab.container() for _ in range(9)]
    addresses = [member.attach(container, "crowd") for container in crowd]
    while len(addresses) < CONTAINERS_OF_A_26:
        addresses.append(member.request("allocate_ip", service="crowd", join_global=False)["ip"])
    assert len(set(addresses)) == CONTAINERS_OF_A_26
    latecomer = lab.container()
    with unchanged(member), pytest.raises(Refused, match=r"crowd.*61"):
        member.attach(latecomer, "crowd")
    assert interfaces(latecomer) == ["lo"]
    member.detach(crowd[4])
    assert member.attach(latecomer, "crowd") == addresses[4]


def test_a_second_service_for_one_container(member: Member, lab: Lab) -> None:
    container = lab.container()
    for service in ("first", "second"):
        member.set_up_service(service)
    address = member.attach(container, "first")
    with unchanged(member), pytest.raises(Refused, match=r"first"):
        member.attach(container, "second")
    assert member.attach(container, "first") == address
    assert interfaces(container) == ["eth0", "lo"]


def test_an_attach_and_its_detach_cancel_out(member: Member, lab: Lab) -> None:
    member.set_up_service("passing")
    container = lab.container()
    with unchanged(member):
        member.attach(container, "passing", join_global=True)
        assert interfaces(container) == ["eth0", "eth1", "lo"]
        member.detach(container)
        member.detach(container)
    assert interfaces(container) == ["lo"]


def interfaces(place: Any) -> list[str]:
    """The names of the interfaces in a container, sorted."""
    return sorted(line.split("@")[0].split()[0] for line in place.run(["ip", "-br", "link"]).splitlines())
