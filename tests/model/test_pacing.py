"""What is due is taken, what is lost again and again waits, and so does what is on it."""

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.backoff import COSTS, FIRST, LONGEST, Backoff
from overlayd.model.objects import (
    Alias,
    Bridge,
    Device,
    DevicePeer,
    Element,
    Netns,
    Proxy,
    Route,
    Step,
    Veth,
)
from overlayd.model.pacing import RULESET, Pacing, pace_key

NOW = 1000.0


def bridge(service="web"):
    return Bridge(service, f"zl-{service}-b", ip_interface("10.9.0.1/24"), 1340)


def veth(number=1, service="web"):
    return Veth(
        name=f"veth-{number}-s",
        netns=Netns(number, number, number),
        interface="eth0",
        service=service,
        bridge=f"zl-{service}-b",
        address=ip_interface(f"10.9.0.{number + 1}/24"),
        gateway=ip_address("10.9.0.1"),
        routes=frozenset(),
        mac=bytes(6),
        mtu=1340,
    )


def device(scope=""):
    return Device(scope, f"zl-{scope}-g", bytes(32), 51820, 1420, frozenset())


def peer(scope=""):
    return DevicePeer(scope, f"zl-{scope}-g", bytes(32), None, 0, frozenset())


OBJECTS = [
    *(bridge(service) for service in ("web", "db")),
    *(veth(number, service) for number, service in ((1, "web"), (2, "web"), (3, "db"), (4, None))),
    *(Proxy(service, f"zl-{service}-b", ip_address("10.9.0.9")) for service in ("web",)),
    *(device(scope) for scope in ("", "own")),
    *(peer(scope) for scope in ("", "own")),
    Route("own", "zl-own-g", ip_network("10.7.0.0/24")),
    Alias("zl--g", ip_address("10.9.0.77")),
    Element("inet", "containers", "10.9.0.2"),
    Element("bridge", "ports", "veth-1-s"),
]

# What each object is on, by its place among OBJECTS; written down rather than worked out.
ON = {2: 0, 3: 0, 4: 1, 6: 0, 9: 7, 10: 8, 11: 8, 12: 7}


def make_lost(backoff: Backoff, key, times: int) -> None:
    """A thing was put back, and lost at once, so many times: it waits from the second time on."""
    for _ in range(times):
        backoff.restored(key, NOW - 0.001, cost=0.0)
        backoff.due(key, NOW - 0.0005)


def test_what_was_never_lost_before_is_taken_in_the_order_of_the_plan() -> None:
    steps = [Step(veth(9), None), Step(None, bridge()), Step(None, veth())]
    assert Pacing(Backoff()).split(steps, NOW) == (steps, None)
    assert Pacing(Backoff()).split([], NOW) == ([], None)


def test_what_is_lost_again_waits_and_the_rest_does_not() -> None:
    backoff = Backoff()
    make_lost(backoff, veth(1).key, 1)
    pacing = Pacing(backoff)
    steps = [Step(None, veth(1)), Step(None, veth(2))]
    taken, again = pacing.split(steps, NOW)
    assert taken == [steps[1]]
    assert again == NOW - 0.001 + FIRST
    assert pacing.split(steps, again) == (steps, None)


def test_what_is_on_a_bridge_that_has_to_wait_waits_with_it() -> None:
    backoff = Backoff()
    make_lost(backoff, bridge().key, 1)
    other = Step(None, veth(2, "db"))
    taken, again = Pacing(backoff).split([Step(None, bridge()), Step(None, veth()), other], NOW)
    assert taken == [other]
    assert again is not None


def test_what_is_on_a_bridge_that_is_there_does_not_wait_for_its_change() -> None:
    backoff = Backoff()
    make_lost(backoff, bridge().key, 1)
    change = Step(Bridge("web", "zl-web-b", ip_interface("10.9.0.1/24"), 0), bridge())
    taken, _ = Pacing(backoff).split([change, Step(None, veth())], NOW)
    assert taken == [Step(None, veth())]


def test_the_ruleset_is_paced_as_a_whole() -> None:
    pacing = Pacing(Backoff())
    steps = [Step(None, thing) for thing in OBJECTS if isinstance(thing, Element)]
    assert {pace_key(step) for step in steps} == {RULESET}
    pacing.taken(steps[:1], NOW, cost=0.005)
    assert pacing.split(steps[1:], NOW + 0.001) == ([], NOW + COSTS * 0.005)


def test_what_is_taken_again_and_again_waits_ever_longer() -> None:
    pacing, now, pauses = Pacing(Backoff()), NOW, []
    for _ in range(15):
        taken, again = pacing.split([Step(None, bridge())], now)
        if again is not None:
            pauses.append(again - now)
            now = again
            taken, _ = pacing.split([Step(None, bridge())], now)
        pacing.taken(taken, now, cost=0.0)
        now += 0.001
    assert pauses == sorted(pauses)
    assert pauses[-1] > LONGEST / 2


@given(
    st.lists(
        st.tuples(st.integers(0, len(OBJECTS) - 1), st.sampled_from(["create", "remove", "change"]), st.integers(0, 4)),
        unique_by=lambda drawn: drawn[0],
    )
)
def test_as_one_would_do_it_by_hand(drawn: list[tuple[int, str, int]]) -> None:
    """Each step for itself: it waits if its object does, or if the one that it is on is to be created and waits."""
    backoff = Backoff()
    steps, places = {}, {}
    for index, verb, times in drawn:
        thing = OBJECTS[index]
        steps[index] = Step(thing if verb != "create" else None, thing if verb != "remove" else None)
        make_lost(backoff, pace_key(steps[index]), times)
    places = {index: ON[index] for index in steps if index in ON and steps[index].want is not None}

    def waits(index: int) -> bool:
        return backoff.due(pace_key(steps[index]), NOW) > NOW

    expected = []
    for index, step in steps.items():
        under = places.get(index)
        absent = under in steps and steps[under].have is None and waits(under)
        if not waits(index) and not absent:
            expected.append(step)
    taken, again = Pacing(backoff).split(list(steps.values()), NOW)
    assert taken == expected
    dues = [backoff.due(pace_key(steps[index]), NOW) for index in steps if waits(index)]
    assert again == (min(dues) if dues else None)
