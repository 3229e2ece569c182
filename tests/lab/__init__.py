"""A laboratory of throw-away nodes: real network namespaces, the real daemon, real traffic.

Owns: making nodes, containers and an underlay, and removing them whatever happens.  Must not know: overlayd's
internals; it starts the daemon as an operator does and speaks to it over its socket.  Needs root.

    with Lab() as lab:
        alpha, beta = lab.node("alpha"), lab.node("beta")
        alpha.start()
"""

from lab.capture import Capture, Packet
from lab.container import Container
from lab.crun import CrunContainer
from lab.frames import Connection, Refused
from lab.lab import Lab, sweep
from lab.node import DaemonExited, Node
from lab.processes import CommandFailed, run
from lab.traffic import Ping, Transfer, ping, transfer

__all__ = [
    "Capture",
    "CommandFailed",
    "Connection",
    "Container",
    "CrunContainer",
    "DaemonExited",
    "Lab",
    "Node",
    "Packet",
    "Ping",
    "Refused",
    "Transfer",
    "ping",
    "run",
    "sweep",
    "transfer",
]
