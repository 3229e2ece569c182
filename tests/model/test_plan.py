"""The steps lead from what is there to what should be, and nothing is ever where its place is not."""

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.objects import (
    GLOBAL,
    Alias,
    Bridge,
    Device,
    DevicePeer,
    Element,
    Netns,
    Proxy,
    Route,
    Veth,
)
from overlayd.model.plan import plan

SCOPES = (GLOBAL, "own")


def veth(number: int, mtu: int) -> Veth:
    return Veth(
        name=f"veth-{number}-s",
        netns=Netns(number, number, number),
        interface="eth0",
        service="web",
        bridge="zl-web-b",
        address=ip_interface(f"10.9.0.{number}/24"),
        gateway=ip_address("10.9.0.1"),
        routes=frozenset(),
        mac=bytes(6),
        mtu=mtu,
    )


def objects(variant: int) -> list:
    """One of each kind and place, in a variant: those of two variants have one key, and differ."""
    devices = [Device(scope, f"zl-{scope}-g", bytes(32), 51820 + variant, 1420, frozenset()) for scope in SCOPES]
    peers = [
        DevicePeer(scope, f"zl-{scope}-g", bytes([n]) * 32, None, variant, frozenset())
        for scope in SCOPES
        for n in (1, 2)
    ]
    routes = [Route(scope, f"zl-{scope}-g", ip_network(f"10.{n}.0.0/16")) for n, scope in enumerate(SCOPES)]
    return [
        *devices,
        *peers,
        *routes,
        Alias("zl--g", ip_address("10.9.0.77")),
        Bridge("web", "zl-web-b", ip_interface("10.9.0.1/24"), 1340 + variant),
        Proxy("web", "zl-web-b", ip_address("10.9.0.9")),
        *(veth(number, 1340 + variant) for number in (2, 3)),
        Element("inet", "containers", "10.9.0.2", f"{variant}"),
    ]


LAYOUTS = st.fixed_dictionaries(
    {},
    optional={thing.key: st.sampled_from([thing, other]) for thing, other in zip(objects(0), objects(1), strict=True)},
)


def place(thing) -> object:
    """The key of the object without which a thing cannot be."""
    if isinstance(thing, DevicePeer | Route):
        return ("device", thing.scope)
    if isinstance(thing, Alias):
        return ("device", GLOBAL)
    return ("bridge", "web") if isinstance(thing, Proxy | Veth) else None


def with_places(layout: dict) -> dict:
    """Without what is on an object that is not there."""
    return {key: thing for key, thing in layout.items() if place(thing) is None or place(thing) in layout}


@given(LAYOUTS.map(with_places), LAYOUTS.map(with_places))
def test_the_steps_lead_from_one_to_the_other_and_keep_everything_in_its_place(have: dict, want: dict) -> None:
    there = dict(have)
    for step in plan(have, want):
        thing = step.want or step.have
        assert there.get(thing.key) == step.have, "a step starts from what is there"
        if step.along:
            device = ("device", thing.scope if isinstance(thing, DevicePeer | Route) else GLOBAL)
            assert device in have and device not in want
        if step.want is not None:
            assert place(step.want) is None or place(step.want) in there
            there[thing.key] = step.want
        else:
            del there[thing.key]
    assert there == want


@given(LAYOUTS, LAYOUTS)
def test_the_inverse_steps_in_reverse_lead_back(have: dict, want: dict) -> None:
    there = dict(want)
    for step in reversed(plan(have, want)):
        back = step.inverse()
        thing = back.want or back.have
        assert there.pop(thing.key, None) == back.have
        if back.want is not None:
            there[thing.key] = back.want
    assert there == have


@given(LAYOUTS)
def test_what_is_as_it_should_be_takes_no_step(layout: dict) -> None:
    assert plan(layout, dict(reversed(layout.items()))) == []


def test_a_container_is_filtered_from_its_first_packet_on() -> None:
    element, leg = Element("inet", "containers", "10.9.0.2"), veth(2, 1340)
    made = [step.want for step in plan({}, {leg.key: leg, element.key: element})]
    assert made == [element, leg]
    assert [step.have for step in plan({leg.key: leg, element.key: element}, {})] == [leg, element]
