"""Which address is handed out next, against a list that is searched from the front each time."""

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.objects import Address, Network
from overlayd.model.pool import Pool
from overlayd.model.rows import Lease
from overlayd.model.subnets import usable_window

NETWORKS = [ip_network(text) for text in ("10.0.0.0/29", "10.0.0.8/30", "fd00::/125", "::/125")]


@dataclass
class Oracle:
    """Every address of a network: who holds it (""), or when it was released (0: never used)."""

    network: Network
    reserved: set[Address] = field(default_factory=set)
    leases: dict[Address, Lease] = field(default_factory=dict)

    def addresses(self) -> list[Address]:
        first, last = usable_window(self.network)
        return [self.network[index] for index in range(first, last + 1)]

    def choose(self, taken: set[Address]) -> Address | None:
        open_ = [address for address in self.addresses() if address not in self.reserved and address not in taken]
        fresh = [address for address in open_ if address not in self.leases]
        if fresh:
            return fresh[0]
        free = [address for address in open_ if not self.leases[address].holder]
        return min(free, key=lambda address: self.leases[address].released, default=None)


@given(st.sampled_from(NETWORKS), st.data())
def test_it_agrees_with_a_list(network: Network, data: st.DataObject) -> None:
    oracle = Oracle(network)
    excluded = data.draw(st.sampled_from([[], [next(network.subnets(new_prefix=network.max_prefixlen))]]))
    pool = Pool(network, [*excluded, ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")])
    oracle.reserved = {address for subnet in excluded for address in subnet}
    everywhere = [*network, network.network_address + 100]
    for released in range(1, data.draw(st.integers(1, 25))):
        address = data.draw(st.sampled_from(everywhere))
        match data.draw(st.sampled_from(["reserve", "hold", "release", "forget"])):
            case "reserve":
                # As the state does: before anybody could lease it.
                if address not in oracle.leases:
                    pool.reserve(address)
                    oracle.reserved.add(address)
            case "forget":
                pool.update(address, None)
                oracle.leases.pop(address, None)
            case kind:
                lease = Lease(address=address, pool="p", holder="h" if kind == "hold" else "", released=released)
                pool.update(address, lease)
                oracle.leases[address] = lease
        taken = data.draw(st.sets(st.sampled_from(everywhere), max_size=5))
        assert pool.choose(taken) == oracle.choose(taken)
        inside = oracle.addresses()
        assert pool.held == sum(bool(lease.holder) for address, lease in oracle.leases.items() if address in inside)


def test_an_exhausted_pool_says_so_and_an_address_of_small_numbers_stays_ipv6() -> None:
    pool = Pool(ip_network("::/126"), [])
    first = pool.choose()
    assert first is not None and first.version == 6
    while (address := pool.choose()) is not None:
        pool.update(address, Lease(address=address, pool="p", holder="h"))
    assert pool.choose() is None
    pool.update(first, Lease(address=first, pool="p", released=1))
    assert pool.choose() == first
    assert pool.choose({first}) is None
    assert pool.choose({ip_address("10.0.0.1")}) == first, "whoever was skipped is there the next time"
