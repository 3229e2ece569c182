"""`overlayctl web`: the page, its address, and what it asks the daemon for.

Owns: which answer is behind which path.  Must not know: HTTP and who is let in (`web.server`), what is shown of a node
(`web.view`).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager

from overlayd.cli import why
from overlayd.cli.tables import line_json
from overlayd.client import OverlayClient
from overlayd.errors import RequestError
from overlayd.web import view
from overlayd.web.server import Query, Site

Connect = Callable[[], AbstractAsyncContextManager[OverlayClient]]


async def serve(connect: Connect, port: int) -> None:
    """Serve until cancelled.  port: 0 for any.  OSError: it cannot be had."""
    one_at_a_time = asyncio.Lock()  # each walk sends pings

    async def node(_: Query) -> bytes:
        async with connect() as client:
            return await view.node(client)

    async def findings(_: Query) -> bytes:
        async with connect() as client:
            return await view.findings(client)

    async def walk(query: Query) -> bytes:
        async with one_at_a_time:
            async with connect() as client:
                known = await why.known(client)
            if known is None:
                raise RequestError("the overlay is not set up on this node")
            hops, turned = await asyncio.to_thread(why.explain, known, query.get("a", ""), query.get("b", ""))
            return why.as_json(hops, turned).encode()

    async def events() -> AsyncGenerator[bytes, None]:
        async with connect() as client:
            await client.watch()
            yield b""  # from now on nothing is missed
            async for event in client.events():
                yield line_json(event).encode()

    site = Site({"/api/node": node, "/api/findings": findings, "/api/why": walk}, {"/api/events": events})

    def ready(address: str) -> None:
        print(f"{address}\nfor a browser on this machine; who has this address may look at the node. Ctrl-C ends it.")

    await site.serve(port, ready)
