"""The way back: what can be put back is, whatever else cannot."""

from errno import ESRCH
from ipaddress import ip_address, ip_interface, ip_network

from overlayd.daemon.change import apply
from overlayd.daemon.change.apply import Kernel
from overlayd.errors import MechanismError
from overlayd.linux.nft import Nft
from overlayd.model.objects import Netns, Step, Veth


def leg(pid: int) -> Veth:
    return Veth(
        name=f"veth-{pid}-s",
        netns=Netns(pid, pid, pid),
        interface="eth0",
        service="web",
        bridge="zl-web-b",
        address=ip_interface(f"10.9.0.{pid}/24"),
        gateway=ip_address("10.9.0.1"),
        routes=frozenset({ip_network("0.0.0.0/0")}),
        mac=bytes(6),
        mtu=1340,
    )


def test_a_container_that_died_does_not_keep_the_others_from_coming_back(monkeypatch) -> None:
    """Veths are deleted together, and come back one by one."""
    back = []

    def create(veth: Veth) -> None:
        if veth.netns.pid == 2:
            raise MechanismError("find", "process 2", ESRCH)
        back.append(veth.netns.pid)

    monkeypatch.setattr(apply.veth, "create", create)
    kernel = Kernel(None, Nft())
    kernel.undo([[Step(leg(pid), None) for pid in (1, 2, 3)]])
    kernel.close()
    assert sorted(back) == [1, 3]
