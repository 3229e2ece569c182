from typing import final

LATER: int
"""Stands in a message for the index of the link that `Sequence.find` has found by the time it is sent."""

@final
class Sequence:
    """Operations that `run` does in their order, up to the first that is refused.

    They act on the host's links, and between `enter` and `leave` on those of another namespace.  tolerated: errnos that
    mean that there was nothing to do.
    """

    def send(self, messages: bytearray, count: int, tolerated: tuple[int, ...] = ()) -> None:
        """Send netlink messages in one datagram, and wait for their acknowledgements; their numbers are filled in."""
    def require_empty(self, dump: bytearray, tolerated: tuple[int, ...] = ()) -> None:
        """Stop, without an errno, unless a dump lists nothing."""
    def await_attribute(self, messages: bytearray, count: int, header: int, attribute: bytes, wanted: int) -> None:
        """Ask until so many replies carry the attribute (header, value, no padding); errno ETIMEDOUT after a second.

        count: what ends the replies, an acknowledgement of each message or the end of a dump.  header: bytes of a reply
        before its attributes.
        """
    def find(self, name: bytes) -> None:
        """Find the index of a link by its name; errno ENODEV when there is none."""
    def write(self, path: bytes, value: bytes, tolerated: tuple[int, ...] = (), *, unless_there: bool = False) -> None:
        """Write a value to a file.  unless_there: if it holds another one."""
    def enter(self, namespace: int) -> None:
        """Enter the network namespace of that descriptor, which has to stay open."""
    def leave(self) -> None:
        """Return from there."""
    def point(self, name: str) -> None:
        """Pass a fault point."""
    @property
    def stopped(self) -> int | None:
        """At which operation the last run stopped; None when all are done."""
    @property
    def refusal(self) -> tuple[int, int, int, bytes, BaseException | None]:
        """Why it stopped: which message of the operation was refused, the errno (0 for none), flags and body of the
        acknowledgement that said so, and what a fault point raised.
        """
    def go_on(self, at: int) -> None:
        """Let the next run begin with that operation, in the namespace that it belongs to."""

def run(host: int, home: int, sequences: list[Sequence]) -> None:
    """Do sequences, one after the other, each up to where it stops.

    host: the descriptor of a netlink socket of the calling thread's namespace, with NETLINK_CAP_ACK, NETLINK_EXT_ACK
    and NETLINK_GET_STRICT_CHK set.  home: that of the namespace.  A thread that cannot return there ends the process.
    """

def drain(descriptor: int, most: int) -> tuple[list[bytes], int]:
    """The datagrams that the kernel has sent to a netlink socket, at most so many; never waits.  And the errno that
    ended it, 0 for none: ENOBUFS when more was sent than the socket holds.
    """
