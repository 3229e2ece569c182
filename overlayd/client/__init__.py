"""The client: `OverlayClient`, and what its calls raise."""

from overlayd.client.client import (
    CallError,
    ConnectionLost,
    Impostor,
    NotPublished,
    OverlayClient,
    ReplacedExecutable,
    StaleIdentityFile,
    Unreachable,
    Unverified,
    Whoami,
    default_socket,
)

__all__ = [
    "CallError",
    "ConnectionLost",
    "Impostor",
    "NotPublished",
    "OverlayClient",
    "ReplacedExecutable",
    "StaleIdentityFile",
    "Unreachable",
    "Unverified",
    "Whoami",
    "default_socket",
]
