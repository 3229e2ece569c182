"""A cluster without an orchestrator: this node's part in it, by way of a store.

Imported by a daemon that is started with --etcd, and by no other.
"""
