"""The groups, in the order in which they are measured."""

from check.cases import containers, lookup, names, peers, requests, start

GROUPS = (requests.GROUP, containers.EMPTY, containers.FULL, peers.GROUP, names.GROUP, lookup.GROUP, start.GROUP)
