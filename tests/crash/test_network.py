"""What is read by rtnetlink is what ip(8) and bridge(8) show."""

import json
from pathlib import Path
from typing import Any

import pytest

from crash.cell import Cell, inside
from crash.network import Network
from crash.scenarios import BUSY, DEDICATED, FIRST, SECOND, SIXES, SLICED, Step, attach, container, enter, service
from crash.trial import perform
from crash.view import difference, links_and_routes

TABLES = {
    "links": ["ip -j -d address"],
    "routes": ["ip -j route show table all", "ip -j -6 route show table all"],
    "proxies": ["ip -j -4 neigh show proxy", "ip -j -6 neigh show proxy"],
    "entries": ["bridge -j fdb show"],
}
# Nothing of ours: every kind of route, two tables of somebody else, and a metric.
STRANGER = """\
link add stranger type veth peer name other
link property add dev stranger altname a-second-name
link set stranger up
link set other up
address add 192.0.2.1/24 dev stranger
address add 2001:db8::1/64 dev stranger nodad
route add blackhole 198.51.100.1/32
route add prohibit 198.51.100.0/26 table 77
route add unreachable 2001:db8:1::/48 metric 7
route add 198.51.100.64/26 via 192.0.2.2 table default
route add 2001:db8:2::/48 via 2001:db8::2 proto static src 2001:db8::1
neighbour add proxy 2001:db8::9 dev stranger
"""
MACHINES: dict[str, tuple[Step, ...]] = {
    "nothing": (),
    "containers": (*BUSY, DEDICATED, enter(SECOND, "w", "net0", default_route=False)),
    "IPv6": (SIXES, service(), container(FIRST), attach(FIRST, join_global=True)),
    "a slice": (*SLICED, attach(join_global=True), enter(SECOND, "s")),
}


def by_programs(cell: Cell, within: list[str]) -> dict[str, Any]:
    listed = {
        table: [each for command in commands for each in json.loads(cell.run([*within, *command.split()]))]
        for table, commands in TABLES.items()
    }
    return {
        "links": links_and_routes(listed["links"], listed["routes"]),
        "proxies": sorted([proxy["dst"], proxy["dev"]] for proxy in listed["proxies"]),
        "entries": sorted([each["mac"], each["ifname"]] for each in listed["entries"] if each.get("state") == "static"),
    }


def by_ourselves(namespace: str) -> dict[str, Any]:
    with Network(Path(namespace)) as network:
        return {
            "links": links_and_routes(network.links(), network.routes()),
            "proxies": sorted(map(list, network.proxies())),
            "entries": sorted(map(list, network.static_entries())),
        }


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_is_read_as_programs_show_it(machine: str) -> None:
    def work(cell: Cell) -> list[Any]:
        cell.start()
        for step in MACHINES[machine]:
            answer = perform(cell, step)
            assert answer is not None, cell.last_words()
            assert answer["result"] != "err", (step, answer)
        cell.run(["ip", "-batch", "-"], STRANGER)
        found = [[by_programs(cell, []), by_ourselves("/proc/self/ns/net")]]
        for pid in sorted(cell.containers):
            own = f"/proc/{pid}/ns/net"
            found.append([by_programs(cell, ["nsenter", f"--net={own}"]), by_ourselves(own)])
        return found

    found = inside(work)
    assert "link stranger" in found[0][0]["links"]
    assert found[0][0]["proxies"]
    for programs, ourselves in found:
        assert not difference(programs, ourselves)


def test_a_link_that_came_after_the_links_were_listed_has_the_name_that_ip_gives_it() -> None:
    def work(cell: Cell) -> list[str | None]:
        with Network() as network:
            cell.run(["ip", "link", "add", "late", "index", "77", "type", "bridge"])
            cell.run(["ip", "link", "set", "late", "up"])
            cell.run(["ip", "address", "add", "192.0.2.1/24", "dev", "late"])
            return [route.get("dev") for route in network.routes()]

    assert "if77" in inside(work)
