"""The running-process family's own client, aimed at an endpoint that is not its own.

A daemon meets such a client if it listens on `spec.endpoint` and publishes its identity as `spec.identity_path`:

    with meeting(directory) as spec:
        start_daemon("--socket", spec.endpoint, "--identity-file", spec.identity_path)
        with connected(spec) as client:
            wait_for(client, "up")
            answer = ask(client, b'{"op": "status"}')
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lab.patience import until
from running_process_service import ServiceClient, ServiceSpec

PAYLOAD_PROTOCOL = 0xF0DE


@contextlib.contextmanager
def meeting(directory: Path, name: str = "overlayd") -> Iterator[ServiceSpec]:
    """Where a daemon and the family's clients meet, with every path below `directory`, which exists and is short.

    The family derives the socket's path from the service's name and XDG_RUNTIME_DIR, and accepts no other one.
    """
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(directory)
    try:
        spec = ServiceSpec(name=name, version="0.1.0", payload_protocol=PAYLOAD_PROTOCOL, health_interval=0.1)
        Path(spec.endpoint).parent.mkdir(parents=True, exist_ok=True)
        spec.identity_path.parent.mkdir(parents=True, exist_ok=True)
        yield spec
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before


@contextlib.contextmanager
def connected(spec: ServiceSpec) -> Iterator[ServiceClient]:
    """The family's client: it probes and reconnects by itself, in threads of its own, and never starts the daemon."""
    client = ServiceClient.connect(spec)
    try:
        yield client
    finally:
        client.close()


def wait_for(client: ServiceClient, state: str) -> None:
    """Wait until the client calls the daemon "up" or "down"."""
    until(lambda: client.state == state, f"the client calls the daemon {state}")


def ask(client: ServiceClient, *payloads: bytes) -> list[bytes | None]:
    """Send requests back to back and wait for the answers, in the order of the requests; None for one that was lost."""
    sent = [client.send(payload) for payload in payloads]
    answers: dict[int, bytes | None] = {}

    def answered() -> bool:
        while (reply := client.try_recv()) is not None:
            answers[reply.request_id] = reply.payload
        return len(answers) >= len(sent)

    until(answered, f"{len(sent)} answers")
    return [answers[request] for request in sent]
