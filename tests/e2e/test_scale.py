"""Three hundred containers on one node: attached, adopted by the next daemon, and gone again."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab
from lab.cluster import Member
from lab.crowd import Crowd
from lab.frames import request_frame
from lab.patience import until

SIZE = 300


class Crowded:
    """A node with a crowd of containers attached to one service."""

    def __init__(self, lab: Lab, crowd: Crowd) -> None:
        self.crowd = crowd
        self.member = Member(lab, 1, "alpha")
        self.member.start()
        self.member.set_up()
        self.member.request("setup_service_overlay", service="web", mode="shared", subnet="10.200.64.0/22")
        self.addresses = self.attach()

    def attach(self) -> list[str]:
        """Attach them all, pipelined; return their addresses."""
        connection = self.member.connection
        handles = ({"platform": "linux_pid", "pid": pid} for pid in self.crowd.pids)
        frames = (
            request_frame(number, "attach_container", handle=handle, service="web", join_global=False)
            for number, handle in enumerate(handles)
        )
        connection.send(b"".join(frames))
        answers = [connection.receive() for _ in self.crowd.pids]
        return [answer["response"]["ip"] for answer in sorted(answers, key=lambda answer: int(answer["id"]))]


@pytest.fixture(scope="module")
def crowded() -> Iterator[Crowded]:
    with Lab() as lab, Crowd(lab.prefix, SIZE) as crowd:
        yield Crowded(lab, crowd)


def test_each_has_an_address_of_its_own(crowded: Crowded) -> None:
    assert len(set(crowded.addresses)) == SIZE
    assert crowded.attach() == crowded.addresses


def test_the_next_daemon_adopts_them_all(crowded: Crowded) -> None:
    member = crowded.member
    before = member.node.footprint()
    started = time.monotonic()
    member.node.kill()
    member.start()
    print(f"restart with {SIZE} containers: {time.monotonic() - started:.2f} s")
    assert member.node.footprint() == before
    assert crowded.attach() == crowded.addresses


def test_a_bridge_that_is_deleted_comes_back_with_all_its_ports(crowded: Crowded) -> None:
    node = crowded.member.node
    before = ports(node.footprint())
    node.run(["ip", "link", "del", crowded.member.set_up_service("web")])
    until(lambda: ports(node.footprint()) == before, node.log_tail)


def ports(footprint: dict[str, Any]) -> list[str]:
    """The links without their indexes, which are new when they were made anew."""
    return sorted(str(link[1:]) for link in footprint["links"])


def test_those_who_die_together_are_given_up_together(crowded: Crowded) -> None:
    crowded.crowd.__exit__(None, None, None)
    until(lambda: "veth-" not in crowded.member.node.run(["ip", "-br", "link"]), crowded.member.node.log_tail)
