"""A container has its network while any process that was attached lives, and a thread stands for its process."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab import Lab, ping
from lab.cluster import Member
from lab.container import Container
from lab.patience import until
from lab.processes import name

THREADED = "import threading, time; threading.Thread(target=time.sleep, args=(300,)).start(); print(flush=True)"


@pytest.fixture(scope="module")
def serving() -> Iterator[Member]:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        member.set_up()
        member.set_up_service("web")
        yield member


@pytest.fixture
def fellow(serving: Member) -> Iterator[tuple[Container, "subprocess.Popen[bytes]"]]:
    """A container, and a second process in its namespace."""
    container = serving.lab.container()
    argv = ["nsenter", "-t", str(container.pid), "-n", "sleep", "300"]
    with subprocess.Popen(argv) as second:
        try:
            until(lambda: name(second.pid) == "sleep")
            yield container, second
        finally:
            second.kill()


def attach(member: Member, pid: int) -> str:
    answer = member.request(
        "attach_container", handle={"platform": "linux_pid", "pid": pid}, service="web", join_global=False
    )
    return str(answer["ip"])


def detach(member: Member, pid: int) -> None:
    member.request("detach_container", handle={"platform": "linux_pid", "pid": pid})


@pytest.mark.parametrize("leaving", ["first", "second"])
@pytest.mark.parametrize("how", ["detached", "dead", "dead while the daemon is down"])
def test_who_stays_keeps_the_network(
    serving: Member, fellow: tuple[Container, "subprocess.Popen[bytes]"], leaving: str, how: str
) -> None:
    container, second = fellow
    address = attach(serving, container.pid)
    assert attach(serving, second.pid) == address
    link = f"veth-{container.pid}-s"
    index = serving.node.run(["cat", f"/sys/class/net/{link}/ifindex"])
    going, staying = (container.pid, second.pid) if leaving == "first" else (second.pid, container.pid)
    if how == "detached":
        detach(serving, going)
        detach(serving, going)
    else:
        if "down" in how:
            serving.node.stop()
        if leaving == "first":
            container.kill()
        else:
            second.kill()
            second.wait()
        if "down" in how:
            serving.start()
    well = "all is as it should be\n"
    until(lambda: serving.node.try_overlayctl("doctor")[1].startswith(well), serving.node.log_tail)
    assert serving.node.run(["cat", f"/sys/class/net/{link}/ifindex"]) == index
    ping(serving.node, address)
    assert attach(serving, staying) == address
    detach(serving, staying)
    until(lambda: link not in serving.node.run(["ip", "-br", "link"]))


def test_a_process_that_was_never_attached_does_not_take_the_network_away(
    serving: Member, fellow: tuple[Container, "subprocess.Popen[bytes]"]
) -> None:
    container, second = fellow
    address = attach(serving, container.pid)
    detach(serving, second.pid)
    ping(serving.node, address)
    detach(serving, container.pid)


def test_a_thread_stands_for_its_process(serving: Member) -> None:
    argv = ["unshare", "-n", sys.executable, "-c", THREADED]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (thread,) = {int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()} - {process.pid}
        address = attach(serving, thread)
        assert attach(serving, process.pid) == address
        assert f"veth-{process.pid}-s" in serving.node.run(["ip", "-br", "link"])
        assert f"veth-{thread}-s" not in serving.node.run(["ip", "-br", "link"])
        detach(serving, thread)
        assert f"veth-{process.pid}-s" not in serving.node.run(["ip", "-br", "link"])
        process.kill()


def test_many_processes_come_and_go_at_the_same_time(serving: Member) -> None:
    """Each over a connection of its own; the network stays with the last of them."""
    container = serving.lab.container()
    argv = ["nsenter", "-t", str(container.pid), "-n", "sleep", "300"]
    fellows = [subprocess.Popen(argv) for _ in range(7)]
    link = f"veth-{container.pid}-s"
    try:
        until(lambda: all(name(each.pid) == "sleep" for each in fellows))
        attach(serving, container.pid)
        crowd = [container.pid, *(each.pid for each in fellows)]

        def ask(op: str, pid: int, **keys: object) -> dict[str, object]:
            with serving.node.connect() as connection:
                return connection.request(op, handle={"platform": "linux_pid", "pid": pid}, **keys)

        with ThreadPoolExecutor(len(crowd)) as pool:
            for _ in range(3):
                asked = [pool.submit(ask, "attach_container", pid, service="web", join_global=False) for pid in crowd]
                assert len({each.result()["ip"] for each in asked}) == 1
                list(pool.map(lambda pid: ask("detach_container", pid), crowd[:-1]))
                assert link in serving.node.run(["ip", "-br", "link"])
        for each in fellows:
            each.kill()
            each.wait()
        until(lambda: link not in serving.node.run(["ip", "-br", "link"]))
    finally:
        for each in fellows:
            each.kill()
            each.wait()
