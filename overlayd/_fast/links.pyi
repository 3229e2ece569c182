from typing import final

@final
class LinkAttributes:
    """What the body of an RTM_NEWLINK message says of a link; 0 or empty for what it does not say.

    peer: IFLA_LINK.  peer_namespace: IFLA_LINK_NETNSID, None without one.  queue: IFLA_TXQLEN, likewise.
    ipv4, ipv6: the kernel's arrays of parameters, of 32 bits each.  bridge_options: of a bridge.  port_options: of a
    bridge's port.  ProtocolError when the message, or an attribute in it, is cut short.
    """

    index: int
    flags: int
    name: str
    mtu: int
    group: int
    master: int
    peer: int
    peer_namespace: int | None
    queue: int | None
    kind: str
    alias: str
    mac: bytes
    alternative_names: tuple[str, ...]
    ipv4: bytes
    ipv6: bytes
    bridge_options: dict[int, bytes] | None
    port_options: dict[int, bytes] | None

    def __new__(cls, body: bytes | memoryview) -> LinkAttributes: ...
