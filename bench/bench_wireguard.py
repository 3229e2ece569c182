"""WireGuard: reading and changing a device of 10,000 peers.

    python bench/bench_wireguard.py [pyperf options]

The codecs run on messages made here; `live` drives a real wireguard-go in a network namespace of its own, as root.

Budgets on two cores of a small virtual machine: a poll of activity 100 ms, of which parsing 50 ms; one change 1 ms.
"""

import atexit
import ctypes
import dataclasses
import functools
import os
import secrets
from ipaddress import IPv4Address, IPv4Network

from smoke import SMOKE, make_runner

from overlayd import keys
from overlayd.linux.wireguard.userspace import Userspace
from overlayd.model.objects import Device, DevicePeer, Step
from overlayd.proto import uapi, wgnl
from overlayd.proto.wireguard import Activity, PeerChange

PEERS = 100 if SMOKE else 10_000
CLONE_NEWNET = 0x40000000
ENDPOINT = IPv4Address("192.0.2.1")


def change(number: int) -> PeerChange:
    network = IPv4Network(((10 << 24) + number, 32))
    return PeerChange(number.to_bytes(32, "big"), endpoint=(ENDPOINT, 51820), keepalive=25, add=(network,))


def text_of_a_device() -> bytes:
    peer = (
        "public_key={:064x}\npreshared_key={:064x}\nprotocol_version=1\nendpoint=192.0.2.1:51820\n"
        "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=0\ntx_bytes=100000\nrx_bytes=100000\n"
        "persistent_keepalive_interval=25\nallowed_ip=10.0.{}.{}/32\n"
    )
    return "".join(peer.format(number, 0, number >> 8, number & 255) for number in range(PEERS)).encode()


@functools.cache
def live() -> tuple[Userspace, str, DevicePeer, DevicePeer]:
    """A device with the peers, its backend, and one of the peers with one allowed IP more and without it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: needs root")
    backend = Userspace()
    device = Device("", f"ot{secrets.token_hex(4)}", keys.generate(), 51820, 1420, frozenset())
    backend.create(device)
    atexit.register(backend.delete, device.name)
    peers = [
        DevicePeer("", device.name, number.to_bytes(32, "big"), None, 0, frozenset(change(number).add))
        for number in range(1, PEERS)
    ]
    backend.set_peers(device.name, [Step(None, peer) for peer in peers])
    more = dataclasses.replace(peers[0], allowed_ips=peers[0].allowed_ips | {IPv4Network("172.16.0.0/24")})
    return backend, device.name, peers[0], more


def live_change() -> None:
    backend, name, peer, more = live()
    backend.set_peers(name, [Step(peer, more)])


def live_activity() -> dict[bytes, Activity]:
    backend, name, *_ = live()
    return backend.activity(name)


def main() -> None:
    runner = make_runner(processes=3)
    text = text_of_a_device()
    changes = [change(number) for number in range(PEERS)]
    messages = [memoryview(each) for each in wgnl.encode_peers("wg0", changes, 32 * 1024)]
    runner.bench_func("uapi: encode 10,000 peers", lambda: sum(map(len, uapi.encode_peers(changes, 131072))))
    runner.bench_func("uapi: parse 10,000 peers", uapi.parse_device, text)
    runner.bench_func("uapi: activity of 10,000 peers", lambda: uapi.ActivityReader().read(text))
    runner.bench_func("wgnl: encode 10,000 peers", lambda: sum(map(len, wgnl.encode_peers("wg0", changes, 32768))))
    runner.bench_func("wgnl: parse 10,000 peers", wgnl.parse_device, messages)
    runner.bench_func("wgnl: activity of 10,000 peers", wgnl.parse_activity, messages)
    if os.geteuid() == 0:
        runner.bench_func("live: one allowed IP among 10,000 peers", live_change)
        runner.bench_func("live: activity of 10,000 peers", live_activity)


if __name__ == "__main__":
    main()
