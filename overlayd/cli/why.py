"""`overlayctl why` and `overlayctl ping`: what the daemon knows, as the decision needs it, and the way as it is shown.

Owns: from answers of the daemon to what a node knows, and the numbered lines.  Must not know: what a hop needs
(`model.path`), how the kernel is looked at (`inspect.way`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from overlayd import wire
from overlayd.cli.call import NotFound
from overlayd.cli.columns import Paper, Tone, printable, toned
from overlayd.cli.tables import line_json
from overlayd.client import OverlayClient
from overlayd.errors import OverlaydError, StateError
from overlayd.inspect import way
from overlayd.inspect.ping import ping
from overlayd.model import ends
from overlayd.model.ends import Hop, Known, Member, Peer, Service

_TONES: dict[str, Tone] = {"ok": "", "broken": "bad", "unknown": "doubtful"}


async def known(client: OverlayClient) -> Known | None:
    """What the daemon of a node knows; None when its overlay is not set up."""
    status = await client.status()
    if status.overlay_cidr is None or status.node_ip is None:
        return None
    services = (await client.list("services")).services
    containers = (await client.list("containers")).containers
    peers = (await client.list("peers")).peers
    names = (await client.list_dns()).names
    found = await client.doctor()
    doubts = [each for each in found if each.code == "link-filtered" or _in_doubt(each)]
    findings = [each for each in found if each.severity in ("error", None) and each not in doubts]
    devices = {each.service: (each.interface, each.public_key) for each in status.dedicated_services}
    if status.interface is not None:
        devices[""] = (status.interface, status.public_key or "")
    return Known(
        cluster=ip_network(status.overlay_cidr),
        slice=ip_network(status.slice_cidr) if status.slice_cidr is not None else None,
        node_address=ip_address(status.node_ip),
        mtu=status.mtu or 0,
        devices=devices,
        services={
            each.service: Service(
                each.service, ip_network(each.subnet), ip_address(each.gateway), each.bridge, each.device or ""
            )
            for each in services
        },
        members=tuple(
            Member(
                each.handle,
                each.service,
                ip_address(each.ip),
                ip_address(each.global_ip) if each.global_ip is not None else None,
                each.isolation_network or "",
                each.link or "",
                each.mac or "",
                each.interface or "eth0",
                each.namespace or "",
            )
            for each in containers
        ),
        peers=tuple(
            Peer(
                each.name or "",
                each.public_key,
                each.service or "",
                each.endpoint or "",
                tuple(map(ip_network, each.allowed_ips)),
            )
            for each in peers
            if each.kind == "node"
        ),
        names={each.name: tuple(map(ip_address, each.ips)) for each in names},
        findings=tuple((each.code or "", each.object, each.problem, each.remedy) for each in findings),
        name=status.cluster.node if status.cluster is not None else "",
        doubts=tuple((each.code or "", each.object, each.problem, each.remedy) for each in doubts),
    )


def _in_doubt(finding: wire.Finding) -> bool:
    """Whether it may lose packets that are forwarded, or not."""
    return finding.code in ("forward-blocked", "route-diverted") and finding.severity not in ("error", None)


def known_without_daemon(directory: Path, error: OverlaydError) -> Known | None:
    """What the journal knows, when nobody answers.  Raises the error that says so when the journal cannot be read."""
    try:
        return way.known_of_journal(directory)
    except StateError:
        raise error from None


def explain(known: Known, source: str, target: str) -> tuple[list[Hop], bool]:
    """The hops from one end to another; whether they are those of the way back."""
    return way.explain_way(known, source, target)


def as_text(hops: Sequence[Hop], turned: bool, paper: Paper) -> str:
    """The hops numbered, and below the verdict with the remedy."""
    lines = ["this node sees the way back only:"] if turned else []
    for number, hop in enumerate(hops, 1):
        mark = {"ok": "ok", "broken": "BROKEN", "unknown": "?"}[hop.state]
        line = f"{number:>2}  {mark:<6}  {printable(f'{hop.where} {hop.what}')}"
        lines.append(toned(line, _TONES[hop.state], paper))
    last = hops[-1]
    if last.state == "broken":
        lines += ["", f"broken at hop {len(hops)}: {printable(f'{last.where} {last.what}')}"]
        lines += [f"remedy: {printable(last.remedy)}"]
    elif last.state == "ok" and any(each.state == "unknown" for each in hops):
        lines += ["", "the other end answers, though not every hop could be looked at"]
    elif any(each.state == "unknown" for each in hops):
        lines += ["", "nothing is known to be broken, but not every hop could be looked at"]
    else:
        lines += ["", "all is well on this way"]
    return "\n".join(lines)


def as_json(hops: Sequence[Hop], turned: bool) -> str:
    """One object: the hops, and whether they are those of the way back."""
    return line_json({"way_back": turned, "hops": [each._asdict() for each in hops]})


class Reply(NamedTuple):
    """The reply to one ping.  seconds: None when there was none.  error: why it could not be sent.  path, peer: of the
    peer that it went to, both empty when it went to none.
    """

    address: str
    seconds: float | None
    error: str
    path: str
    peer: str

    def __str__(self) -> str:
        if self.error:
            return f"{self.address}: cannot be pinged: {self.error}"
        way = f", {self.path} to {self.peer}" if self.peer else ""
        if self.seconds is None:
            return f"{self.address}: no answer within 1 s{way}"
        return f"{self.address}: {self.seconds * 1000:.1f} ms{way}"

    def as_json(self) -> str:
        """One object on one line."""
        milliseconds = None if self.seconds is None else round(self.seconds * 1000, 3)
        told = {"address": self.address, "milliseconds": milliseconds}
        told |= {"peer": self.peer, "path": self.path} if self.peer else {}
        return line_json(told | ({"error": self.error} if self.error else {}))


def pings(known: Known, text: str, count: int, paths: Mapping[str, str]) -> Iterator[Callable[[], Reply]]:
    """Ping an end so many times; each ping waits for its reply.  paths: of peers, by key."""
    end = ends.find(known, text)
    if end.address is None:
        said = end.name or Hop(
            f"{text!r}", "has no one address to ping", remedy="name a container, an address or a peer"
        )
        raise NotFound(f"{said.where} {said.what}; {said.remedy}")
    peer = end.peer
    path, called = (paths.get(peer.key) or "unknown path", peer.called) if peer is not None else ("", "")

    def once() -> Reply:
        assert end.address is not None
        try:
            return Reply(str(end.address), ping(end.address, tries=1), "", path, called)
        except OSError as error:
            return Reply(str(end.address), None, error.strerror or str(error), path, called)

    for _ in range(count):
        yield once
