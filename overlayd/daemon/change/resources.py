"""The names of what a change locks.

Owns: one spelling for each resource, so that all who change it mean the same.  Must not know: who locks, or how.
"""

from overlayd.model.objects import Netns, NetnsPath

NODE = "node"  # who this node is: its number, and the key that the orchestrator takes for its
RECORDS = "records"  # all registered names
MEMBERSHIP = "membership"  # this node's place in a cluster, and what it knows and told of that


def service_lock(name: str) -> str:
    return f"service {name}"


def peers_locks(scope: str) -> list[str]:
    """What a change of a scope's peers must have for itself.  Routes have no scope: a destination has one."""
    return [f"peers {scope}", "routes"]


def namespace_lock(namespace: Netns | NetnsPath) -> str:
    """What an attach has for itself in a namespace.  Named by its path, if it has one: that is known before a look."""
    return f"namespace {namespace.path if isinstance(namespace, NetnsPath) else namespace.inode}"


def attachment_locks(handle: str, namespace: Netns | NetnsPath | None, isolation_network: str) -> list[str]:
    """What an attach or a detach must have for itself."""
    locks = [handle, namespace_lock(namespace)] if namespace is not None else [handle]
    return [*locks, f"isolation {isolation_network}"] if isolation_network else locks
