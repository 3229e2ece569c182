"""A line of the log for each change that a client asked for: what, of what, by whom, and how it ended.

Owns: the line and its fields.  Must not know: what a request does.
"""

import logging
import os
from typing import NamedTuple

from overlayd import wire
from overlayd.daemon.server.listener import Credentials

log = logging.getLogger("overlayd.audit")

LONGEST_NAME = 64  # bytes, more than TASK_COMM_LEN of linux/sched.h and what kernel threads have

# Requests that change nothing.
_READS = (
    wire.GetStatus,
    wire.GetNatStatus,
    wire.ListDns,
    wire.ListEdgePeers,
    wire.ListThings,
    wire.Doctor,
    wire.Hello,
    wire.Watch,
    wire.QueryDns,
    wire.ListNodes,
    wire.CheckCluster,
)
# The key that says what a request is about: the first of these that it has.
_SUBJECTS = (
    *("handle", "service", "public_key", "pubkey", "name", "ip", "zone", "cluster_cidr"),
    *("node_id", "node", "key"),
)
# And those that say more of it, of which the first one is told.
_DETAILS = ("cidr", "service", "ip", "value")
_KINDS = {wire.GuestManaged: "guest", wire.HostShared: "host"}  # as `list` has them


def program_of(client: Credentials) -> str:
    """The name of a client's program, as the kernel has it; empty when it has ended."""
    try:
        file = os.open(f"/proc/{client.pid}/comm", os.O_RDONLY | os.O_CLOEXEC)  # a third of the time of Path.read_text
        try:
            return os.read(file, LONGEST_NAME).decode(errors="replace").strip()
        finally:
            os.close(file)
    except OSError:
        return ""


def tell(client: Credentials, program: str, request: wire.Request, response: wire.Response, seconds: float) -> None:
    """Log a change, also one that was refused."""
    if isinstance(request, _READS) or not log.isEnabledFor(logging.INFO):
        return
    op, result = str(request.__struct_config__.tag), str(response.__struct_config__.tag)
    refusal = response.message if isinstance(response, wire.Err) else ""
    subject = _subject(request)
    write(client, program, Told(op, subject, result, refusal, seconds, _detail(request, subject)))


class Told(NamedTuple):
    """What a line tells.  refusal: why it was not done, empty when it was.  detail: more of the object, such as the
    service that a container is attached to, the CIDR of a peer, or the address of a name.
    """

    op: str
    object: str
    result: str
    refusal: str
    seconds: float
    detail: str = ""


def write(client: Credentials, program: str, told: Told) -> None:
    """Log what somebody asked for."""
    milliseconds = round(told.seconds * 1000, 1)
    log.info(
        "%s %s: %s in %s ms (%s %s)",
        told.op,
        f"{told.object} {told.detail}" if told.detail else told.object,
        f"refused, {told.refusal}" if told.refusal else "done",
        milliseconds,
        client,
        program,
        extra={
            "fields": {
                "op": told.op,
                "object": told.object,
                **({"detail": told.detail} if told.detail else {}),
                "result": told.result,
                "ms": milliseconds,
                "pid": client.pid,
                "uid": client.uid,
                "program": program,
            }
        },
    )


def _subject(request: wire.Request) -> str:
    for key in _SUBJECTS:
        value = getattr(request, key, None)
        if isinstance(value, wire.LinuxPid):
            return f"pid:{value.pid}"
        if isinstance(value, wire.LinuxNetns):
            return f"netns:{value.id}/{value.ifname}"
        if isinstance(value, wire.GuestManaged | wire.HostShared):
            return f"{_KINDS[type(value)]}:{value.id}"
        if isinstance(value, str | int) and value != "":
            return str(value)
    return "-"


def _detail(request: wire.Request, subject: str) -> str:
    told = (getattr(request, key, None) for key in _DETAILS)
    return next((each for each in told if isinstance(each, str) and each not in ("", subject)), "")
