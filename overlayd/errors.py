"""The exception tree, by who is at fault.

Owns: the kinds of failure that every layer raises, and how a value is quoted in their messages.  Must not know:
anything of overlayd; how a failure is answered (`daemon.handlers` turns these into responses, in one place).
"""

import os

LONGEST_QUOTED = 60  # characters, ours


class OverlaydError(Exception):
    """Base of every error that overlayd raises on purpose."""


class ProtocolError(OverlaydError):
    """The peer broke the framing or the envelope: nothing it sends can be trusted, the connection is dropped."""


class RequestError(OverlaydError):
    """The request cannot be done as asked; the message says why and what to do, and goes to the client as `err`.

    code: which kind of refusal it is, for programs; it never changes.
    """

    code = "refused"


class InvalidValue(RequestError):
    """A key of the request has a value that is none: not an address, not a CIDR, no key."""

    code = "invalid_value"


class NotSetUp(RequestError):
    """The overlay, the service or the peer that the request is about has to be set up first."""

    code = "not_set_up"


class Exhausted(RequestError):
    """There is no address, port or number left to give."""

    code = "exhausted"


class AddressUnavailable(RequestError):
    """The address that was asked for is somebody's, or not one that can be given."""

    code = "address_unavailable"


class NamespaceGone(RequestError):
    """There is no network namespace where the request says."""

    code = "namespace_gone"


class OwnNamespace(RequestError):
    """The network namespace is the host's own, which is no container's."""

    code = "own_namespace"


class InterfaceExists(RequestError):
    """The namespace has an interface of that name already."""

    code = "interface_exists"


class MechanismError(OverlaydError):
    """The kernel, or a program that acts for it, refused an operation.

    operation: what was tried, in a few words ("create veth"); object: the name it was tried on ("veth-71-s");
    errno: the kernel's error number, 0 when there is none; detail: what else is known, for a person.
    """

    def __init__(self, operation: str, object: str, errno: int = 0, detail: str = "") -> None:
        self.operation = operation
        self.object = object
        self.errno = errno
        self.detail = detail
        reason = f"{os.strerror(errno)} (errno {errno})" if errno else ""
        super().__init__(": ".join(part for part in (f"{operation} {object}", reason, detail) if part))


class StateError(OverlaydError):
    """The disk refused to keep the state, or gave back something that is not the state."""


class DiskError(StateError):
    """The disk refused an operation; what it holds may be as good as ever, and another try may succeed."""


def quoted(text: str) -> str:
    """A value for an error message: enough of it to recognise it by, with what a terminal would act on escaped."""
    return repr(text) if len(text) <= LONGEST_QUOTED else f"{text[:LONGEST_QUOTED]!r}..."
