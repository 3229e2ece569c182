"""A failure in what listens to the kernel: it listens again, and looks at all that it may have missed."""

import sys

from lab import Lab
from lab.cluster import Member
from lab.patience import until

# A bug in the reading of one kind of event, as a link of a certain name shows it.
PROGRAM = [
    sys.executable,
    "-c",
    """
from overlayd.cli import daemon
from overlayd.daemon.upkeep.suspects import Judge
judge = Judge.judge
def cursed(self, event):
    if "cursed" in str(event):
        raise KeyError("cursed")
    judge(self, event)
Judge.judge = cursed
daemon()
""",
]


def test_what_happens_during_a_failure_and_after_it_is_put_right(lab: Lab) -> None:
    member = Member(lab, 9, "deaf")
    node = member.node
    node.program = PROGRAM
    member.start()
    member.set_up()
    bridge = member.set_up_service("web")
    for failures, change in enumerate(["add cursed type bridge", "delete cursed"], 1):
        node.run(["ip", "link", *change.split()])
        until(lambda: node.log.read_text().count("KeyError: 'cursed'") == failures, node.log_tail)  # noqa: B023
        node.run(["ip", "link", "delete", bridge])  # nobody hears of it
        until(lambda: bridge in node.run(["ip", "-br", "link"]), node.log_tail)
    node.run(["ip", "link", "delete", bridge])
    until(lambda: bridge in node.run(["ip", "-br", "link"]), node.log_tail)
    assert node.log.read_text().count("Traceback") == 2
    assert node.stop() == 0
