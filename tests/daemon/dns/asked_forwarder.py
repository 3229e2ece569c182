"""Forwarders, and what they are asked.

Owns: the forwarders of a test, which the fixture `closed` ends, and queries.  Must not know: the servers that are asked
(`upstream_server`).
"""

import asyncio

import dns.message

from overlayd._fast.dnscache import Cache
from overlayd.daemon.dns.forwarder import Forwarder

CLIENT = bytes([10, 200, 1, 9])


made = []


def forwarding(servers, cache=None):
    made.append(Forwarder(servers, Cache(0, 0) if cache is None else cache))
    return made[-1]


def query(name="www.example.org", **options):
    return dns.message.make_query(name, "A", **{"use_edns": 0, **options})


def forward(forwarder, message, ingress="web", client=CLIENT, *, stream=False):
    """The response, in the future."""
    delivered = asyncio.get_running_loop().create_future()
    forwarder.follow_servers()
    forwarder.forward(message, ingress, client, lambda response, origin: delivered.set_result(response), stream=stream)
    return delivered


async def ask(forwarder, message=None, *, stream=False):
    message = message or query()
    response = dns.message.from_wire(await forward(forwarder, message.to_wire(), stream=stream))
    assert message.is_response(response)
    return response


async def at_rest(forwarder):
    """Nothing is in flight any more."""
    while forwarder._asked:  # noqa: ASYNC110 -- nobody is told
        await asyncio.sleep(0.01)
