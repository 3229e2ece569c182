"""Handing out addresses and taking them back.

Owns: leases.  Must not know: what a holder does with an address.

An address that is given back leaves the names that were registered for it (`records`).
"""

from overlayd.errors import AddressUnavailable, Exhausted, NotSetUp
from overlayd.model import records
from overlayd.model.objects import GLOBAL, Address
from overlayd.model.rows import Lease, Membership, Overlay, Service
from overlayd.model.state import Draft, NotYet

REQUEST = (
    "request"  # the holder of what allocate_ip handed out; every other holder is an attachment's handle or an edge peer
)


def allocate(draft: Draft, pool: str, holder: str) -> Address:
    """Lease an address of a pool (a service, or GLOBAL for the node's own) to `holder`.  RequestError when there is
    none left; NotYet when one is about to be released.
    """
    pools = draft.state.pools(pool)
    if not pools:
        raise NotSetUp(f"global overlay not set up: {draft.state.lack}")
    leaving = {row.address: row.pool for row in draft.departing(Lease) if row.holder}
    taken = {row.address for row in draft.rows.values() if isinstance(row, Lease) and row.holder}
    address = next((found for each in pools if (found := each.choose(taken | leaving.keys())) is not None), None)
    if address is None:
        refusal = NotYet if draft.state.pool_of(pool) in leaving.values() else Exhausted
        where = f"service {pool}" if pool != GLOBAL else "this node's slice"
        networks, held = ", ".join(str(each.network) for each in pools), sum(each.held for each in pools)
        joined = pool == GLOBAL and draft.get(Membership) is not None
        raise refusal(
            f"no free address in {where}: all of {networks} is taken, {held} held; "
            "detach containers or release addresses that are no longer used"
            + (", or try again when the node has claimed another block (overlayctl cluster status)" if joined else "")
        )
    draft.put(Lease(address=address, pool=draft.state.pool_of(pool), holder=holder))
    return address


def claim(draft: Draft, pool: str, address: Address, holder: str) -> None:
    """Lease this very address of a pool to `holder`.  AddressUnavailable names who has it; NotYet when it is about to
    be released.
    """
    pools = draft.state.pools(pool)
    if not pools:
        raise NotSetUp(f"global overlay not set up: {draft.state.lack}")
    if (present := holder_of(draft, address)) != "":
        raise AddressUnavailable(f"request.ip: {address} is held by {present}: ask for another one, or for none")
    if not any(each.can_give(address) for each in pools):
        raise AddressUnavailable(
            f"request.ip: {address} is not one of {', '.join(str(each.network) for each in pools)} that a container of "
            f"{f'service {pool}' if pool != GLOBAL else 'this node'} can have"
        )
    if any(row.address == address and row.holder for row in draft.departing(Lease)):
        raise NotYet(f"request.ip: {address} is being released")
    draft.put(Lease(address=address, pool=draft.state.pool_of(pool), holder=holder))


def allocate_ip(draft: Draft, service: str) -> Address:
    """allocate_ip: from the service's subnet, or from the node's pool for an empty name.  RequestError, too, for a
    service that is not set up here.
    """
    if service and draft.state.pools(GLOBAL) and draft.get(Service, service) is None:
        raise NotSetUp(
            f"service {service} is not set up on this node: send setup_service_overlay first, or leave the name empty "
            f"for an address from the node's slice{in_other_case(draft, service)}"
        )
    return allocate(draft, service or GLOBAL, REQUEST)


def in_other_case(draft: Draft, service: str) -> str:
    """The end of an error about a service that is not there: of one whose name is written otherwise."""
    name = next((each.name for each in draft.all(Service) if each.name.casefold() == service.casefold()), "")
    return f"; there is {name}, and upper and lower case differ" if name else ""


def release(draft: Draft, address: Address, holder: str) -> bool:
    """Give back an address that `holder` has; False when it does not have it."""
    lease = draft.get(Lease, str(address))
    if lease is None or lease.holder != holder:
        return False
    records.withdraw(draft, address)
    newest = max([draft.state.releases, *(row.released for row in draft.rows.values() if isinstance(row, Lease))])
    draft.put(Lease(address=address, pool=lease.pool, released=newest + 1))
    return True


def holder_of(draft: Draft, address: Address) -> str:
    """Who holds an address, in words; empty when nobody does."""
    lease = draft.get(Lease, str(address))
    if lease is not None and lease.holder:
        return "allocate_ip" if lease.holder == REQUEST else lease.holder
    if draft.get(Overlay) is not None and address == draft.state.node_address:
        return "the node"
    return ""
