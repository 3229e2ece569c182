"""The kernel backend: what every backend must do, on a kernel that has WireGuard (`run-guest` brings one)."""

import base64
import dataclasses
import threading
from errno import EEXIST, ENODEV, ERANGE
from ipaddress import IPv6Address

import pytest

from overlayd import keys
from overlayd.errors import MechanismError
from overlayd.linux.wireguard.choice import choose, missing
from overlayd.linux.wireguard.kernel import Kernel
from overlayd.model.objects import Step
from overlayd.model.traversal import HOLD

pytest.register_assert_rewrite("wireguard_cases")
from wireguard_cases import DeviceCases, Namespaces, a_peer, bound, endpoint, networks  # noqa: E402

pytestmark = pytest.mark.skipif(bool(Kernel().missing()), reason=f"needs {Kernel().missing()}")


class TestKernel(DeviceCases):
    MANY = 2000  # the guest's processor is emulated

    @pytest.fixture
    def backend(self):
        return Kernel()


class TestFaults(Namespaces):
    @pytest.fixture
    def backend(self):
        return Kernel()

    def test_the_kernel_is_preferred(self):
        assert missing("auto") == ""
        assert isinstance(choose("auto"), Kernel)
        assert isinstance(choose("kernel"), Kernel)

    def test_a_link_of_another_kind_is_an_error_and_stays(self, alpha):
        name = alpha.device().name
        alpha.namespace("ip", "link", "add", name, "type", "bridge")
        index = alpha.index(name)
        for act in lambda: alpha.create(name=name), lambda: alpha.delete(name):
            with pytest.raises(MechanismError, match=name) as caught:
                act()
            assert caught.value.errno == EEXIST
        assert alpha.index(name) == index
        assert not alpha.alive(name)
        alpha.namespace("ip", "link", "delete", name)

    def test_a_creation_that_fails_leaves_no_link(self, alpha):
        device = alpha.device()
        with pytest.raises(MechanismError) as caught:
            alpha.namespace.call(alpha.backend.create, dataclasses.replace(device, private_key=b"short"))
        assert caught.value.errno == ERANGE
        assert alpha.index(device.name) is None

    def test_a_peer_that_is_looked_for_elsewhere_is_called_there_within_the_time_that_it_has(self, alpha, beta):
        device = alpha.create()
        alpha.up(device)
        peer = a_peer(public_key=keys.public(keys.generate()), endpoint=endpoint("192.0.2.2", 7001), keepalive=25)
        elsewhere = dataclasses.replace(peer, endpoint=endpoint("192.0.2.2", 7002))
        with (
            beta.namespace.call(bound, "192.0.2.2", 7001) as here,
            beta.namespace.call(bound, "192.0.2.2", 7002) as there,
        ):
            alpha.set_peers(device.name, [Step(None, peer)])
            assert len(here.recv(2000)) == 148
            alpha.set_peers(device.name, [Step(peer, elsewhere)])
            there.settimeout(HOLD + 2)
            assert len(there.recv(2000)) == 148

    def test_a_link_that_is_gone_is_told_as_that(self, alpha):
        device = alpha.create()
        alpha.namespace("ip", "link", "delete", device.name)
        assert not alpha.alive(device.name)
        with pytest.raises(MechanismError) as caught:
            alpha.read(device.name)
        assert caught.value.errno == ENODEV

    def test_the_scope_of_an_endpoint_reaches_the_kernel_and_comes_back(self, alpha):
        device = alpha.create()
        index = alpha.index(f"v{alpha.namespace.name}")
        peer = a_peer(1, endpoint=(IPv6Address(f"fe80::1%{index}"), 51820))
        alpha.set_peers(device.name, [Step(None, peer)])
        assert alpha.read(device.name).peers[peer.public_key].endpoint == peer.endpoint
        assert alpha.shown(device.name)[2][peer.public_key][0] == f"[fe80::1%v{alpha.namespace.name}]:51820"

    def test_a_dump_that_changes_interrupt_is_read_again_until_it_is_whole(self, alpha):
        device = alpha.create()
        peers = [a_peer(number) for number in range(600)]
        late = a_peer(9999)
        alpha.set_peers(device.name, [Step(None, peer) for peer in peers])
        done = threading.Event()

        def disturb():
            while not done.is_set():
                alpha.set_peers(device.name, [Step(None, late)])
                alpha.set_peers(device.name, [Step(late, None)])

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            expected = {peer.public_key for peer in peers}
            for _ in range(10):
                assert alpha.read(device.name).peers.keys() - {late.public_key} == expected
        finally:
            done.set()
            thread.join()

    def test_a_kernel_that_cannot_drop_one_allowed_ip_gets_the_others_again(self, alpha):
        device = alpha.create()
        peer = a_peer(1, allowed_ips=networks("10.0.0.0/24", "10.0.1.0/24"))
        fewer = dataclasses.replace(peer, allowed_ips=networks("10.0.0.0/24"))
        alpha.set_peers(device.name, [Step(None, peer)])
        alpha.set_peers(device.name, [Step(peer, fewer)])
        encoded = base64.b64encode(peer.public_key).decode()
        assert alpha.namespace("wg", "show", device.name, "allowed-ips") == f"{encoded}\t10.0.0.0/24"
