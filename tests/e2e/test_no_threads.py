"""A start on a host that has no thread to give, or few: it ends by naming that, or serves."""

from lab import Lab, ping
from lab.cluster import Member
from lab.node import DAEMON, DaemonExited

FAILED = 1


def test_a_start_without_threads_says_so_and_the_next_is_as_ever(lab: Lab, member: Member) -> None:
    """strace refuses the n-th thread or process and all that follow, until a start does with what it gets."""
    node = member.node
    member.set_up_service("web")
    container = lab.container()
    gateway = member.gateway(member.attach(container, "web"))
    node.stop()
    for first in range(1, 30):
        before = len(node.log.read_text())
        node.program = [
            *("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=clone,clone3,fork,vfork"),
            *("-e", f"inject=clone,clone3,fork,vfork:error=EAGAIN:when={first}+"),
            *DAEMON,
        ]
        try:
            member.start()
        except DaemonExited as end:
            said = node.log.read_text()[before:]
            assert end.code == FAILED, said
            assert "Traceback" not in said
            assert said.splitlines()[-1].count("the limit of processes and threads is used up"), said
            ping(container, gateway)
        else:
            break
    assert first > 5, "threads that were refused ended no start"
    assert member.request("status")["service_count"] == 1
    node.stop()
    node.program = DAEMON
    member.start()
    ping(container, gateway)
