"""What `overlayctl` lists of a node: services, containers, addresses, networks, peers.

Owns: which columns a list has, the order of its rows (what is wrong comes first), the filter and the summary.  Must not
know: where rows come from, how they are laid out (`columns`), the clock (`now` is an argument, Unix seconds).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from overlayd import wire
from overlayd.cli.columns import Column, Paper, Row, Tone, table
from overlayd.cli.tables import age, key, size

T = TypeVar("T")

NEARLY_FULL = 0.9  # of a pool: from here on it is shown first


class List(NamedTuple, Generic[T]):
    """One kind of list.  cells: of a row, in the order of the columns.  tone: of a row.  order: what rows of one tone
    are sorted by.  summary: of all rows, without the number of those that are shown.
    """

    columns: tuple[Column, ...]
    cells: Callable[[T], Sequence[str]]
    tone: Callable[[T], Tone]
    order: Callable[[T], object]
    summary: Callable[[Sequence[T]], str]


def matching(kind: List[T], rows: Iterable[T], filters: Sequence[str]) -> list[T]:
    """The rows that have every filter's text in one of their cells, in the order in which they are shown."""
    wanted = [each.lower() for each in filters]
    tones = ("bad", "doubtful", "", "faint")
    found = []
    for row in rows:
        cells = [cell.lower() for cell in kind.cells(row)]
        if all(any(text in cell for cell in cells) for text in wanted):
            found.append(row)
    return sorted(found, key=lambda row: (tones.index(kind.tone(row)), kind.order(row)))


def text(kind: List[T], rows: Sequence[T], filters: Sequence[str], paper: Paper) -> str:
    """The table of the rows that match, and a line that sums up."""
    shown = matching(kind, rows, filters)
    summary = kind.summary(rows)
    if filters:
        summary += f"; {len(shown)} shown"
    if not shown:
        return summary
    return table(kind.columns, [Row(kind.cells(row), kind.tone(row)) for row in shown], paper) + "\n\n" + summary


def services(now: float) -> List[wire.ListedService]:
    return List(
        columns=(
            Column("SERVICE", 16),
            Column("MODE"),
            Column("SUBNET"),
            Column("GATEWAY", rank=1),
            Column("LINK", rank=2),
            Column("MEMBERS"),
            Column("HELD", rank=4),
            Column("SINCE", rank=3),
        ),
        cells=lambda each: (
            each.service,
            each.mode,
            each.subnet,
            each.gateway,
            each.device or each.bridge,
            str(each.members),
            str(each.held),
            _since(each.since_unix, now),
        ),
        tone=lambda each: "",
        order=lambda each: each.service,
        summary=lambda rows: _counted(rows, "service", Counter(each.mode for each in rows)),
    )


def containers(now: float) -> List[wire.ListedContainer]:
    return List(
        columns=(
            Column("CONTAINER"),  # as the next command takes it: not cut
            Column("SERVICE", 10),
            Column("ADDRESS"),
            Column("GLOBAL", rank=6),
            Column("NAMES", 12, rank=2),
            Column("NETWORK", 8, rank=1),
            Column("LINK", rank=3),
            Column("MAC", rank=5),
            Column("SINCE", rank=4),
        ),
        cells=lambda each: (
            each.handle,
            each.service,
            each.ip,
            each.global_ip or "-",
            " ".join(each.names) or "-",
            each.isolation_network or "-",
            each.link or "-",
            each.mac or "-",
            _since(each.since_unix, now),
        ),
        tone=lambda each: "",
        order=lambda each: (each.service, _by_address(each.ip)),
        summary=lambda rows: _counted(rows, "container", Counter(_kind(each.handle) for each in rows)),
    )


class Pool(NamedTuple):
    """A pool and what its addresses are held by.  shared: it is the node's own, which a service has as well."""

    pool: wire.ListedPool
    holders: Counter[str]
    shared: bool = False


def pools() -> List[Pool]:
    return List(
        columns=(Column("POOL", 10), Column("SUBNET"), Column("HELD"), Column("OF"), Column("BY", 12, rank=1)),
        cells=lambda each: (
            each.pool.service or "(node)",
            each.pool.subnet,
            str(each.pool.held),
            str(each.pool.size),
            "those of (node)"
            if each.shared
            else ", ".join(f"{kind}: {number}" for kind, number in each.holders.most_common()) or "-",
        ),
        tone=_fullness,
        order=lambda each: (each.pool.service is not None, each.pool.service or ""),
        summary=lambda rows: _fill([each.pool for each in rows if not each.shared]),
    )


def _fill(pools: Sequence[wire.ListedPool]) -> str:
    held, size = sum(each.held for each in pools), sum(each.size for each in pools)
    return f"{held} of {size} addresses are held, in {_number(len(pools), 'pool')}"


