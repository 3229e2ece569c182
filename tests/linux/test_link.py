"""Names of links, as `ip` shows them afterwards."""

import errno
from dataclasses import replace

import pytest
from links_shown import BOTH, WEB, shown

from overlayd.errors import MechanismError
from overlayd.linux import bridge, forwarding, link
from overlayd.linux.observe import observe_bridge


def test_rename_in_place_keeps_the_old_name_as_the_alternative_one(host, shell):
    bridge.create(WEB)
    shell("ip link add p0 type veth peer name p1; ip link set p0 up; ip link set p1 up; ip link set p0 master zl-web-b")
    assert link.rename("zl-web-b", "zl-b2-b") == "zl-b2-b"
    assert link.rename("zl-web-b", "zl-b2-b") == "zl-b2-b"
    assert link.link_index("zl-web-b") == link.link_index("zl-b2-b")
    assert link.rename("zl-b2-b", "zl-b3-b") == "zl-b3-b"
    assert shown(shell, "zl-b3-b")["altnames"] == ["zl-b2-b"]
    assert link.rename("zl-b3-b", "zl-b2-b") == "zl-b2-b"
    assert shown(shell, "zl-b2-b")["altnames"] == ["zl-b3-b"]
    assert "UP" in shown(shell, "zl-b2-b")["flags"]


@BOTH
def test_where_a_running_link_cannot_be_renamed_the_new_name_is_the_alternative_one(host, shell, monkeypatch, wanted):
    """This kernel can: the refusal of an older one (EBUSY) is put in its place."""
    bridge.create(wanted)
    genuine = link.Netlink.transact

    def refuse(self, requests):
        if any(request.operation == "rename" for request in requests):
            raise MechanismError("rename", requests[0].object, errno.EBUSY)
        return genuine(self, requests)

    monkeypatch.setattr(link.Netlink, "transact", refuse)
    for _ in range(2):
        assert link.rename("zl-web-b", "zl-new-b") == "zl-web-b"
        assert shown(shell, "zl-new-b")["ifname"] == "zl-web-b"
        assert shown(shell, "zl-new-b")["altnames"] == ["zl-new-b"]
    want = replace(wanted, name="zl-new-b", mtu=1300)
    bridge.change(wanted, want)
    assert observe_bridge("zl-new-b") == replace(want, name="zl-web-b")
    forwarding.enable()
    forwarding.settle(["zl-new-b"])


def test_renaming_nothing_or_onto_a_taken_name(host, shell):
    with pytest.raises(MechanismError) as raised:
        link.rename("nope", "also-nope")
    assert raised.value.errno == errno.ENODEV
    shell("ip link add a0 type bridge; ip link add b0 type bridge")
    before = host()
    with pytest.raises(MechanismError) as raised:
        link.rename("a0", "b0")
    assert raised.value.errno == errno.EEXIST
    assert host() == before
