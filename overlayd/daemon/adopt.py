"""Taking over a host whose state is lost.

Owns: reading what the host carries, for `model.adoption`.  Must not know: what that implies.  Blocks: for worker
threads.
"""

from collections.abc import Iterable
from contextlib import suppress

from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.kernel_layout import survey
from overlayd.errors import MechanismError
from overlayd.linux import netns, veth_removal
from overlayd.linux import rtnetlink as rt
from overlayd.linux.observe import all_links
from overlayd.model.adoption import Adoption, adopt
from overlayd.model.names import pid_of
from overlayd.model.objects import Netns, NetnsPath


def read(kernel: Kernel, boot_id: str, key: bytes) -> Adoption:
    """What this host implies.  boot_id: of now.  key: this node's, if no device tells another one.

    StateError when the host does not tell enough, MechanismError when the kernel refuses a look.
    """
    return adopt(survey(kernel, _namespaces(filter(veth_removal.is_marked, all_links()))), boot_id, key)


def _namespaces(host_ends: Iterable[rt.Link]) -> dict[str, Netns | NetnsPath]:
    """Where the processes live that the host ends are named after, and the files of the namespaces of others; of what
    is out of sight nobody knows the other end.
    """
    found: dict[str, Netns | NetnsPath] = {}
    others: dict[str, int] = {}
    for link in host_ends:
        if pid := pid_of(link.name):
            with suppress(MechanismError):
                found[link.name] = netns.identify(pid)
        else:
            others[link.name] = link.peer_namespace
    files = netns.find(set(others.values())) if others else {}
    return found | {name: files[number] for name, number in others.items() if number in files}
