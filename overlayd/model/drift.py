"""Words for a difference between what is there and what should be.

Owns: the texts for the log and for the doctor.  Must not know: how a difference was found, or who made it.
"""

from collections.abc import Sequence
from dataclasses import fields

from overlayd import keys
from overlayd.model.objects import Alias, Bridge, Device, DevicePeer, Element, Fence, Object, Proxy, Route, Step, Veth

FEW = 4  # our own: so many differences of a kind are told one by one
PLURALS: dict[type[Object], str] = {
    Device: "devices",
    DevicePeer: "peers",
    Bridge: "bridges",
    Veth: "veths",
    Route: "routes",
    Fence: "unreachable routes",
    Alias: "addresses",
    Proxy: "proxies",
    Element: "members of nftables sets",
}


def name(thing: Object) -> str:
    """What a person calls it: "bridge zl-lab-a-web-b", "veth-71-s", "peer 3q2+7wAA of zl-lab-a-g"."""
    match thing:
        case Device() | Bridge():
            return f"{type(thing).__name__.lower()} {thing.name}"
        case Veth():
            return thing.name
        case DevicePeer():
            return f"peer {keys.text(thing.public_key)[:8]} of {thing.device}"
        case Route():
            return f"route {thing.destination} through {thing.device}"
        case Fence():
            return f"unreachable route {thing.destination}"
        case Alias():
            return f"address {thing.address} on {thing.device}"
        case Proxy():
            return f"proxy for {thing.address} on {thing.bridge}"
        case Element():
            return f"{thing.member} in nftables set {thing.family} {thing.set}"


def describe(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """The objects of the steps by name, and what is wrong with each; many of one kind are told as one."""
    kinds: dict[type[Object], list[Step]] = {}
    for step in steps:
        thing = step.want or step.have
        if thing is not None:
            kinds.setdefault(type(thing), []).append(step)
    found = []
    for kind, group in kinds.items():
        if len(group) > FEW:
            found.append((f"{len(group)} {PLURALS[kind]}", "are missing or differ"))
        else:
            found += [(name(thing), problem(step)) for step in group if (thing := step.want or step.have)]
    return found


def problem(step: Step) -> str:
    """What is wrong with the object of a step that would put it right."""
    have, want = step.have, step.want
    if want is None:
        return "is not wanted"
    if have is None:
        return "is missing"
    if isinstance(want, Veth) and isinstance(have, Veth) and have.service != want.service:
        return f"is not on its bridge {want.bridge}" if want.bridge else f"is on the bridge {have.bridge}"
    return "; ".join(_differences(have, want))


def _differences(have: Object, want: Object) -> list[str]:
    found = []
    for field in fields(want):
        old, new = getattr(have, field.name), getattr(want, field.name)
        if old == new or not field.compare:
            continue
        if field.name == "fault":
            found.append(f"is broken: {old}")
        elif field.name == "address" and not old.network.prefixlen:  # how it says that there is none, or several
            found.append(f"does not have the address {new} alone")
        elif not field.repr:
            found.append(f"has another {field.name}")
        else:
            found.append(f"has {field.name} {_text(old)}, not {_text(new)}")
    return found


def _text(value: object) -> str:
    if isinstance(value, frozenset):
        return ", ".join(sorted(map(str, value))) or "none"
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return value.hex(":") if isinstance(value, bytes) else str(value)
