"""What a store of keys answers, whichever it is: entries, pages, changes, and why it did not.

Owns: the values that `proto.store` is told and that a dialect (`proto.etcd`) makes of bytes.  Must not know: any store.
"""

from typing import NamedTuple

from overlayd.errors import OverlaydError


class Entry(NamedTuple):
    """A key and its value.  created, modified: the revisions of the store at which the key came and was last put."""

    key: str
    value: bytes
    created: int
    modified: int


class Page(NamedTuple):
    """A part of a listing, in the order of keys.  revision: of the store when it was made; more: there are keys behind
    its last one.
    """

    entries: tuple[Entry, ...]
    revision: int
    more: bool = False


class Change(NamedTuple):
    """A key was put, or removed: then there is no entry.  revision: of the store with this change."""

    key: str
    entry: Entry | None
    revision: int


class Watching(NamedTuple):
    """The stream has begun.  revision: of the member that serves it, as it was then."""

    revision: int


class Changes(NamedTuple):
    """A message of the stream, in the order of revisions.  revision: what the stream is complete up to."""

    changes: tuple[Change, ...]
    revision: int


class StoreError(OverlaydError):
    """The store did not do what it was asked, and says why."""


class Unavailable(StoreError):
    """It cannot be reached, has no leader, or did not answer in time; another endpoint, or a later try, may."""


class Compacted(StoreError):
    """What happened since the revision asked for is no longer known.  revision: the oldest that is."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        super().__init__(f"the history before revision {revision} is compacted")


class Ahead(StoreError):
    """The member that was asked has not come to the revision that was asked for."""


class LeaseGone(StoreError):
    """The lease has expired, or was revoked."""


class AuthFailed(StoreError):
    """Who we are is not known.  expired: the token is; a new one may do."""

    def __init__(self, message: str, *, expired: bool = False) -> None:
        self.expired = expired
        super().__init__(message)


class Denied(StoreError):
    """Who we are is known, and may not do this."""


class NoSpace(StoreError):
    """The store has no room, and takes nothing until somebody makes some."""


class TooLarge(StoreError):
    """The request is larger than the store takes."""
