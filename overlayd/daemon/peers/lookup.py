"""Asking the host's own resolver, so that /etc/hosts counts.

Owns: the threads that ask, and how many.  Must not know: what a name is for, or when it is asked for again.
"""

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_address
from threading import Thread

from overlayd.errors import MechanismError
from overlayd.linux import threads
from overlayd.model.objects import Address

# Our own constants.
LOOKUPS = 16  # at once, a thread each
PATIENCE = 30.0  # seconds for an answer; the C library gives up by itself after 5 to 20


class Lookups:
    """Lookups of host names, a bounded number at once."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(LOOKUPS)

    async def addresses(self, host: str) -> list[Address]:
        """The addresses of a host, at least one, the preferred first (RFC 6724).  OSError, UnicodeError: there are
        none.
        """
        await self._slots.acquire()
        answer: asyncio.Future[list[Address]] = asyncio.get_running_loop().create_future()
        # A daemon thread, and not one of a pool: nobody can stop a lookup, and the daemon's end waits for none.
        thread = Thread(target=self._ask, args=(host, answer, answer.get_loop()), name="resolver", daemon=True)
        try:
            threads.start(thread)
        except MechanismError as error:
            self._slots.release()
            raise OSError(error.errno, str(error)) from error
        async with asyncio.timeout(PATIENCE):
            return await answer

    def _ask(self, host: str, answer: asyncio.Future[list[Address]], loop: asyncio.AbstractEventLoop) -> None:
        """Ask, in a thread, and hand the answer to the loop."""
        addresses: list[Address] = []
        failure: Exception | None = None
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
            addresses = [ip_address(str(sockaddr[0])) for *_, sockaddr in found]
        except (OSError, ValueError) as error:
            failure = error

        def deliver() -> None:
            self._slots.release()
            if not answer.done():
                if failure is not None:
                    answer.set_exception(failure)
                else:
                    answer.set_result(addresses)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver)
