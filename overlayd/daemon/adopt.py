"""Taking over a host whose state is lost.

Owns: reading what the host carries, for `model.adoption`.  Must not know: what that implies.  Blocks: for worker
threads.
"""

import re
from collections.abc import Iterable
from contextlib import suppress

from overlayd.daemon.change.apply import Kernel
from overlayd.daemon.change.inspect import survey
from overlayd.errors import MechanismError
from overlayd.linux import netns
from overlayd.linux.observe import observe_host
from overlayd.model.adoption import Adoption, adopt
from overlayd.model.objects import Netns, Veth

_HOST_END = re.compile(r"veth-(\d+)-[sg]")  # model.names.veth_name


def read(kernel: Kernel, boot_id: str, key: bytes) -> Adoption:
    """What this host implies.  boot_id: of now.  key: this node's, if no device tells another one.

    StateError when the host does not tell enough, MechanismError when the kernel refuses a look.
    """
    seen = observe_host([]).values()
    return adopt(survey(kernel, _namespaces(thing.name for thing in seen if isinstance(thing, Veth))), boot_id, key)


def _namespaces(host_ends: Iterable[str]) -> dict[str, Netns]:
    """Where the processes live that the host ends are named after; of one that does not, nobody knows the other end."""
    found = {}
    for name in host_ends:
        match = _HOST_END.fullmatch(name)
        if match is not None:
            with suppress(MechanismError):
                found[name] = netns.identify(int(match[1]))
    return found
