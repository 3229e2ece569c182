"""The framing of the socket, slow and obvious: a whole stream in, its messages out."""

from dataclasses import dataclass

MAX_BODY = 8 * 1024 * 1024


@dataclass
class Split:
    """What a stream holds: ("json", body) or ("envelope", whole message) in order, then why it stops.

    tail: bytes of an unfinished message.  too_large: the body length that an over-long JSON header advertised.
    """

    messages: list[tuple[str, bytes]]
    tail: bytes
    too_large: int | None


def split(stream: bytes) -> Split:
    messages: list[tuple[str, bytes]] = []
    while stream:
        if stream[0] == 1 and len(stream) < 5:
            break
        if stream[0] == 1 and stream[4] in (0, 1):
            size = 5 + int.from_bytes(stream[1:5], "little")
            if len(stream) < size:
                break
            messages.append(("envelope", stream[:size]))
        else:
            if len(stream) < 4:
                break
            size = 4 + int.from_bytes(stream[:4], "little")
            if size - 4 > MAX_BODY:
                return Split(messages, stream, size - 4)
            if len(stream) < size:
                break
            messages.append(("json", stream[4:size]))
        stream = stream[size:]
    return Split(messages, stream, None)
