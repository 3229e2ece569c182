"""Which address is handed out, who holds one, and who may give it back."""

import pytest
from decisions import SLICE, attach, change, new_state, ready, serve

from overlayd.errors import RequestError
from overlayd.model import ipam
from overlayd.model.rows import Attachment, Lease
from overlayd.model.state import State


def test_an_address_is_given_back_by_its_holder_only() -> None:
    state = ready()
    address = change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0]
    assert not change(state, lambda draft: ipam.release(draft, address, "somebody"))[0]
    assert not change(state, lambda draft: ipam.release(draft, address + 1, ipam.REQUEST))[0], "nobody had it"
    assert change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))[0]
    assert not change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))[0], "it was given back"


def test_later_releases_have_higher_numbers_within_a_decision_too() -> None:
    state = ready()
    addresses = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0] for _ in range(3)]
    change(state, lambda draft: [ipam.release(draft, address, ipam.REQUEST) for address in addresses[:2]])
    change(state, lambda draft: ipam.release(draft, addresses[2], ipam.REQUEST))
    released = [state.table(Lease)[str(address)].released for address in addresses]
    assert released == sorted({*released})


def holder(state: State, address: object) -> str:
    return change(state, lambda draft: ipam.holder_of(draft, address))[0]  # type: ignore[arg-type]


def test_holders_have_names() -> None:
    state = ready()
    address = change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0]
    attached = attach(state, 71).address
    assert holder(state, address) == "allocate_ip"
    assert holder(state, attached) == "pid:71"
    assert holder(state, state.node_address) == "the node"
    change(state, lambda draft: ipam.release(draft, address, ipam.REQUEST))
    assert holder(state, address) == ""


def test_there_is_nothing_to_lease_without_an_overlay_or_of_a_service_that_is_not_here() -> None:
    with pytest.raises(RequestError, match="global overlay not set up"):
        change(State([]), lambda draft: ipam.allocate_ip(draft, ""))
    with pytest.raises(RequestError, match="service api is not set up"):
        change(ready(), lambda draft: ipam.allocate_ip(draft, "api"))


def test_a_full_pool_says_how_many_are_held() -> None:
    state = ready()
    serve(state, "api")
    with pytest.raises(RequestError, match=r"no free address in service api: all of .* is taken, \d+ held"):
        for _ in range(1000):
            change(state, lambda draft: ipam.allocate_ip(draft, "api"))


def test_a_container_of_a_full_subnet_is_refused_with_the_numbers():
    state = ready()
    for pid in range(1, 62):
        attach(state, pid)
    with pytest.raises(RequestError, match=r"service web: all of 10\.200\..*/26 is taken, 61 held"):
        attach(state, 99)
    assert state.get(Attachment, "pid:99") is None


def test_a_released_address_is_reused_last_and_oldest_first():
    state = ready()
    taken = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0] for _ in range(61)]
    assert taken == sorted(taken)
    for address in (taken[5], taken[2]):
        change(state, lambda draft, address=address: ipam.release(draft, address, ipam.REQUEST))
    again = [change(state, lambda draft: ipam.allocate_ip(draft, "web"))[0] for _ in range(2)]
    assert again == [taken[5], taken[2]]


def test_release_leaves_a_containers_address_alone():
    state = ready()
    attachment = attach(state, 7)
    freed, _ = change(state, lambda draft: ipam.release(draft, attachment.address, ipam.REQUEST))
    assert not freed
    assert state.get(Lease, str(attachment.address)).holder == "pid:7"


def test_an_address_is_asked_of_a_service_that_is_set_up_or_of_the_node():
    state = ready()
    with pytest.raises(RequestError, match="service wbe is not set up on this node"):
        change(state, lambda draft: ipam.allocate_ip(draft, "wbe"))
    with pytest.raises(RequestError, match="slice; there is web, and upper and lower case differ"):
        change(state, lambda draft: ipam.allocate_ip(draft, "Web"))
    assert change(state, lambda draft: ipam.allocate_ip(draft, ""))[0] in SLICE
    with pytest.raises(RequestError, match="global overlay not set up"):
        change(new_state(), lambda draft: ipam.allocate_ip(draft, "web"))
