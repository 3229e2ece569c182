"""Many containers at once: attached and deleted together, by one visit to the kernel and by many threads."""

import errno
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from veth_legs import make_bridge, service_leg

from overlayd.linux import veth, veth_removal
from overlayd.linux.observe import observe_veth
from overlayd.model.objects import GROUP_VETH


def test_several_at_once_of_which_one_is_refused(host, container):
    make_bridge()
    boxes = [container() for _ in range(4)]
    wanted = [service_leg(box, number) for number, box in enumerate(boxes, 5)]
    boxes[1].kill()
    wanted[2] = replace(wanted[2], bridge="zl-none-b")
    outcomes = veth.create_all(wanted)
    assert [getattr(each, "errno", each) for each in outcomes] == [None, errno.ESRCH, errno.ENODEV, None]
    assert observe_veth(wanted[0].name, boxes[0].netns) == wanted[0]
    assert observe_veth(wanted[3].name, boxes[3].netns) == wanted[3]
    assert observe_veth(wanted[1].name, boxes[1].netns) is None


def test_a_hundred_are_deleted_at_once_and_nothing_else(host, container, shell):
    make_bridge()
    box, other = container(), container()
    before = host()
    names = [f"veth-{number}-s" for number in range(100)]
    shell("; ".join(f"ip link add {name} group {GROUP_VETH} type veth peer name p{name[5:]}" for name in names))
    kept = service_leg(other)
    veth.create(kept)
    veth.create(service_leg(box, 6))
    veth_removal.delete([*names, f"veth-{box.pid}-s", "veth-none-s", "zl-web-b", "lo"])
    assert observe_veth(kept.name, other.netns) == kept
    veth_removal.delete([kept.name])
    assert host() == before
    veth_removal.delete([*names, kept.name])
    veth_removal.delete([])
    assert host() == before


def test_threads_attach_and_delete_at_the_same_time(host, container):
    make_bridge()
    before = host()
    boxes = [container() for _ in range(12)]
    legs = [service_leg(box, number) for number, box in enumerate(boxes, 5)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(veth.create, legs))
        assert [observe_veth(leg.name, leg.netns) for leg in legs] == legs
        list(
            pool.map(veth_removal.delete, [[leg.name for leg in legs[start : start + 3]] for start in range(0, 12, 3)])
        )
    assert host() == before
