"""The search for the order in which requests that were sent at once were done; no daemon runs here."""

from collections.abc import Sequence
from typing import Any

from crash.model import Model, Step
from crash.scenarios import ATTACHED, FIRST, SECOND, SERVED, A, B, attach, container, detach, enter, peer, service, step
from crash.together import Answer, Sent, explanations, overtakes

SUBNET = "10.200.16"  # of service w
OK = {"result": "ok"}


def state(*steps: Step) -> Model:
    model = Model()
    for each in steps:
        model, answer = model.after(each)
        assert answer["result"] != "err"
    return model


def attached(number: int) -> dict[str, Any]:
    own = {"subnet": f"{SUBNET}.64/26", "gateway": f"{SUBNET}.65", "prefix_len": 26}
    return {"result": "attached", "ip": f"{SUBNET}.{number}", **own}


def heard(*said: dict[str, Any] | None) -> list[Answer | None]:
    return [Answer(place, each) if each else None for place, each in enumerate(said)]


def over_one(*steps: Step) -> list[Sent]:
    return [Sent(1, each) for each in steps]


def holders(models: Sequence[Model]) -> list[dict[str, str]]:
    return [{handle: it["address"][-2:] for handle, it in model.attachments.items()} for model in models]


TWO = (*ATTACHED[:-1], container(SECOND))  # containers that are not attached yet


def test_the_answers_tell_who_came_first() -> None:
    sent = over_one(attach(FIRST), attach(SECOND))
    assert holders(explanations(state(*TWO), sent, heard(attached(67), attached(66)))) == [
        {f"pid:{SECOND}": "66", f"pid:{FIRST}": "67"}
    ]


def test_one_address_has_not_two_holders() -> None:
    sent = over_one(attach(FIRST), attach(SECOND))
    assert not explanations(state(*TWO), sent, heard(attached(66), attached(66)))


def test_what_was_not_answered_is_there_or_not() -> None:
    sent = over_one(attach(FIRST), attach(SECOND))
    assert holders(explanations(state(*TWO), sent, heard(None, attached(66)))) == [
        {f"pid:{SECOND}": "66"},
        {f"pid:{SECOND}": "66", f"pid:{FIRST}": "67"},
    ]


def test_a_gap_below_an_answered_address_shows_what_was_not_answered() -> None:
    sent = over_one(attach(FIRST), attach(SECOND))
    assert holders(explanations(state(*TWO), sent, heard(None, attached(67)))) == [
        {f"pid:{FIRST}": "66", f"pid:{SECOND}": "67"}
    ]


def test_on_one_connection_a_resource_keeps_the_order() -> None:
    requests = (detach(FIRST), attach(FIRST, "w", isolation_network="red"))  # the other way round it is refused
    before = state(*ATTACHED)
    assert len(explanations(before, over_one(*requests), heard(OK, attached(67)))) == 1
    assert not explanations(before, over_one(*requests), heard(OK, {"result": "err"}))
    two_connections = [Sent(at, each) for at, each in enumerate(requests)]
    assert len(explanations(before, two_connections, heard(OK, {"result": "err"}))) == 1


def test_what_had_to_go_first_is_there_when_what_follows_is() -> None:
    sent = over_one(peer(A, "10.200.7.0/24"), peer(B, "10.200.7.0/24"))
    (after,) = explanations(state(*ATTACHED), sent, heard(None, OK))
    assert {key: it["listed"] for (_, key), it in after.peers.items()} == {A: [], B: ["10.200.7.0/24"]}


def test_what_is_refused_in_any_case_says_nothing_of_what_had_to_go_first() -> None:
    answers = heard(None, {"result": "err"})
    prune, of_a_dead_process = step("prune_orphan_bridges", live_bridge_names=[]), attach(SECOND)
    assert len(explanations(state(*SERVED), over_one(prune, of_a_dead_process), answers)) == 2
    assert len(explanations(state(*ATTACHED), over_one(prune, of_a_dead_process), answers)) == 1
    assert len(explanations(state(*ATTACHED), over_one(service("v"), attach(FIRST, "v")), answers)) == 2


