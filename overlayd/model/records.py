"""Registered names: which addresses each stands for.

Owns: Record rows.  Must not know: zones, DNS messages, who asks (`zone`).

A name has a set of addresses, of both families, in the order of registration: replicas of a service, or one container's
two.  An address that nobody holds any more leaves every name, so that no name of a dead container leads to the next one
that is given its address.
"""

from overlayd._fast.nametable import MAX_ADDRESSES
from overlayd.errors import RequestError
from overlayd.model.endpoints import nobodys
from overlayd.model.objects import Address
from overlayd.model.rows import Record
from overlayd.model.state import Draft


def register(draft: Draft, name: str, address: Address) -> None:
    """Let a name stand for an address as well; one that it has already is no change.  RequestError when it has as many
    as a name may have, or no host can have the address.
    """
    record = draft.get(Record, name)
    addresses = record.addresses if record is not None else ()
    if address in addresses:
        return
    if nobody := nobodys(address):
        raise RequestError(f"request.ip: {address} {nobody}: nobody is reached by it; give an address of a host")
    if len(addresses) >= MAX_ADDRESSES:
        raise RequestError(f"{name} has {MAX_ADDRESSES} addresses, as many as a name may have: unregister some of them")
    _put(draft, name, (*addresses, address))


def unregister(draft: Draft, name: str, address: Address | None = None) -> None:
    """Forget a name, or one address of it; what is not registered is no error."""
    record = draft.get(Record, name)
    if record is not None:
        left = () if address is None else tuple(each for each in record.addresses if each != address)
        _put(draft, name, left)


def withdraw(draft: Draft, address: Address) -> None:
    """Take an address that has lost its holder from every name."""
    for name in draft.state.names_of(address):
        unregister(draft, name, address)


def _put(draft: Draft, name: str, addresses: tuple[Address, ...]) -> None:
    if addresses:
        draft.put(Record(name=name, address=addresses[0], others=addresses[1:]))
    else:
        record = draft.get(Record, name)
        if record is not None:
            draft.drop(record)
