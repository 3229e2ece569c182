"""The layout that the kernel has: what is there of ours, as the objects that a state implies.

Owns: putting links, WireGuard devices and set elements together into one layout.  Must not know: what should be
there, beyond where to look.  Blocks: for worker threads.
"""

import logging
import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from errno import ETIMEDOUT

from overlayd.daemon.change.apply import Kernel
from overlayd.errors import MechanismError
from overlayd.linux import observe as links
from overlayd.model.health import FRESH
from overlayd.model.layout import Layout
from overlayd.model.objects import Bridge, Device, DevicePeer, Element, Netns, NetnsPath, Proxy, Veth
from overlayd.model.plan import device_scope
from overlayd.proto.wireguard import DeviceState

log = logging.getLogger(__name__)


def observe(kernel: Kernel, want: Layout) -> Layout:
    """Everything that carries our mark, inside the containers too; our rules are put back first.  want: tells in which
    namespaces veths end, and which endpoints peers were given.
    """
    found = _links(kernel, want, links.observe(_veths(want)))
    return found | kernel.install(thing for thing in want.values() if isinstance(thing, Element))


def audit(kernel: Kernel, want: Layout) -> Layout:
    """Everything that carries our mark, as far as it is seen from the host: what a container does inside is its own
    affair.
    """
    return _links(kernel, want, links.observe_host(_veths(want))) | kernel.members()


def survey(kernel: Kernel, namespaces: Mapping[str, Netns | NetnsPath]) -> Layout:
    """Everything that carries our mark, inside the containers too, whatever the state.  namespaces: in which the other
    ends of veths are looked for, by the names of their host ends.
    """
    return _links(kernel, {}, links.observe([], namespaces)) | kernel.nft.observe()


def look(kernel: Kernel, want: Layout) -> Layout:
    """The links, addresses and routes in `want` that are there, as they are seen from the host; the peers, key and port
    of a device that lives are believed.
    """
    return _wanted(kernel, want, links.observe_host(_veths(want)))


def service(kernel: Kernel, want: Layout) -> Layout:
    """As `look`, of the bridge in `want` and what is on it: it costs what the service has, whatever else is on the
    host, unless the bridge has lost its name.
    """
    bridge = next((thing for thing in want.values() if isinstance(thing, Bridge)), None)
    seen = links.observe_service(bridge.name, _veths(want)) if bridge is not None else None
    return look(kernel, want) if seen is None else _wanted(kernel, want, seen)


def _wanted(kernel: Kernel, want: Layout, seen: Mapping[Hashable, links.Observed]) -> Layout:
    """What is seen of what is wanted."""
    alive: set[str] = set()
    found: Layout = {}
    for thing in want.values():
        if isinstance(thing, Device):
            link = seen.get(thing.key)
            if isinstance(link, links.DeviceLink) and _served_as(kernel, link, want):
                found[thing.key] = replace(
                    thing,
                    name=link.name,
                    mtu=link.mtu,
                    addresses=link.addresses,
                    fault=link.fault,
                    label=link.label,
                )
                alive.add(thing.scope)
    for key, thing in want.items():
        if isinstance(thing, DevicePeer):
            if thing.scope in alive:
                found[key] = thing
        elif isinstance(present := seen.get(key), type(thing)):
            found[key] = present
    return found


def peers(kernel: Kernel, want: Layout) -> Layout:
    """The peers that the devices in `want` show, the devices themselves believed; what is wanted of one that is gone,
    for then its peers are not what is wrong.
    """
    found: Layout = {}
    for key, thing in want.items():
        if isinstance(thing, Device) and kernel.backend is not None and kernel.backend.alive(thing.name):
            found[key] = thing
            found |= _peers(thing, kernel.backend.read(thing.name), want)
    return found or want


def members(kernel: Kernel, want: Layout) -> Layout:
    """The members of our nftables sets; none when they, or our rules, have to be made again."""
    return kernel.members()


def _links(kernel: Kernel, want: Layout, seen: Mapping[Hashable, links.Observed]) -> Layout:
    found: Layout = {}
    for thing in seen.values():
        if isinstance(thing, links.DeviceLink):
            found |= _device(kernel, thing, want)
        else:
            found[thing.key] = thing
    return found


def _veths(want: Layout) -> list[Veth]:
    return [thing for thing in want.values() if isinstance(thing, Veth)]


def present(kernel: Kernel, have: Layout) -> Layout:
    """The objects of `have` that are there, as they are: bridges and devices are looked up, the others believed.
    have: what should be there.

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
    """A device and its peers; nothing when nobody serves the link, so that it is made again.  One that does not answer
    is believed to be as it should be: if it stays silent, `health` ends it.
    """
    served_as = _served_as(kernel, link, want)
    if kernel.backend is None or not served_as:
        return {}
    try:
        state = kernel.backend.read(served_as)
    except MechanismError as error:
        if error.errno != ETIMEDOUT:
            raise
        log.warning("%s", error)
        return _silent(link, want)
    device = Device(
        scope=link.scope,
        name=link.name,
        private_key=state.private_key,
        listen_port=state.listen_port,
        mtu=link.mtu,
        addresses=link.addresses,
        fault=link.fault,
        label=link.label,
    )
    return {device.key: device} | _peers(device, state, want)


def _served_as(kernel: Kernel, link: links.DeviceLink, want: Layout) -> str:
    """The name by which the backend knows a device: that of its link, or the wanted one where somebody renamed the
    link; empty when nobody serves it.
    """
    backend, wanted = kernel.backend, want.get(link.key)
    if backend is None:
        return ""
    if backend.alive(link.name):
        return link.name
    return wanted.name if isinstance(wanted, Device) and backend.serves(wanted.name, link.name) else ""


def _silent(link: links.DeviceLink, want: Layout) -> Layout:
    """A device with what is wanted of it, except for what its link shows."""
    wanted = want.get(link.key)
    key, port = (wanted.private_key, wanted.listen_port) if isinstance(wanted, Device) else (b"", 0)
    device = Device(link.scope, link.name, key, port, link.mtu, link.addresses, link.fault, link.label)
    found: Layout = {
        key: thing for key, thing in want.items() if isinstance(thing, DevicePeer) and thing.scope == link.scope
    }
    found[device.key] = device
    return found


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
        key, keepalive, allowed_ips = peer.public_key, peer.keepalive, peer.allowed_ips
        found = DevicePeer(device.scope, device.name, key, endpoint, keepalive, allowed_ips)
        peers[found.key] = found
    return peers
