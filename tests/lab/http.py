"""Asking a daemon by HTTP, byte by byte.

Owns: one request and its answer.  Must not know: what is asked for.
"""

import socket

from lab.node import Node


def get(node: Node, place: str, target: str, method: str = "GET", host: str = "x") -> tuple[int, str]:
    """The status and the body of an answer.  place: the path of a socket, or a port on the node's loopback."""
    link = socket.socket(socket.AF_UNIX) if place.startswith("/") else node.open_socket()
    with link:
        link.settimeout(20)
        link.connect(place if place.startswith("/") else ("127.0.0.1", int(place)))
        link.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        data = b""
        while piece := link.recv(1 << 16):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()