def test_what_its_turn_makes_good_is_not_refused_before_it() -> None:
    before, answers = state(*ATTACHED, container(SECOND)), heard(None, {"result": "err"})
    assert not explanations(before, over_one(service("v"), attach(SECOND, "v")), answers)


def test_different_resources_have_no_order() -> None:
    before = state(*ATTACHED, container(SECOND))
    sent = over_one(service("v"), attach(SECOND))
    own = {"subnet": "10.200.21.128/26", "gateway": "10.200.21.129", "prefix_len": 26}
    answers = [Answer(1, {"result": "bridge_name", "name": "zl-c-1-v-b", **own}), Answer(0, attached(67))]
    assert len(explanations(before, sent, answers)) == 1
    assert not overtakes(before, sent, answers)


def test_an_answer_that_overtakes() -> None:
    before = state(*SERVED)
    sent = over_one(step("set_local_node_id", node_id=2), service("v"))
    done = {"result": "bridge_name", "name": "zl-c-1-v-b"}
    assert len(overtakes(before, sent, [Answer(1, OK), Answer(0, done)])) == 1
    assert len(overtakes(before, sent, [None, Answer(0, done)])) == 1
    assert not overtakes(before, sent, [Answer(0, OK), Answer(1, done)])
    assert not overtakes(before, sent, [Answer(0, OK), None])
    assert not overtakes(before, [sent[0], Sent(2, sent[1].step)], [Answer(0, OK), Answer(0, done)])


def test_a_detach_waits_for_names_only_when_it_may_take_some_away() -> None:
    before, backwards = state(*ATTACHED, container(SECOND)), [Answer(1, OK), Answer(0, OK)]
    name = step("register_dns", name="a", ip="10.200.16.66")
    assert overtakes(before, over_one(name, detach(FIRST)), backwards)
    assert not overtakes(before, over_one(name, detach(SECOND)), backwards)
    with_attach = over_one(attach(SECOND), name, detach(SECOND))
    assert overtakes(before, with_attach, [Answer(0, attached(67)), Answer(2, OK), Answer(1, OK)])
    assert not overtakes(before, with_attach, [Answer(0, {"result": "err"}), Answer(2, OK), Answer(1, OK)])
    elsewhere = [Sent(2, attach(SECOND)), *with_attach[1:]]
    assert not overtakes(before, elsewhere, [Answer(0, attached(67)), Answer(2, OK), Answer(1, OK)])


def test_the_name_server_may_be_that_of_a_service_that_came_since() -> None:
    """The pool tells who came first: the guest, or the container of a leg."""
    guest = step("attach_container", handle={"platform": "guest_managed", "id": "i"}, service="v", join_global=False)
    before = state(*ATTACHED[:-1], service("d"), container(SECOND))
    sent = [Sent(1, attach(SECOND, "w", join_global=True)), Sent(2, guest)]
    _, alone = before.after(guest)
    for told in ("10.200.16.65", "10.200.119.1"):
        assert len(explanations(before, sent, heard(attached(66), alone | {"dns_server": told}))) == 1
    assert not explanations(before, sent, heard(attached(66), alone | {"overlay_ip": "10.200.1.9"}))


def test_the_interfaces_of_a_dead_namespace_go_in_any_order() -> None:
    before = state(*ATTACHED[:-1], enter(FIRST, "w", "net0"), enter(FIRST, "w", "net1", default_route=False))
    orders = [
        sorted((lease["released"], address) for address, lease in model.leases.items() if lease["released"])
        for model in before.after_death(FIRST)
    ]
    assert [[address[-2:] for _, address in released] for released in orders] == [["66", "67"], ["67", "66"]]
