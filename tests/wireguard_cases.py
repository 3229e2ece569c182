"""What every WireGuard backend must do, on real devices in network namespaces of its own.

A test class inherits `DeviceCases` and gives a `backend` fixture; the fixtures `alpha` and `beta` are two namespaces
joined by a veth pair, 192.0.2.1 and 192.0.2.2.
"""

import base64
import ctypes
import dataclasses
import secrets
import socket
import subprocess
import threading
import time
from errno import EADDRINUSE
from ipaddress import ip_address, ip_network
from itertools import permutations
from pathlib import Path

import pytest
from lab.patience import LIMIT, until

from overlayd import keys
from overlayd.errors import MechanismError
from overlayd.linux.shared_port import SharedPort
from overlayd.model.objects import Device, DevicePeer, Step

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace that commands and functions can run in."""

    def __init__(self):
        self.name = f"ot{secrets.token_hex(3)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self("ip", "link", "set", "lo", "up")

    def __call__(self, *argv, check=True):
        """Run a program in it; its output, stripped."""
        argv = ["ip", "netns", "exec", self.name, *map(str, argv)]
        return subprocess.run(argv, check=check, stdout=subprocess.PIPE, text=True).stdout.strip()

    def call(self, function, *arguments):
        """Call a function in it, in a thread of its own, and return or raise what it does."""
        outcome = []

        def enter():
            try:
                with Path(f"/run/netns/{self.name}").open() as namespace:
                    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                outcome.append((function(*arguments), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def link(self, name):
        """The index of a link, None when there is none."""
        shown = self("ip", "-o", "link", "show", "dev", name, check=False)
        return int(shown.split(":")[0]) if shown else None

    def remove(self):
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


class Lab:
    """A backend at work in a namespace, with what it makes remembered and removed."""

    def __init__(self, backend, namespace):
        self.backend = backend
        self.namespace = namespace
        self.names = set()

    def device(self, **fields):
        """A device that does not exist yet."""
        fields = {"listen_port": 51820, "private_key": keys.generate(), "name": f"ot{secrets.token_hex(4)}"} | fields
        return Device(scope="", mtu=1420, addresses=frozenset(), **fields)

    def create(self, **fields):
        device = self.device(**fields)
        self.names.add(device.name)
        self.namespace.call(self.backend.create, device)
        return device

    def __getattr__(self, method):
        """A method of the backend, called in the namespace."""
        return lambda *arguments: self.namespace.call(getattr(self.backend, method), *arguments)

    def index(self, name):
        return self.namespace.link(name)

    def up(self, device, address=None):
        if address:
            self.namespace("ip", "address", "add", address, "dev", device.name)
        self.namespace("ip", "link", "set", device.name, "up")

    def shown(self, name):
        """What `wg show NAME dump` says: private key, port, and per public key endpoint, allowed IPs, keepalive."""
        head, *peers = [line.split("\t") for line in self.namespace("wg", "show", name, "dump").split("\n")]
        peers = {
            base64.b64decode(key): (
                None if endpoint == "(none)" else endpoint,
                frozenset(map(ip_network, allowed_ips.split(","))) if allowed_ips != "(none)" else frozenset(),
                0 if keepalive == "off" else int(keepalive),
            )
            for key, _, endpoint, allowed_ips, _, _, _, keepalive in peers
        }
        return base64.b64decode(head[0]), int(head[2]), peers

    def close(self):
        for name in self.names:
            self.delete(name)


def a_peer(number=None, **fields):
    """A DevicePeer; `number` makes its key and its allowed IP."""
    number = secrets.randbits(24) if number is None else number
    key = number.to_bytes(4, "big") + b"\1" * 28
    fields = {
        "endpoint": None,
        "keepalive": 0,
        "allowed_ips": networks(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"),
    } | fields
    return DevicePeer(scope="", device="", public_key=fields.pop("public_key", key), **fields)


def networks(*texts):
    return frozenset(map(ip_network, texts))


def endpoint(host, port):
    return ip_address(host), port


def bound(host, port):
    """A UDP socket of the thread's namespace."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(LIMIT)
    opened.bind((host, port))
    return opened


