"""Which veth pairs are ours and still there, and their deletion.

Owns: the marks of a pair, and what a container gets back before its pair goes.  Must not know: how a pair is made
(`veth`), or why one goes.
"""

import errno
import logging
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from overlayd.errors import MechanismError
from overlayd.linux import netns, own_routes
from overlayd.linux import rtnetlink as rt
from overlayd.linux.link import delete_request, look_up_request, read_link
from overlayd.linux.netlink import Netlink, Request
from overlayd.model.names import is_host_end, pid_of
from overlayd.model.objects import GROUP_DOOMED, GROUP_VETH, Netns, NetnsPath, label_of_veth, veth_alias
from overlayd.proto.netlink import u32

_log = logging.getLogger(__name__)

_NOWHERE: Mapping[str, Netns | NetnsPath] = MappingProxyType({})


def is_ours(link: rt.Link) -> bool:
    """Whether the link is the host end of a veth of ours, by its group or, had it lost that, by its name."""
    return is_marked(link) or (link.kind == "veth" and is_host_end(link.name))


def is_marked(link: rt.Link) -> bool:
    """Whether the link is a veth that carries our mark, which ours have from the beginning."""
    return link.kind == "veth" and link.group in (GROUP_VETH, GROUP_DOOMED)


def existing(names: Iterable[str]) -> set[str]:
    """The names that are of veths whose other ends are in namespaces that somebody still holds.

    A namespace that nobody holds any more goes later, with all its links.
    """
    with Netlink() as netlink:
        found = map(rt.parse_link, netlink.transact([look_up_request(name, errno.ENODEV) for name in names]))
        ends = {each.name: each.peer_namespace for each in found if each.kind == "veth"}
        held = {id for id in set(ends.values()) if id != rt.NO_NAMESPACE_ID and _is_held(netlink, id)}
    return {name for name, id in ends.items() if id in held}


def delete(names: Iterable[str], namespaces: Mapping[str, Netns | NetnsPath] = _NOWHERE) -> None:
    """Delete the pairs whose host ends have these names; what is absent, or is not ours, is left alone.  A container
    gets its own routes back before.

    namespaces: where the other ends are; by the pid in its name where it is not told.  Several are deleted at once by
    their link group: the kernel then waits for one RCU grace period, not for one each.
    """
    with Netlink() as host:
        found = map(rt.parse_link, host.transact([look_up_request(name, errno.ENODEV) for name in names]))
        ours = [link for link in found if is_ours(link)]
        for link in ours:
            if link.alias == veth_alias(label_of_veth(link.alias), aside=True):
                _put_back_routes(link, namespaces.get(link.name))
        if len(ours) == 1:
            host.transact([delete_request(ours[0].name)])
        elif ours:
            group = u32(rt.IFLA_GROUP, GROUP_DOOMED)
            bodies = [(each.name, rt.link_body(group, index=each.ifindex)) for each in ours]
            host.transact(
                [Request("mark for deletion", name, rt.RTM_SETLINK, 0, body, (errno.ENODEV,)) for name, body in bodies]
            )
            # ENODEV: another thread's message deleted ours together with its own.
            marked = Request("delete", "veths marked for it", rt.RTM_DELLINK, 0, rt.link_body(group), (errno.ENODEV,))
            host.transact([marked])


def _is_held(netlink: Netlink, id: int) -> bool:
    """Whether somebody holds the namespace that is known by that id here."""
    body = rt.known_namespace_body(id)
    return bool(netlink.transact([Request("look up namespace", str(id), rt.RTM_GETNSID, 0, body, (errno.ENOENT,))]))


def _put_back_routes(link: rt.Link, namespace: Netns | NetnsPath | None) -> None:
    """namespace: where the inner end is; None, or of pid 0, when only the host end tells."""
    try:
        told = isinstance(namespace, NetnsPath) or (namespace is not None and namespace.pid)
        known = namespace if namespace is not None and told else _namespace_of(link)
        descriptor = netns.open_namespace(known)
    except MechanismError as error:
        if error.errno != errno.ESRCH:  # else the namespace has most likely gone with its process
            _log.warning("a container does not get its own routes back: %s", error)
        return
    try:
        with netns.socket_in(descriptor) as inner:
            if read_link(inner, link.peer).peer == link.ifindex:
                own_routes.put_back(inner, link.peer)
    except MechanismError as error:
        _log.warning("the container of %s does not get its own routes back: %s", link.name, error)
    finally:
        os.close(descriptor)


def _namespace_of(link: rt.Link) -> Netns | NetnsPath:
    """Where the inner end is, by the process that the host end is named after, or else by a look at all that is in
    sight.  MechanismError, errno ESRCH: nowhere.
    """
    if pid := pid_of(link.name):
        return netns.identify(pid)
    found = netns.find({link.peer_namespace}).get(link.peer_namespace)
    if found is None:
        raise MechanismError("find network namespace of", link.name, errno.ESRCH)
    return found
