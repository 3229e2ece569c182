"""Containers that come and go by CNI while shims and the daemon are killed, and namespaces removed: nothing is lost.

OVERLAYD_CNI_CYCLES: how many times an interface comes; `make cni-cycles` does ten thousand.
"""

import os
import random
import subprocess
import time
from collections.abc import Iterator

import pytest
from cni.shim import CONFIG, call, finish, start, variables
from lab import Lab
from lab import netns as names
from lab.cluster import Member
from lab.patience import until
from lab.processes import run

CYCLES = int(os.environ.get("OVERLAYD_CNI_CYCLES", "80"))
PLACES = 12  # namespaces
SLICE = {**CONFIG, "subnet": "slice"}


class Place:
    """Where containers come and go, one after the other, each in a namespace of that name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = str(names.DIRECTORY / name)
        self.generation = 0
        self.address = ""  # of what is attached for certain
        run(["ip", "netns", "add", name])

    @property
    def id(self) -> str:
        return f"{self.name}-{self.generation}"

    def renew(self) -> None:
        """The container is gone with its namespace, and another one is there."""
        run(["ip", "netns", "del", self.name])
        run(["ip", "netns", "add", self.name])
        self.generation += 1
        self.address = ""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


def test_nothing_is_lost_or_held_twice(lab: Lab) -> None:
    rng = random.Random(CYCLES)
    member = Member(lab, 1, "alpha")
    member.start()
    member.set_up({"enabled": False})
    path = member.node.socket.with_name("cni.sock")
    places = [Place(f"{lab.prefix}-p{number}") for number in range(PLACES)]
    killed: dict[str, int] = {"shim": 0, "daemon": 0, "namespace": 0}

    def begin(command: str, place: Place) -> "subprocess.Popen[bytes]":
        return start(variables(command, path, containerid=place.id, netns=place.path), SLICE)

    def disturb(process: "subprocess.Popen[bytes]") -> bool:
        """Perhaps kill the shim, or the daemon, somewhere on the way; whether the shim is gone."""
        chance = rng.random()
        if chance < 0.15:
            time.sleep(rng.random() / 200)
            process.kill()
            process.communicate()
            killed["shim"] += 1
            return True
        if chance < 0.17:
            time.sleep(rng.random() / 200)
            member.node.kill()
            member.start()
            killed["daemon"] += 1
        return False

    for _ in range(CYCLES):
        place = rng.choice(places)
        adding = begin("ADD", place)
        if not disturb(adding):
            ended = finish(adding)
            assert ended.exit == 0, ended.stdout
            place.address = ended.told["ips"][0]["address"]
            others = {other.address for other in places if other is not place} - {""}
            assert place.address not in others, "an address is held twice"
        if rng.random() < 0.1:
            place.renew()
            killed["namespace"] += 1
        elif rng.random() < 0.8:
            deleting = begin("DEL", place)
            if not disturb(deleting):
                assert finish(deleting) == (0, "")
                place.generation += rng.random() < 0.5
            place.address = ""
    for place in places:
        assert call("DEL", path, SLICE, containerid=place.id) == (0, "")
        run(["ip", "netns", "del", place.name])

    def held() -> list[str]:
        listed = member.request("list", what="addresses").get("addresses", [])
        return [each["holder"] for each in listed if each["holder"].startswith("netns:")]

    until(lambda: not held(), "addresses are held by nobody")
    assert member.request("list", what="containers").get("containers", []) == []
    assert "zl-c" not in member.node.run(["ip", "-o", "link"])
    assert member.findings() == []
    assert min(killed.values()) > 0 or CYCLES < 80, killed
