"""Asking other nodes for their side of a way.

Owns: the socket, who is asked in which order, and for how long.  Must not know: what is asked,
or what the answer means.
"""

import errno
import secrets
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address

from overlayd.errors import ProtocolError
from overlayd.model.objects import Address
from overlayd.proto import inquiry
from overlayd.proto.inquiry import PORT, PRIVILEGED, Answer, Question

# Our own constants, in seconds.
_STRAIGHT = (0.75, 0.75)  # how long each of two tries waits: the first may go before the handshake
_PASSED_ON = (1.5,)

_LOWEST = 600  # the first port that is tried: below are those of well-known services


def ask(own: Address, question: Question, to: Address, others: Sequence[Address]) -> Answer | None:
    """Ask the node at `to`: straight, else by one of the others, who pass the question on.  Returns its answer.  own:
    our node address.  None when nobody answers; OSError when we cannot ask.
    """
    with _bound(own) as link:
        answer = _asked(link, {to: question}, _STRAIGHT)
        if answer is None and others:
            passed_on = question._replace(to=to)
            answer = _asked(link, dict.fromkeys(others, passed_on), _PASSED_ON)
        return answer


def _bound(own: Address) -> socket.socket:
    """A socket at a port that only root may have: other nodes answer no other port."""
    link = socket.socket(socket.AF_INET if own.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        while True:
            try:
                link.bind((str(own), _LOWEST + secrets.randbelow(PRIVILEGED - _LOWEST)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return link
    except OSError:
        link.close()
        raise


def _asked(link: socket.socket, questions: dict[Address, Question], waits: Sequence[float]) -> Answer | None:
    """The first answer to questions by whom they go to."""
    for wait in waits:
        for to, question in questions.items():
            with suppress(OSError):  # no way there: as good as no answer
                link.sendto(inquiry.encode(question), (str(to), PORT))
        deadline = time.monotonic() + wait
        while (left := deadline - time.monotonic()) > 0 and select.select([link], [], [], left)[0]:
            try:
                datagram, sender = link.recvfrom(inquiry.LARGEST + 1)
                answer = inquiry.decode(datagram)
            except (OSError, ProtocolError):  # nobody is at the port, or it is none of ours
                continue
            asked = questions.get(ip_address(sender[0]))
            if isinstance(answer, Answer) and asked is not None and answer.id == asked.id:
                return answer
    return None
