"""Simulated clusters: the daemon's own code of `daemon.cluster`, many nodes of it on one clock that nobody waits for,
against a slow and obvious etcd that is partitioned, silent, stale, compacted, wiped and put back.
"""
