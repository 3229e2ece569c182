"""Whether an attached container is still there.

Owns: what tells that.  Must not know: what is done about one that is gone (`daemon.upkeep.reclaim`).

No process is known of a container that is attached by its namespace.  Both ends of its link go with the namespace; and
the kernel no longer knows the id of a namespace that nobody holds any more, though it may end later.  A link that is
gone alone is made again if we see the namespace; if we do not, there is nothing left of the container that we could
serve.
"""

import logging
from collections.abc import Iterable

from overlayd.errors import MechanismError
from overlayd.linux import netns, veth_removal
from overlayd.model.rows import Attachment

log = logging.getLogger(__name__)


def lives(attachment: Attachment) -> bool:
    """Whether a container is there, or at least where it was.  MechanismError: we may not look."""
    if attachment.file is not None:
        return has_link(attachment) or netns.leads_to(attachment.file)
    return any(map(netns.is_alive, attachment.processes))


def ended(attachments: Iterable[Attachment]) -> list[Attachment]:
    """The containers of which nothing is there any more.  One that we may not look at counts as living.  Blocks."""
    attachments = list(attachments)
    try:
        linked = veth_removal.existing(each.host_end() for each in attachments if each.file is not None)
    except MechanismError as error:
        log.warning("whether %d containers live cannot be seen: %s", len(attachments), error)
        return []
    found = []
    for each in attachments:
        try:
            if not (each.file is not None and each.host_end() in linked) and not lives(each):
                found.append(each)
        except MechanismError as error:
            log.warning("whether %s lives cannot be seen: %s", each.handle, error)
    return found


def has_link(attachment: Attachment) -> bool:
    """Whether a container has its link, and somebody still holds the namespace in which that ends."""
    return bool(veth_removal.existing([attachment.host_end()]))
