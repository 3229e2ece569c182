"""The README's quick start, pasted word for word into the terminals of two nodes."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab import Lab, Node
from lab.patience import LIMIT
from lab.processes import ROOT, environment
from pages import blocks_of

# Pasted before anything else: what fails is told, whatever the next command does.
TRAP = "trap 'echo \"failed: $BASH_COMMAND\"' ERR\n"
SECONDS = LIMIT  # for a block


def blocks() -> list[str]:
    """The shell blocks of the quick start."""
    readme = (ROOT / "README.md").read_text()
    chapter = readme.partition("\n## Quick start\n")[2].partition("\n### ")[0]
    return blocks_of(chapter)


class Terminal:
    """A shell on a node, in a clone that is built; what is pasted and what appears."""

    def __init__(self, node: Node, log: Path) -> None:
        self._log = log
        with log.open("wb") as into:
            self.shell = subprocess.Popen(
                node.command(["bash"]),
                stdin=subprocess.PIPE,
                stdout=into,
                stderr=subprocess.STDOUT,
                # A node has a /run of its own, but no /var/lib.
                env=environment(node.prefix) | {"OVERLAYD_DATA_DIR": str(node.data_dir)},
                cwd=ROOT,
                start_new_session=True,
            )
        self._pasted = 0
        self.paste(TRAP)

    def paste(self, text: str) -> None:
        """Send text, whether the shell is ready for it or not."""
        assert self.shell.stdin is not None
        self.shell.stdin.write(text.encode())
        self.shell.stdin.flush()

    def run(self, text: str) -> str:
        """Paste a block, and wait until it is done; what appeared meanwhile."""
        before = len(self.shown)
        self._pasted += 1
        end = f"--- block {self._pasted} ends ---"
        self.paste(f"{text}echo '{end}'\n")
        self.wait_for(end)
        shown = self.shown[before:].partition(end)[0]
        assert "failed: " not in shown, shown
        return shown

    @property
    def shown(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.shown:
            assert self.shell.poll() is None, self.shown
            assert time.monotonic() < deadline, f"{text!r} did not appear in:\n{self.shown}"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Ctrl-C: end what runs in the foreground, and come back to the prompt."""
        for child in psutil.Process(self.shell.pid).children():
            child.send_signal(signal.SIGINT)
        self.run("")

    def close(self) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.close()
        self.shell.wait(SECONDS)


class Person:
    """Who follows the quick start on one of the two nodes."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.number = number
        self.node = lab.node(f"node{number}")
        self.node.run(["ip", "address", "add", f"192.0.2.{number}/24", "dev", "uplink"])
        self.first = Terminal(self.node, lab.directory / f"first{number}")
        self.second = Terminal(self.node, lab.directory / f"second{number}")

    def start_daemon(self, block: str) -> None:
        self.first.paste(block)
        self.first.wait_for(" serves /run/overlayd/overlayd.sock")

    def set_up(self, own: str, block: str) -> None:
        """Say which node it is, set it up, and note what the answers show."""
        self.second.run(own)
        shown = self.second.run(block)
        key, subnet = re.search(r"^public key +(\S+)$", shown, re.M), re.search(r"^web +shared +(\S+)", shown, re.M)
        assert key and subnet, shown
        answers = [json.loads(each) for each in re.findall(r"^\{\n.*?^\}$", shown, re.M | re.S)]
        self.address = next(answer["ip"] for answer in answers if answer["result"] == "attached")
        self.announced = f"{key[1]} {subnet[1]} {self.address}"
        assert [answer["subnet"] for answer in answers if "subnet" in answer] == [subnet[1]] * 2


@pytest.fixture
def people() -> Iterator[tuple[Person, Person]]:
    with Lab() as lab:
        yield Person(lab, 1), Person(lab, 2)


def test_pasted_on_two_nodes_it_ends_in_a_ping_and_a_name(people: tuple[Person, Person]) -> None:
    start, *own, set_up, read, introduce, try_out, take_down = blocks()
    assert len(own) == len(people)
    bare = [person.node.footprint()["links"] for person in people]
    for person in people:
        person.start_daemon(start)
    for person, which in zip(people, own, strict=True):
        person.set_up(which, set_up)
    for person, other in zip(people, people[::-1], strict=True):
        person.second.paste(read)
        person.second.run(f"{other.announced}\n")
        person.second.run(introduce)
    for person, other in zip(people, people[::-1], strict=True):
        shown = person.second.run(try_out)
        assert "3 packets transmitted, 3 received, 0% packet loss" in shown
        assert shown.splitlines()[-3:] == [other.address, other.address, "web.overlay.local."]
    for person, links in zip(people, bare, strict=True):
        person.first.interrupt()
        person.second.run(take_down)
        assert person.node.footprint()["links"] == links
        person.first.close()
        person.second.close()
