"""What the kernel has of ours, as the objects that the state would have it have.

Owns: putting links, WireGuard devices and set elements together into one layout.  Must not know: what should be
there, beyond where to look.  Blocks: for worker threads.
"""

import time
from dataclasses import replace

from overlayd.daemon.apply import Kernel
from overlayd.linux import observe as links
from overlayd.linux.wireguard import DeviceState
from overlayd.model.health import FRESH
from overlayd.model.layout import Layout
from overlayd.model.objects import Bridge, Device, DevicePeer, Element, Proxy, Veth
from overlayd.model.plan import device_scope


def observe(kernel: Kernel, want: Layout) -> Layout:
    """Everything that carries our mark.  want: tells in which namespaces veths end, and which endpoints peers were
    given.
    """
    namespaces = {thing.name: thing.netns for thing in want.values() if isinstance(thing, Veth)}
    found: Layout = {}
    for thing in links.observe(namespaces).values():
        if isinstance(thing, links.DeviceLink):
            found |= _device(kernel, thing, want)
        else:
            found[thing.key] = thing
    if any(isinstance(thing, Element) for thing in want.values()):
        kernel.nft.ensure()
    return found | kernel.nft.observe()


def present(kernel: Kernel, have: Layout) -> Layout:
    """Of the objects that should be there, those that are, as they are: bridges and devices are looked up, the
    others believed.

    A device that is gone took its peers, routes and aliases along; the veths of a bridge that is gone are without one,
    and its proxies went with it.
    """
    gone: set[str] = set()
    bridgeless: set[str] = set()
    found: Layout = {}
    for key, thing in have.items():
        if isinstance(thing, Bridge):
            bridge = links.observe_bridge(thing.name)
            if bridge is not None and bridge.service == thing.service:
                found[key] = bridge
            else:
                bridgeless.add(thing.service)
        elif isinstance(thing, Device):
            if kernel.backend is not None and kernel.backend.alive(thing.name):
                found[key] = thing
            else:
                gone.add(thing.scope)
        else:
            found[key] = thing
    for key, thing in found.items():
        if isinstance(thing, Veth) and thing.service in bridgeless:
            found[key] = replace(thing, service=None)
    return {
        key: thing
        for key, thing in found.items()
        if device_scope(thing) not in gone and not (isinstance(thing, Proxy) and thing.service in bridgeless)
    }


def _device(kernel: Kernel, link: links.DeviceLink, want: Layout) -> Layout:
    """A device and its peers; nothing when nobody serves the link, so that it is made anew."""
    if kernel.backend is None or not kernel.backend.alive(link.name):
        return {}
    state = kernel.backend.read(link.name)
    device = Device(
        scope=link.scope,
        name=link.name,
        private_key=state.private_key,
        listen_port=state.listen_port,
        mtu=link.mtu,
        addresses=link.addresses,
    )
    return {device.key: device} | _peers(device, state, want)


def _peers(device: Device, state: DeviceState, want: Layout) -> Layout:
    """The peers of a device.  One that is heard of stays where it has roamed to: its endpoint counts as the one it
    was given.
    """
    now = time.time()
    peers: Layout = {}
    for peer in state.peers.values():
        wanted = want.get(("peer", device.scope, peer.public_key))
        endpoint = peer.endpoint
        if isinstance(wanted, DevicePeer) and (wanted.endpoint is None or now - peer.last_handshake < FRESH):
            endpoint = wanted.endpoint
        found = DevicePeer(
            scope=device.scope,
            device=device.name,
            public_key=peer.public_key,
            endpoint=endpoint,
            keepalive=peer.keepalive,
            allowed_ips=peer.allowed_ips,
        )
        peers[found.key] = found
    return peers
