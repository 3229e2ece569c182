"""Looks names up by c-ares: each as "name address", or as "name -"."""

import sys
import threading

import pycares


def main() -> None:
    channel = pycares.Channel()
    for name in sys.argv[1:]:
        done = threading.Event()
        said = ["-"]

        def take(result: pycares.AddrInfoResult | None, error: int | None, said=said, done=done) -> None:
            if error is None and result is not None and result.nodes:
                address = result.nodes[0].addr[0]
                said[0] = address.decode() if isinstance(address, bytes) else address
            done.set()

        channel.getaddrinfo(name, 80, callback=take)
        done.wait(60)
        print(name, said[0], flush=True)


if __name__ == "__main__":
    main()
