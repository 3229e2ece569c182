"""Several requests at once: what may have come of them.

Owns: which orders explain the answers.  Must not know: how requests are sent, what a machine shows.

The rule: every answered request took effect, every other one wholly or not at all, one after the other in some order.
By contract that order is free, but for requests of one connection that touch the same resource: these keep theirs, and
so do their answers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from crash.model import Model, Step

EVERYTHING = "everything"


class Sent(NamedTuple):
    """A request, and the number of the connection it was sent over."""

    connection: int
    step: Step


class Answer(NamedTuple):
    """What came back, and its place among the answers of its connection."""

    place: int
    said: dict[str, Any]


def explanations(before: Model, sent: Sequence[Sent], answers: Sequence[Answer | None]) -> list[Model]:
    """The states that may follow `before`: those after every order of requests that explains the answers (None: there
    is none, for the daemon died).  Empty when no order does.
    """
    found: list[Model] = []
    for model in _orders(before, sent, answers, frozenset(range(len(sent)))):
        if all(vars(model) != vars(other) for other in found):
            found.append(model)
    return found


def _orders(
    model: Model, sent: Sequence[Sent], answers: Sequence[Answer | None], left: frozenset[int]
) -> Iterator[Model]:
    """The states after some of the requests that are `left`, and after all of them that were answered."""
    if all(answers[each] is None for each in left):
        yield model
    for each in sorted(left):
        answer = answers[each]
        ahead = [other for other in sorted(left) if _goes_first(model, sent, answers, other, each)]
        if ahead and not (answer and _wrong_in_itself(model, [sent[it].step for it in ahead], sent[each].step)):
            continue
        after, said = model.after(sent[each].step)
        if answer is None or _of_its_turn(answer.said) == _of_its_turn(said):
            yield from _orders(after, sent, answers, left - {each})


def _of_its_turn(said: dict[str, Any]) -> dict[str, Any]:
    """An answer without the name server: that is one which serves when the answer is made, and others may have come and
    gone since the request took effect.
    """
    return {key: value for key, value in said.items() if key not in ("dns_server", "dns_domain")}


def _wrong_in_itself(model: Model, ahead: Sequence[Step], step: Step) -> bool:
    """Whether a request is refused at once as well as in its turn; then it need not wait for that."""
    refused_now = model.after(step)[1]["result"] == "err"
    for each in ahead:
        model, _ = model.after(each)
    return bool(refused_now and model.after(step)[1]["result"] == "err")


def overtakes(before: Model, sent: Sequence[Sent], answers: Sequence[Answer | None]) -> list[str]:
    """The answers that came before that to an earlier request which had to go first, a line each.  What is wrong in
    itself, as an attach of a process that is dead, may be refused at once.
    """
    found = []
    for later, answer in enumerate(answers):
        if answer is None or answer.said["result"] == "err":
            continue
        for earlier in range(later):
            first = answers[earlier]
            if _goes_first(before, sent, answers, earlier, later) and (first is None or first.place > answer.place):
                found.append(f"{sent[later].step} was answered before {sent[earlier].step}, of the same connection")
    return found


def _goes_first(
    before: Model, sent: Sequence[Sent], answers: Sequence[Answer | None], earlier: int, later: int
) -> bool:
    if earlier >= later or sent[earlier].connection != sent[later].connection:
        return False
    one, other = touched(sent[earlier].step), touched(sent[later].step)
    taken = [each for each, answer in zip(sent[:later], answers, strict=False) if not _is_refused(answer)]
    if _has_nothing_to_detach(before, taken, sent[later]):
        other.pop("names")
    return EVERYTHING in one or EVERYTHING in other or any(one[it] or other[it] for it in one.keys() & other.keys())


def _is_refused(answer: Answer | None) -> bool:
    return answer is not None and answer.said["result"] == "err"


def _has_nothing_to_detach(before: Model, earlier: Sequence[Sent], detach: Sent) -> bool:
    """Whether a detach may find nothing: then it takes no address from any name.  earlier: what was not refused.  An
    attach over another connection may well come after it.
    """
    if detach.step["op"] != "detach_container" or before.is_attached(detach.step["handle"]):
        return False
    attaches = (
        each for each in earlier if each.connection == detach.connection and each.step["op"] == "attach_container"
    )
    return all(each.step["handle"] != detach.step["handle"] for each in attaches)


def touched(step: Step) -> dict[str, bool]:
    """The resources that a request names, and whether it changes each or only relies on it."""
    op, service, device = step["op"], f"service {step.get('service')}", f"device of {step.get('service')}"
    match op:
        case "set_local_node_id" | "set_local_wg_pubkey":
            return {"node": True}
        case "setup_service_overlay":  # its subnet follows from the node's number
            return {service: True, "node": False} | ({device: True} if step["mode"] == "dedicated" else {})
        case "teardown_service_overlay":
            return {service: True, device: True, "names": False}
        case "allocate_ip":
            return {service: False}
        case "release_ip":
            return {f"address {step['ip']}": True, "names": False}
        case "attach_container":
            return {f"handle {step['handle']}": True, service: False}
        case "detach_container":
            return {f"handle {step['handle']}": True, "names": False}
        case "add_peer" | "remove_peer" | "add_allowed_ip" | "remove_allowed_ip":
            scope = step.get("scope", {}).get("service")
            return {f"device of {scope}": False, "routes": True} if scope else {"peers": True, "routes": True}
        case "register_dns" | "unregister_dns":
            return {"names": True}
    return {EVERYTHING: True}
