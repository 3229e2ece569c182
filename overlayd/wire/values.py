"""What requests, responses and events are made of: integers, handles, scopes, peers, NAT configuration.

Owns: these values and their bounds.  Must not know: the messages they are part of.

What requests are made of takes no unknown keys (`forbid_unknown_fields`): the codec then looks which they are, and
decodes the rest.
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

# Limits of what one request may make the daemon work on; the contract lets a list or a text be of any length.
LONGEST_TEXT = 1024  # characters of a name, key, address, CIDR or endpoint: the longest legal one has 253 and a port
LONGEST_ALLOWED_IPS = 65_536  # characters: 1,024 IPv6 CIDRs, of 43 each
MOST_CANDIDATES = 64  # of one peer
MOST_SERVERS = 64  # STUN servers, and TURN servers, of one node
MOST_GRANTS = 1024  # of one edge peer
MOST_BRIDGES = 65_536  # names of bridges that are to stay

Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
AllowedIps = Annotated[str, Meta(max_length=LONGEST_ALLOWED_IPS)]


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


class LinuxPid(Value, frozen=True, forbid_unknown_fields=True, tag_field="platform", tag="linux_pid"):
    """A container by a process in its network namespace."""

    pid: U32


class LinuxNetns(Value, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="platform", tag="linux_netns"):
    """An interface of a container, by its network namespace (an addition).

    id: by which it is detached, with `ifname`; at most 200 bytes.  path: of the namespace's file, absolute; a detach
    does without.  ifname: of the interface, 15 bytes at most; a namespace may have several of them, of different
    services too.
    """

    id: Text
    path: Text = ""
    ifname: Text = "eth0"


class WindowsContainer(Value, frozen=True, forbid_unknown_fields=True, tag_field="platform", tag="windows_container"):
    """A Windows container; refused on Linux."""

    container_id: Text
    ip: Text | None = None


class GuestManaged(Value, frozen=True, forbid_unknown_fields=True, tag_field="platform", tag="guest_managed"):
    """A virtual machine that runs its own WireGuard."""

    id: Text


class HostShared(Value, frozen=True, forbid_unknown_fields=True, tag_field="platform", tag="host_shared"):
    """A container in the host's network namespace."""

    id: Text


Handle = LinuxPid | LinuxNetns | WindowsContainer | GuestManaged | HostShared


class GlobalScope(Value, frozen=True, forbid_unknown_fields=True, tag_field="scope", tag="global"):
    """The global overlay."""


class ServiceScope(Value, frozen=True, forbid_unknown_fields=True, tag_field="scope", tag="service"):
    """The dedicated overlay of one service."""

    service: Text


Scope = GlobalScope | ServiceScope
GLOBAL = GlobalScope()


class NatCandidate(Value, frozen=True, forbid_unknown_fields=True):
    """A way to reach a node.  candidate_type: "host", "server-reflexive" or "relay"; address: ip:port."""

    candidate_type: Text
    address: Text
    priority: U32


class Peer(Value, frozen=True):
    """A WireGuard peer.

    endpoint: host:port; allowed_ips: comma-separated CIDRs; persistent_keepalive_secs: 0 = off.
    """

    public_key: Text
    endpoint: Text
    allowed_ips: AllowedIps
    persistent_keepalive_secs: U64
    candidates: Annotated[tuple[NatCandidate, ...], Meta(max_length=MOST_CANDIDATES)] = ()

    def __post_init__(self) -> None:
        if self.persistent_keepalive_secs > U64_MAX:  # require_u64, without the call: the busiest request
            raise ValueError("expected u64")


class TurnServer(Secret, frozen=True, forbid_unknown_fields=True):
    """A TURN server and what to log in with.  addr: `host:port`, or a URI of RFC 7065 (an addition); empty means no
    server.  ca_file (an addition): who may have signed its certificate, PEM; empty means whom the node's host trusts.
    """

    addr: Text = ""
    username: Text = ""
    credential: Text = ""
    ca_file: Text = ""


class RelayServer(Secret, frozen=True, forbid_unknown_fields=True):
    """The relay that this node offers to others.  listen_port, max_sessions: 0 means the built-in number.
    external_addr: empty means the address that this node reaches the outside from; one of IPv4 and one of IPv6 with a
    comma between them (an addition) let it relay for both.  denied_peers, allowed_peers (additions): CIDRs that it does
    not relay to, which count first, and those that it relays to though they are private or behind its host.
    """

    listen_port: U16 = 0
    external_addr: Text = ""
    max_sessions: U64 = 0
    auth_credential: Text | None = None
    denied_peers: Annotated[tuple[Text, ...], Meta(max_length=MOST_SERVERS)] = ()
    allowed_peers: Annotated[tuple[Text, ...], Meta(max_length=MOST_SERVERS)] = ()

    def __post_init__(self) -> None:
        require_u64(self.max_sessions)


class NatConfig(Value, frozen=True, forbid_unknown_fields=True):
    """NAT traversal; the defaults are the built-in configuration, and so is what is empty or 0.  stun_servers: of one
    "none" alone nobody is asked.  port_mapping (an addition): ask the router for a port, by PCP, NAT-PMP or UPnP.
    """

    enabled: bool = True
    stun_servers: Annotated[tuple[Text, ...], Meta(max_length=MOST_SERVERS)] = (
        "stun.l.google.com:19302",
        "stun1.l.google.com:19302",
    )
    turn_servers: Annotated[tuple[TurnServer, ...], Meta(max_length=MOST_SERVERS)] = ()
    hole_punch_timeout_secs: U64 = 15
    stun_refresh_interval_secs: U64 = 60
    max_candidate_pairs: U64 = 10
    relay_server: RelayServer | None = None
    port_mapping: bool = False

    def __post_init__(self) -> None:
        require_u64(self.hole_punch_timeout_secs, self.stun_refresh_interval_secs, self.max_candidate_pairs)
