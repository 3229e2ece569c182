"""One inspection: look at the kernel, read the journal, compare.

Owns: the order, and that a change which is just under way is no difference.  Must not know: how it is printed.
"""

import time
from collections.abc import Collection
from pathlib import Path

from overlayd.errors import StateError
from overlayd.inspect import journal
from overlayd.inspect.comparison import compare
from overlayd.inspect.kernel import look
from overlayd.inspect.picture import SECTIONS, Difference, Inspection, Picture
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import Network
from overlayd.model.rows import Overlay, Service
from overlayd.model.state import State

# Our own: a request takes milliseconds from the journal to the kernel; what differs twice, so far apart in seconds, is
# no change under way.
_AGAIN = 0.5


def inspect(directory: Path, socket: str, sections: Collection[str] = SECTIONS) -> Inspection:
    """Inspect the node whose data directory is `directory` and whose daemon listens at `socket`, dead or alive.

    Raises NetlinkError when the kernel shows no links at all.
    """
    picture, differences, uncompared = _once(directory, socket, sections)
    if differences:
        time.sleep(_AGAIN)
        picture, again, uncompared = _once(directory, socket, sections)
        differences = [each for each in again if each in differences]
    return Inspection(picture, str(directory / "journal"), uncompared, tuple(differences))


def _once(directory: Path, socket: str, sections: Collection[str]) -> tuple[Picture, list[Difference], str]:
    try:
        state = journal.read(directory)
    except StateError as error:
        return look(sections, (), (), socket), [], str(error)
    picture = look(sections, _ports(state), _networks(state), socket)
    compared = set(sections) - picture.unseen.keys()
    return picture, compare(picture, layout(state, Facts(mtu=0)), compared), ""


def _ports(state: State) -> set[int]:
    ports = {service.wg_port for service in state.table(Service).values() if service.dedicated}
    return ports | ({state.overlay.wg_port} if state.overlay is not None else set())


def _networks(state: State) -> list[Network]:
    overlay = state.get(Overlay)
    subnets = [service.subnet for service in state.table(Service).values()]
    return [*subnets, overlay.cluster] if overlay is not None else subnets
