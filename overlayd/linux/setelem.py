"""Elements of our nftables sets, added and deleted by nfnetlink messages.

Owns: their encoding, and the transaction.  Must not know: what an element means, or how sets are made and listed
(those go through nft).  A transaction costs what it changes, whatever else is in the ruleset.
"""

import socket
import struct
from collections.abc import Iterator, Sequence

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux.netlink import receive
from overlayd.model.objects import NFT_TABLE, Element
from overlayd.model.ruleset import SETS, Set
from overlayd.model.set_changes import Change
from overlayd.proto.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    message,
    refusal,
    text,
)

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
# linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 0x10, 0x11, 10
# linux/netfilter/nf_tables.h
_NEWSETELEM, _DELSETELEM = _NFTABLES << 8 | 12, _NFTABLES << 8 | 14
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3 | NLA_F_NESTED
_LIST_ELEM = 1 | NLA_F_NESTED
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _ELEM_KEY_END = 1 | NLA_F_NESTED, 2 | NLA_F_NESTED, 3, 10 | NLA_F_NESTED
_DATA_VALUE = 1
_INTERVAL_END = 1
# linux/netfilter.h: NFPROTO_*
_FAMILY = {"inet": 1, "bridge": 7}

_NFGENMSG = struct.Struct(">BBH")  # family, version, resource id

# Our own: elements in a message.  The list of them is one attribute, which holds 65,535 bytes at most, and the largest
# element of ours (an IPv6 grant) takes 96.
_MESSAGE = 500


def transact(netlink: socket.socket, changes: list[Change]) -> None:
    """Make all `changes`, in their order, or none.

    Adding what is there is fine, unless it is a map entry with another value.  Raises MechanismError with ENOENT for a
    missing table or set, or a delete of a missing element; EEXIST for an entry with another value; ENOTEMPTY for a
    prefix that overlaps one that is there.
    """
    messages = [
        Change(change.add, change.family, change.set, change.elements[start : start + _MESSAGE])
        for change in changes
        for start in range(0, len(change.elements), _MESSAGE)
    ]
    if not messages:
        return
    parts = [_message(_BATCH_BEGIN, 0, 0, 0, b"")]
    for sequence, change in enumerate(messages, 1):
        type, flags = (_NEWSETELEM, NLM_F_CREATE) if change.add else (_DELSETELEM, 0)
        # One acknowledgement is enough: it is sent when all is done, and every failure is reported anyway.
        flags |= NLM_F_ACK if sequence == len(messages) else 0
        parts.append(_message(type, flags, sequence, _FAMILY[change.family], _list(change)))
    parts.append(_message(_BATCH_END, 0, 0, 0, b""))
    data = b"".join(parts)
    try:
        fault.point("nft:elements")
        if len(data) > 1 << 16:
            netlink.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))  # a batch is one datagram
        netlink.send(data)
        answers = list(_answers(netlink))
    except OSError as error:
        raise MechanismError("change members of", f"table {NFT_TABLE}", error.errno or 0) from error
    if not answers:
        raise MechanismError("change members of", f"table {NFT_TABLE}", detail="the kernel did not answer")
    errno, sequence = next((answer for answer in answers if answer[0]), (0, 0))
    if errno:
        failed = messages[max(sequence, 1) - 1]
        members = ", ".join(element.member for element in failed.elements[:3])
        raise MechanismError(
            "add to" if failed.add else "delete from",
            f"{failed.family} {NFT_TABLE} {failed.set}",
            errno,
            members + (", ..." if len(failed.elements) > 3 else ""),
        )


def _answers(netlink: socket.socket) -> Iterator[tuple[int, int]]:
    """The errno and the sequence number of every answer to a batch; all are queued by the time that sending returns."""
    while True:
        try:
            received = receive(netlink, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for answer in received:
            if answer.type == NLMSG_ERROR:
                yield refusal(answer.flags, answer.body, 20)[0], answer.sequence


def _list(change: Change) -> bytes:
    """The attributes of a message about the elements of `change`."""
    form = SETS[change.family, change.set]
    elements = b"".join(attribute(_LIST_ELEM, each) for element in change.elements for each in _element(element, form))
    return text(_LIST_TABLE, NFT_TABLE) + text(_LIST_SET, change.set) + attribute(_LIST_ELEMENTS, elements)


def _element(element: Element, form: Set) -> Iterator[bytes]:
    """The kernel's elements for one of ours: one, or two for a prefix on its own, which is a start and an end."""
    parts = element.member.split(" . ")
    first = _joined([_datum(type, part)[0] for type, part in zip(form.key, parts, strict=True)])
    key = attribute(_ELEM_KEY, attribute(_DATA_VALUE, first))
    if form.value:
        key += attribute(_ELEM_DATA, attribute(_DATA_VALUE, _datum(form.value, element.value)[0]))
    if not form.interval:
        yield key
        return
    last = _joined([_datum(type, part)[1] for type, part in zip(form.key, parts, strict=True)])
    if len(form.key) > 1:
        yield key + attribute(_ELEM_KEY_END, attribute(_DATA_VALUE, last))
        return
    yield key
    after = int.from_bytes(last, "big") + 1
    if after < 1 << 8 * len(last):  # else the interval has no end
        end = after.to_bytes(len(last), "big")
        flag = attribute(_ELEM_FLAGS, struct.pack(">I", _INTERVAL_END))
        yield attribute(_ELEM_KEY, attribute(_DATA_VALUE, end)) + flag


def _joined(parts: Sequence[bytes]) -> bytes:
    """A key of these parts as the kernel keeps it: of several, each in whole registers of four bytes."""
    return parts[0] if len(parts) == 1 else b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def _datum(type: str, text: str) -> tuple[bytes, bytes]:
    """The first and the last value that a part of a key stands for; both are the same but for a prefix or range.

    We add no ranges, but may have to delete somebody's.
    """
    if type == "classid":
        major, minor = text.split(":")
        value = struct.pack("=I", int(major, 16) << 16 | int(minor, 16))
    elif type == "ifname":
        value = text.strip('"').encode().ljust(16, b"\0")
    elif type == "ether_addr":
        value = bytes.fromhex(text.replace(":", ""))
    elif type == "nf_proto":
        value = bytes([{"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}[text]])
    elif type == "integer":  # all that we have is as long as an IPv6 address
        value = int(text, 0).to_bytes(16, "big")
    elif "-" in text:
        first, _, final = text.partition("-")
        return _datum(type, first)[0], _datum(type, final)[0]
    else:
        address, _, length = text.partition("/")
        value = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        if length:
            free = 8 * len(value) - int(length)
            last = int.from_bytes(value, "big") | (1 << free) - 1
            return value, last.to_bytes(len(value), "big")
    return value, value


def _message(type: int, flags: int, sequence: int, family: int, attributes: bytes) -> bytes:
    resource = _NFTABLES if type in (_BATCH_BEGIN, _BATCH_END) else 0  # whose batch it is
    return message(type, NLM_F_REQUEST | flags, sequence, _NFGENMSG.pack(family, 0, resource) + attributes)