class Namespaces:
    """Fixtures on top of a `backend` fixture that the subclass gives."""

    @pytest.fixture
    def namespaces(self):
        made = []
        try:
            made += [Namespace(), Namespace()]
            one, other = made
            ends = f"v{one.name}", f"v{other.name}"
            one("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", other.name)
            for namespace, end, number in (one, ends[0], 1), (other, ends[1], 2):
                namespace("ip", "address", "add", f"192.0.2.{number}/24", "dev", end)
                namespace("ip", "link", "set", end, "up")
            yield made
        finally:
            for namespace in made:
                namespace.remove()

    @pytest.fixture
    def alpha(self, backend, namespaces):
        lab = Lab(backend, namespaces[0])
        yield lab
        lab.close()

    @pytest.fixture
    def beta(self, backend, namespaces):
        lab = Lab(type(backend)(), namespaces[1])
        yield lab
        lab.close()


class DeviceCases(Namespaces):
    MANY = 10_000  # peers of the bulk load

    def assert_shows(self, lab, device, peers):
        """Both our reading and that of `wg` are the device with these peers, endpoints aside."""
        state = lab.read(device.name)
        assert (state.private_key, state.listen_port) == (device.private_key, device.listen_port)
        expected = {peer.public_key: (peer.allowed_ips, peer.keepalive) for peer in peers}
        assert {key: (peer.allowed_ips, peer.keepalive) for key, peer in state.peers.items()} == expected
        key, port, shown = lab.shown(device.name)
        assert (key, port) == (device.private_key, device.listen_port)
        assert {key: peer[1:] for key, peer in shown.items()} == expected
        assert {key: endpoint and str(endpoint[0]) for key, (_, endpoint, *_) in state.peers.items()} == {
            key: endpoint and endpoint.rsplit(":", 1)[0].strip("[]") for key, (endpoint, *_) in shown.items()
        }

    def test_a_created_device_is_a_link_with_key_and_port(self, alpha):
        device = alpha.create()
        assert alpha.index(device.name)
        assert alpha.alive(device.name)
        self.assert_shows(alpha, device, [])

    def test_a_device_that_lives_is_adopted(self, alpha):
        device = alpha.create()
        peer = a_peer(1)
        alpha.set_peers(device.name, [Step(None, peer)])
        index = alpha.index(device.name)
        changed = alpha.create(name=device.name, listen_port=51821)
        assert changed.private_key != device.private_key
        assert alpha.index(device.name) == index
        self.assert_shows(alpha, changed, [peer])

    def test_key_and_port_change_in_place(self, alpha):
        device = alpha.create()
        alpha.up(device)
        index = alpha.index(device.name)
        changed = dataclasses.replace(device, listen_port=51899, private_key=keys.generate())
        alpha.configure(device, changed)
        assert alpha.index(device.name) == index
        self.assert_shows(alpha, changed, [])

    def test_a_renamed_device_answers_to_its_new_name_and_again_to_its_old(self, alpha):
        device = alpha.create()
        renamed = dataclasses.replace(device, name=f"{device.name}x", listen_port=51830)
        alpha.names.add(renamed.name)
        peer = a_peer(1)
        for have, want in (device, renamed), (renamed, device), (device, renamed):
            alpha.namespace("ip", "link", "set", have.name, "name", want.name)
            alpha.configure(have, want)
            alpha.set_peers(want.name, [Step(None, peer)])
            assert alpha.alive(want.name)
            assert not alpha.alive(have.name)
            self.assert_shows(alpha, want, [peer])
        alpha.delete(renamed.name)
        assert not alpha.alive(renamed.name)
        assert alpha.index(renamed.name) is None

    def test_a_device_may_carry_its_new_name_as_an_alternative(self, alpha):
        device = alpha.create()
        index = alpha.index(device.name)
        renamed = dataclasses.replace(device, name=f"{device.name}x", listen_port=51830)
        alpha.names.add(renamed.name)
        # What is done where the kernel does not rename a running link.
        alpha.namespace("ip", "link", "property", "add", "dev", device.name, "altname", renamed.name)
        alpha.configure(device, renamed)
        assert alpha.alive(renamed.name)
        assert alpha.shown(renamed.name)[1] == 51830
        assert alpha.index(renamed.name) == index
        alpha.delete(renamed.name)
        assert alpha.index(device.name) is None
        assert not alpha.alive(renamed.name)

    def test_a_deleted_device_is_gone_and_may_be_deleted_again(self, alpha):
        device = alpha.create()
        alpha.delete(device.name)
        assert alpha.index(device.name) is None
        assert not alpha.alive(device.name)
        alpha.delete(device.name)
        alpha.create(name=device.name)
        assert alpha.alive(device.name)

    def test_a_device_that_does_not_exist_is_an_error_that_names_it(self, alpha):
        for ask in (
            lambda: alpha.read("otnosuch"),
            lambda: alpha.activity("otnosuch"),
            lambda: alpha.set_peers("otnosuch", [Step(None, a_peer(1))]),
        ):
            with pytest.raises(MechanismError, match="otnosuch") as caught:
                ask()
            assert caught.value.errno
        assert not alpha.alive("otnosuch")

    def test_a_port_that_is_taken_is_an_error_and_changes_nothing(self, alpha):
        first = alpha.create(listen_port=40001)
        second = alpha.create(listen_port=40002)
        alpha.up(first)
        alpha.up(second)
        until(lambda: len(alpha.namespace("ss", "-Hunl").split("\n")) >= 4)
        with pytest.raises(MechanismError) as caught:
            alpha.configure(second, dataclasses.replace(second, listen_port=40001))
        assert caught.value.errno == EADDRINUSE
        assert ":40002 " in alpha.namespace("ss", "-Hunl")
        self.assert_shows(alpha, second, [])

    def test_peers_are_created_changed_and_deleted(self, alpha):
        device = alpha.create()
        one = a_peer(1, endpoint=endpoint("192.0.2.2", 1000), keepalive=25)
        two = a_peer(2, endpoint=endpoint("2001:db8::2", 2000), allowed_ips=networks("fd00::/64", "10.9.0.0/16"))
        three = a_peer(3, allowed_ips=frozenset())
        alpha.set_peers(device.name, [Step(None, peer) for peer in (one, two, three)])
        self.assert_shows(alpha, device, [one, two, three])
        state = alpha.read(device.name)
        for peer in one, two, three:
            assert state.peers[peer.public_key].endpoint == peer.endpoint

        changed = dataclasses.replace(
            one, endpoint=endpoint("192.0.2.9", 9), keepalive=0, allowed_ips=networks("10.1.0.0/16")
        )
        wider = dataclasses.replace(three, allowed_ips=networks("10.3.0.0/16", "fd03::/64"))
        alpha.set_peers(device.name, [Step(one, changed), Step(two, None), Step(three, wider)])
        self.assert_shows(alpha, device, [changed, wider])
        assert alpha.read(device.name).peers[one.public_key].endpoint == changed.endpoint

    def test_one_allowed_ip_of_several_is_removed(self, alpha):
        device = alpha.create()
        peer = a_peer(1, allowed_ips=networks("10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "fd00::2/128"))
        alpha.set_peers(device.name, [Step(None, peer)])
        for network in sorted(peer.allowed_ips, key=str):
            fewer = dataclasses.replace(peer, allowed_ips=peer.allowed_ips - {network})
            alpha.set_peers(device.name, [Step(peer, fewer)])
            peer = fewer
            self.assert_shows(alpha, device, [peer])

    def test_deleting_or_changing_an_unknown_peer_makes_none(self, alpha):
        device = alpha.create()
        peer = a_peer(1)
        alpha.set_peers(device.name, [Step(peer, None)])
        alpha.set_peers(
            device.name, [Step(peer, dataclasses.replace(peer, keepalive=9, allowed_ips=networks("10.0.0.0/8")))]
        )
        self.assert_shows(alpha, device, [])

    def test_a_repeated_set_keeps_the_endpoint_that_the_peer_has_roamed_to(self, alpha):
        device = alpha.create()
        peer = a_peer(1, endpoint=endpoint("192.0.2.2", 1000))
        alpha.set_peers(device.name, [Step(None, peer)])
        encoded = base64.b64encode(peer.public_key).decode()
        alpha.namespace("wg", "set", device.name, "peer", encoded, "endpoint", "192.0.2.77:7777")
        for want in (
            peer,
            dataclasses.replace(peer, keepalive=5),
            dataclasses.replace(peer, allowed_ips=networks("10.5.0.0/16")),
            dataclasses.replace(peer, endpoint=None),
        ):
            alpha.set_peers(device.name, [Step(peer, want)])
            assert alpha.activity(device.name)[peer.public_key].endpoint == endpoint("192.0.2.77", 7777)
            alpha.set_peers(device.name, [Step(want, dataclasses.replace(peer, endpoint=want.endpoint))])

    @pytest.mark.parametrize("order", list(permutations(range(3))))
    def test_a_moved_allowed_ip_ends_at_the_peer_that_wants_it(self, alpha, order):
        device = alpha.create()
        shared, swapped = "10.0.0.0/24", "10.1.0.0/24"
        before = [
            a_peer(1, allowed_ips=networks(shared, "10.11.0.0/16")),
            a_peer(2, allowed_ips=networks(swapped, "10.12.0.0/16")),
            a_peer(3, allowed_ips=networks("10.13.0.0/16", "fd00::/64")),
        ]
        alpha.set_peers(device.name, [Step(None, peer) for peer in before])
        after = [
            dataclasses.replace(before[0], allowed_ips=networks(swapped, "10.11.0.0/16")),
            dataclasses.replace(before[1], allowed_ips=networks(shared, "10.12.0.0/16", "fd00::/64")),
            None,
        ]
        alpha.set_peers(device.name, [Step(before[index], after[index]) for index in order])
        self.assert_shows(alpha, device, after[:2])

    def test_thousands_of_allowed_ips_of_one_peer(self, alpha):
        device = alpha.create()
        wide = a_peer(1, allowed_ips=networks(*(f"10.{number >> 8}.{number & 255}.0/24" for number in range(5000))))
        other = a_peer(2, allowed_ips=networks("fd00::/64"))
        alpha.set_peers(device.name, [Step(None, wide), Step(None, other)])
        self.assert_shows(alpha, device, [wide, other])
        narrow = dataclasses.replace(wide, allowed_ips=networks("10.0.0.0/24"))
        alpha.set_peers(device.name, [Step(wide, narrow)])
        self.assert_shows(alpha, device, [narrow, other])

    def test_thousands_of_peers_come_and_go_in_batches(self, alpha):
        device = alpha.create()
        peers = [a_peer(number, endpoint=endpoint("192.0.2.2", 1 + number % 60000)) for number in range(self.MANY)]
        alpha.set_peers(device.name, [Step(None, peer) for peer in peers])
        state = alpha.read(device.name)
        assert {key: (peer.allowed_ips, peer.endpoint) for key, peer in state.peers.items()} == {
            peer.public_key: (peer.allowed_ips, peer.endpoint) for peer in peers
        }
        activity = alpha.activity(device.name)
        assert activity == {key: (peer.endpoint, 0, 0, 0) for key, peer in state.peers.items()}
        alpha.set_peers(device.name, [Step(peer, None) for peer in peers[1:]])
        self.assert_shows(alpha, device, peers[:1])

    def test_devices_are_driven_from_several_threads_at_once(self, alpha):
        devices = [alpha.create(listen_port=50000 + number) for number in range(4)]
        peers = [a_peer(number) for number in range(50)]
        failures = []

        def drive(device):
            try:
                for peer in peers:
                    alpha.set_peers(device.name, [Step(None, peer)])
                    alpha.activity(device.name)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=drive, args=(device,)) for device in devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for device in devices:
            self.assert_shows(alpha, device, peers)

    def test_two_devices_shake_hands_pass_packets_and_follow_a_roaming_peer(self, alpha, beta):
        here, there = alpha.create(), beta.create()
        to_there = a_peer(
            public_key=keys.public(there.private_key),
            endpoint=endpoint("192.0.2.2", there.listen_port),
            allowed_ips=networks("10.7.0.2"),
        )
        to_here = a_peer(
            public_key=keys.public(here.private_key),
            endpoint=endpoint("192.0.2.1", here.listen_port),
            allowed_ips=networks("10.7.0.1"),
        )
        alpha.up(here, "10.7.0.1/24")
        beta.up(there, "10.7.0.2/24")
        alpha.set_peers(here.name, [Step(None, to_there)])
        beta.set_peers(there.name, [Step(None, to_here)])
        before = int(time.time())
        alpha.namespace("ping", "-c", 3, "-i", "0.1", "-W", LIMIT, "10.7.0.2")
        for lab, device, peer in (alpha, here, to_there), (beta, there, to_here):
            activity = lab.activity(device.name)[peer.public_key]
            assert activity.endpoint == peer.endpoint
            assert before <= activity.last_handshake <= time.time() + 1
            assert activity.rx_bytes > 300 and activity.tx_bytes > 300
            state = lab.read(device.name).peers[peer.public_key]
            assert (state.endpoint, state.last_handshake) == activity[:2]

        # The other end moves to another port; its packets tell us where it is, and setting the old again does not undo
        # it.
        moved = dataclasses.replace(there, listen_port=51999)
        beta.configure(there, moved)
        beta.namespace("ping", "-c", 3, "-i", "0.1", "-W", LIMIT, "10.7.0.1")
        roamed = endpoint("192.0.2.2", 51999)
        assert alpha.activity(here.name)[to_there.public_key].endpoint == roamed
        wider = dataclasses.replace(to_there, allowed_ips=networks("10.7.0.2", "10.7.1.0/24"))
        alpha.set_peers(here.name, [Step(to_there, to_there)])
        alpha.set_peers(here.name, [Step(to_there, wider)])
        assert alpha.activity(here.name)[to_there.public_key].endpoint == roamed
        alpha.namespace("ping", "-c", 1, "-W", LIMIT, "10.7.0.2")

    def test_a_keepalive_that_is_switched_on_sends_at_once_where_the_peer_is_looked_for(self, alpha, beta):
        device = alpha.create()
        alpha.up(device)
        peer = a_peer(public_key=keys.public(keys.generate()), endpoint=endpoint("192.0.2.2", 7001))
        with beta.namespace.call(bound, "192.0.2.2", 7001) as here:
            alpha.set_peers(device.name, [Step(None, peer)])
            alpha.set_peers(device.name, [Step(peer, dataclasses.replace(peer, keepalive=25))])
            assert len(here.recv(2000)) == 148, "a handshake initiation"

    def test_stun_goes_by_the_devices_port_and_leaves_it_alone(self, alpha, beta):
        device = alpha.create()
        alpha.up(device)
        stun = bytes.fromhex("0001 0000 2112a442") + bytes(12)
        shared = alpha.namespace.call(SharedPort, 4, device.listen_port)
        try:
            with beta.namespace.call(bound, "192.0.2.2", 7001) as server:
                alpha.namespace.call(shared.send, stun, endpoint("192.0.2.2", 7001))
                assert server.recvfrom(2000) == (stun, ("192.0.2.1", device.listen_port))
                server.sendto(stun, ("192.0.2.1", device.listen_port))
            assert until(shared.receive) == (stun, endpoint("192.0.2.2", 7001))
        finally:
            shared.close()
        assert alpha.alive(device.name)