def addresses() -> List[wire.ListedAddress]:
    return List(
        columns=(Column("ADDRESS"), Column("POOL", 10), Column("HELD BY")),  # a handle, as commands take it
        cells=lambda each: (each.ip, each.service or "(node)", each.holder),
        tone=lambda each: "",
        order=lambda each: (each.service or "", _by_address(each.ip)),
        summary=lambda rows: f"{len(rows)} addresses are held",
    )


def networks() -> List[wire.ListedNetwork]:
    return List(
        columns=(Column("NETWORK", 12), Column("MEMBERS"), Column("SERVICES", 12)),
        cells=lambda each: (each.network, str(each.members), ", ".join(each.services) or "-"),
        tone=lambda each: "",
        order=lambda each: each.network,
        summary=lambda rows: (
            f"{_number(len(rows), 'isolation network')}, {_number(sum(each.members for each in rows), 'member')}"
        ),
    )


def names() -> List[wire.DnsName]:
    return List(
        columns=(Column("NAME", 16), Column("ADDRESSES", 16)),
        cells=lambda each: (each.name, " ".join(each.ips)),
        tone=lambda each: "",
        order=lambda each: each.name,
        summary=lambda rows: _number(len(rows), "name"),
    )


def peers(now: float, *, wide: bool) -> List[wire.ListedPeer]:
    return List(
        columns=(
            Column("PEER", 12),
            Column("STATE"),
            Column("PATH", rank=2),
            Column("ENDPOINT", 15, rank=3),
            Column("HANDSHAKE"),
            Column("RECEIVED", rank=4),
            Column("SENT", rank=5),
            Column("ALLOWED IPS", 14, rank=1),
        ),
        cells=lambda each: (
            _called(each, wide=wide),
            state(each),
            each.path or "-",
            each.endpoint or "unknown",
            age(each.last_handshake_unix_secs, now),
            size(each.rx_bytes),
            size(each.tx_bytes),
            ", ".join(each.allowed_ips) or "none",
        ),
        tone=lambda each: "bad" if state(each) in ("silent", "unreachable") else "",
        order=lambda each: (each.service or "", each.name is None, each.name or each.public_key),
        summary=lambda rows: _counted(rows, "peer", Counter(map(state, rows))),
    )


def state(peer: wire.ListedPeer) -> str:
    """How a peer is, in a word."""
    if peer.health == "silent":
        return "silent"
    if peer.kind == "node" and peer.path == "unreachable":
        return "unreachable"
    if not peer.last_handshake_unix_secs:
        return "new"
    return "idle" if peer.health == "idle" else "answers"


def _called(peer: wire.ListedPeer, *, wide: bool) -> str:
    called = f"{peer.name} {peer.public_key}" if wide and peer.name else peer.name or key(peer.public_key, wide=wide)
    kind = f" ({peer.kind})" if peer.kind != "node" else ""
    return f"{called}{kind} of {peer.service}" if peer.service else f"{called}{kind}"


def _fullness(each: Pool) -> Tone:
    pool = each.pool
    return "bad" if pool.held >= pool.size else "doubtful" if pool.held >= NEARLY_FULL * pool.size else ""


def _kind(handle: str) -> str:
    """What kind of holder or member a handle names, for a count."""
    word = handle.partition(":")[0]
    kinds = {"guest": "guest", "host": "on the host's network"} | dict.fromkeys(("pid", "netns"), "in a namespace")
    return kinds.get(word, word)


def held_by(pools: Sequence[wire.ListedPool], held: Iterable[wire.ListedAddress]) -> list[Pool]:
    """The pools, with how many of their addresses are held by what."""
    kinds = {"pid": "containers", "netns": "containers", "guest": "guests", "host": "host-shared", "edge": "edge peers"}
    found: dict[str | None, Counter[str]] = {}
    for each in held:
        word = each.holder.partition(":")[0]
        found.setdefault(each.service, Counter())[kinds.get(word, word)] += 1
    own = {each.subnet for each in pools if each.service is None}
    return [
        Pool(each, found.get(each.service, Counter()), shared=each.service is not None and each.subnet in own)
        for each in pools
    ]


def _by_address(text: str) -> tuple[int, ...]:
    """IPv4 in the order of numbers, and IPv6 as it is written: for people."""
    return tuple(int(part) for part in text.split(".")) if text.count(".") == 3 and ":" not in text else (256,)


def _since(unix: int | None, now: float) -> str:
    return age(unix, now) if unix else "-"


def _number(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def _counted(rows: Sequence[object], word: str, kinds: Counter[str]) -> str:
    several = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    return _number(len(rows), word) + (f": {several}" if several else "")
