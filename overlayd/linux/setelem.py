"""Elements of our nftables sets, added, deleted and listed by nfnetlink messages.

Owns: their encoding, the transaction, and the listing.  Must not know: what an element means, or how sets are made
(that goes through nft).  A transaction costs what it changes, whatever else is in the ruleset.
"""

import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from errno import ENOENT
from ipaddress import ip_address, summarize_address_range

from overlayd import fault
from overlayd.errors import MechanismError
from overlayd.linux.netlink import Netlink, receive
from overlayd.model.objects import NFT_TABLE, Element
from overlayd.model.ruleset import SETS, Set
from overlayd.model.set_changes import Change
from overlayd.model.set_members import classid
from overlayd.proto.netlink import (
    NLA_F_NESTED,
    NLA_TYPE_MASK,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    attributes,
    message,
    refusal,
    text,
)

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
# linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 0x10, 0x11, 10
# linux/netfilter/nf_tables.h
_NEWSETELEM, _GETSETELEM, _DELSETELEM = (_NFTABLES << 8 | number for number in (12, 13, 14))
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

# Our own: listings until two in a row agree.  The kernel is done in milliseconds; others may change members meanwhile.
_LISTINGS = 16

# Bytes of what a part of a key, or a value, is made of.
_SIZES = {
    "classid": 4,
    "ifname": 16,
    "ether_addr": 6,
    "nf_proto": 1,
    "inet_service": 2,
    "integer": 16,
    "ipv4_addr": 4,
    "ipv6_addr": 16,
}
_PROTOCOLS = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


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
    """The errno and the sequence number of every answer to a batch; all are queued by the time that sending returns,
    and the one that says that all went well is the last.
    """
    while True:
        try:
            received = receive(netlink, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for answer in received:
            if answer.type == NLMSG_ERROR:
                number = refusal(answer.flags, answer.body, 20)[0]
                yield number, answer.sequence
                if not number:
                    return


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
        value = bytes([_PROTOCOLS[text]])
    elif type == "inet_service":
        value = int(text).to_bytes(2, "big")
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


def listed(netlink: Netlink, family: str, set: str) -> list[Element]:
    """Every element of one of our sets, or maps, whoever added it; none when the set or its table is missing.  What has
    not the form of our keys, in a set that another version made, is passed over.

    Raises MechanismError when the kernel refuses.
    """
    form, found = SETS[family, set], []
    for first, last, value in _intervals(_entries(netlink, family, set), form):
        if len(first) == sum(_widths(form)) == len(last):
            member = " . ".join(_texts(form, first, last))
            found.append(Element(family, set, member, _text(form.value, value, value) if form.value else ""))
    return found


def _entries(netlink: Netlink, family: str, set: str) -> list[dict[int, memoryview]]:
    """The attributes of the kernel's elements in a listing that came out twice in a row, or the last of _LISTINGS.

    The kernel moves the elements of a set that has grown or shrunk to a larger or smaller hash table in its own
    time, and a listing goes by position in it, a part at a time: what moves between two parts is passed over
    (nft_rhash_walk() in net/netfilter/nft_set_hash.c), and nothing tells.  Seen: 500 elements of 5,000.
    """
    body = _NFGENMSG.pack(_FAMILY[family], 0, 0) + text(_LIST_TABLE, NFT_TABLE) + text(_LIST_SET, set)
    lists: list[memoryview] = []
    for _ in range(_LISTINGS):
        before = lists
        try:
            bodies = netlink.dump("list members of", _GETSETELEM, body, f"{family} {NFT_TABLE} {set}")
        except MechanismError as error:
            if error.errno != ENOENT:
                raise
            return []
        found = (dict(attributes(each[_NFGENMSG.size :])) for each in bodies)
        lists = [each[_LIST_ELEMENTS & NLA_TYPE_MASK] for each in found if _LIST_ELEMENTS & NLA_TYPE_MASK in each]
        if lists == before:
            break
    return [dict(attributes(element)) for each in lists for _, element in attributes(each)]


def _intervals(entries: Iterable[dict[int, memoryview]], form: Set) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The first key and the last one that each of our elements stands for, and its value; both keys are the same but
    for an interval.
    """
    if not form.interval or len(form.key) > 1:
        for each in entries:
            first = _data(each, _ELEM_KEY)
            yield first, _data(each, _ELEM_KEY_END) or first, _data(each, _ELEM_DATA)
        return
    # Starts and ends, in any order; an end is the key after the last one, and the last interval may have none.
    points = sorted((_data(each, _ELEM_KEY), _ELEM_FLAGS not in each) for each in entries)
    size = _SIZES[form.key[0]]
    start = b""
    for key, is_start in [*points, (b"", False)]:
        if start:
            last = int.from_bytes(key, "big") - 1 if key else (1 << 8 * size) - 1
            yield start, last.to_bytes(size, "big"), b""
        start = key if is_start else b""


def _data(entry: dict[int, memoryview], kind: int) -> bytes:
    """What is in an attribute of an element that holds data; empty when there is none."""
    held = entry.get(kind & NLA_TYPE_MASK)
    return bytes(dict(attributes(held))[_DATA_VALUE]) if held is not None else b""


def _widths(form: Set) -> list[int]:
    """How many bytes each part of a key takes: see `_joined`."""
    sizes = [_SIZES[type] for type in form.key]
    return sizes if len(sizes) == 1 else [size + -size % 4 for size in sizes]


def _texts(form: Set, first: bytes, last: bytes) -> Iterator[str]:
    """The parts of a key, as `model.ruleset` writes them."""
    offset = 0
    for type, width in zip(form.key, _widths(form), strict=True):
        yield _text(type, *(key[offset : offset + _SIZES[type]] for key in (first, last)))
        offset += width


def _text(type: str, first: bytes, last: bytes) -> str:
    """What `_datum` reads."""
    if type == "classid":
        return classid(int.from_bytes(first, sys.byteorder))
    if type == "ifname":
        return f'"{first.rstrip(bytes(1)).decode(errors="replace")}"'
    if type == "ether_addr":
        return first.hex(":")
    if type == "nf_proto":
        return next((name for name, number in _PROTOCOLS.items() if number == first[0]), str(first[0]))
    if type == "inet_service":
        return str(int.from_bytes(first, "big"))
    if type == "integer":
        return f"{int.from_bytes(first, 'big'):#x}"
    if first == last:
        return str(ip_address(first))
    networks = [*summarize_address_range(ip_address(first), ip_address(last))]
    return str(networks[0]) if len(networks) == 1 else f"{ip_address(first)}-{ip_address(last)}"


def _message(type: int, flags: int, sequence: int, family: int, attributes: bytes) -> bytes:
    resource = _NFTABLES if type in (_BATCH_BEGIN, _BATCH_END) else 0  # whose batch it is
    return message(type, NLM_F_REQUEST | flags, sequence, _NFGENMSG.pack(family, 0, resource) + attributes)
