"""A node's state, and decisions taken on it as the daemon takes them."""

from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any, TypeVar

from overlayd.model import attachments, overlay, rows, services
from overlayd.model.attachments import AttachSpec, Place
from overlayd.model.layout import Facts
from overlayd.model.objects import Netns, NetnsPath, Network
from overlayd.model.overlaps import HostNetwork
from overlayd.model.rows import Attachment, Change, Node, Overlay, Row, RowId, Service
from overlayd.model.state import Draft, State

T = TypeVar("T")

CLUSTER = ip_network("10.200.0.0/16")
SLICE = ip_network("10.200.7.0/28")
KEYS = [bytes([n]) * 32 for n in range(1, 6)]
OWN = bytes(32)
SERVICES = ["web", "api", "db"]
FACTS = Facts(mtu=1420)


def new_state() -> State:
    return State([Node(private_key=b"k" * 32)])


def change(state: State, decide: Callable[[Draft], T]) -> tuple[T, Change]:
    """Take a decision as the node does, and return its answer and the way back."""
    draft = Draft(state)
    answer = decide(draft)
    return answer, state.apply(draft.rows)


def set_up(
    state: State,
    *,
    deployment: str = "d",
    cluster: Network = CLUSTER,
    slice: Network | None = SLICE,
    instance_id: str = "1",
    port: int = 51820,
    host: Sequence[HostNetwork] = (),
) -> Overlay:
    return change(
        state,
        lambda draft: overlay.setup_global(
            draft,
            deployment=deployment,
            instance_id=instance_id,
            cluster=cluster,
            slice=slice,
            wg_port=port,
            nat=None,
            host=host,
        ),
    )[0]


def serve(state: State, name: str, **options: Any) -> Service:
    options = {"subnet": None, "dedicated_key": None} | options
    return change(state, lambda draft: services.setup_service(draft, name, **options))[0]


def attach(state: State, pid: int, service: str = "web", **spec: Any) -> Attachment:
    namespace = Netns(pid=pid, started=pid * 7, inode=pid + 1000)
    return change(
        state, lambda draft: attachments.attach_container(draft, AttachSpec(service=service, **spec), namespace, "boot")
    )[0]


def enter(
    state: State,
    id: str,
    ifname: str = "eth0",
    service: str = "web",
    *,
    cookie: int = 1,
    alive: bool = True,
    **spec: Any,
) -> Attachment:
    """Attach an interface of a namespace.  alive: whether what was attached under that id before lives."""
    place = Place(id, ifname, NetnsPath(f"/run/netns/{id}", 4, 1000 + cookie, cookie))
    asked = AttachSpec(service=service, **spec)
    return change(
        state, lambda draft: attachments.attach_namespace(draft, asked, place, "boot", lambda _attachment: alive)
    )[0]


def ready(**options: Any) -> State:
    state = new_state()
    set_up(state, **options)
    serve(state, "web")
    return state


def dump(state: State) -> dict[RowId, Row]:
    return {row.id: row for kind in rows.ROWS for row in state.table(kind).values()}
