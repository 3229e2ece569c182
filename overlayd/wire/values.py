"""What requests, responses and events are made of: integers, handles, scopes, peers, NAT configuration.

Owns: these values and their bounds.  Must not know: the messages they are part of.
"""

from typing import Annotated

from msgspec import Meta, Struct

U64_MAX = 2**64 - 1

U8 = Annotated[int, Meta(title="u8", ge=0, le=2**8 - 1)]
U16 = Annotated[int, Meta(title="u16", ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(title="u32", ge=0, le=2**32 - 1)]
# msgspec has no bound above 2**63 - 1: each struct with a U64 checks the upper one after it is built.
U64 = Annotated[int, Meta(title="u64", ge=0)]
I64 = Annotated[int, Meta(title="i64", ge=-(2**63), le=2**63 - 1)]


def require_u64(*values: int) -> None:
    for value in values:
        if value > U64_MAX:
            raise ValueError("expected u64")


# The values are trees without cycles: gc=False keeps thousands of peers out of the collector's sight.
class Value(Struct, frozen=True, omit_defaults=True, gc=False):
    pass


class Secret(Value, frozen=True):
    """A value that holds a secret: its fields stay out of logs and tracebacks."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class LinuxPid(Value, frozen=True, tag_field="platform", tag="linux_pid"):
    """A container by a process in its network namespace."""

    pid: U32


class WindowsContainer(Value, frozen=True, tag_field="platform", tag="windows_container"):
    """A Windows container; refused on Linux."""

    container_id: str
    ip: str | None = None


class GuestManaged(Value, frozen=True, tag_field="platform", tag="guest_managed"):
    """A virtual machine that runs its own WireGuard."""

    id: str


class HostShared(Value, frozen=True, tag_field="platform", tag="host_shared"):
    """A container in the host's network namespace."""

    id: str


Handle = LinuxPid | WindowsContainer | GuestManaged | HostShared


class GlobalScope(Value, frozen=True, tag_field="scope", tag="global"):
    """The global overlay."""


class ServiceScope(Value, frozen=True, tag_field="scope", tag="service"):
    """The dedicated overlay of one service."""

    service: str


Scope = GlobalScope | ServiceScope
GLOBAL = GlobalScope()


class NatCandidate(Value, frozen=True):
    """A way to reach a node.  candidate_type: "host", "server-reflexive" or "relay"; address: ip:port."""

    candidate_type: str
    address: str
    priority: U32


class Peer(Value, frozen=True):
    """A WireGuard peer.

    endpoint: host:port; allowed_ips: comma-separated CIDRs; persistent_keepalive_secs: 0 = off.
    """

    public_key: str
    endpoint: str
    allowed_ips: str
    persistent_keepalive_secs: U64
    candidates: tuple[NatCandidate, ...] = ()

    def __post_init__(self) -> None:
        if self.persistent_keepalive_secs > U64_MAX:  # require_u64, without the call: the busiest request
            raise ValueError("expected u64")


class TurnServer(Secret, frozen=True):
    """A TURN server and what to log in with.  addr: empty means no server."""

    addr: str = ""
    username: str = ""
    credential: str = ""


class RelayServer(Secret, frozen=True):
    """The relay that this node offers to others.  listen_port, max_sessions: 0 means the built-in number.
    external_addr: empty means the address that this node reaches the outside from.
    """

    listen_port: U16 = 0
    external_addr: str = ""
    max_sessions: U64 = 0
    auth_credential: str | None = None

    def __post_init__(self) -> None:
        require_u64(self.max_sessions)


class NatConfig(Value, frozen=True):
    """NAT traversal; the defaults are the built-in configuration, and so is what is empty or 0.  stun_servers: of one
    "none" alone nobody is asked.
    """

    enabled: bool = True
    stun_servers: tuple[str, ...] = ("stun.l.google.com:19302", "stun1.l.google.com:19302")
    turn_servers: tuple[TurnServer, ...] = ()
    hole_punch_timeout_secs: U64 = 15
    stun_refresh_interval_secs: U64 = 60
    max_candidate_pairs: U64 = 10
    relay_server: RelayServer | None = None

    def __post_init__(self) -> None:
        require_u64(self.hole_punch_timeout_secs, self.stun_refresh_interval_secs, self.max_candidate_pairs)
