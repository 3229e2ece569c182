"""Changes that are under way at the same time: what one gives up is nobody else's until it has gone through."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from errno import ENOMEM
from ipaddress import ip_network
from threading import Event, current_thread
from time import sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.patience import LIMIT

from overlayd.daemon.change.apply import HalfDone, one_by_one
from overlayd.daemon.change.journal import Journal
from overlayd.daemon.change.node import Node
from overlayd.daemon.change.resources import attachment_locks, service_lock
from overlayd.daemon.upkeep import reclaim
from overlayd.daemon.upkeep.reclaim import detach, detach_all
from overlayd.errors import Exhausted, MechanismError, OverlaydError, RequestError, StateError
from overlayd.model import attachments, overlay, services
from overlayd.model.attachments import AttachSpec, Place
from overlayd.model.layout import Facts, layout
from overlayd.model.objects import Netns, NetnsPath, Veth
from overlayd.model.rows import ROWS, Attachment, Isolation, Lease, Service, decode
from overlayd.model.rows import Node as Identity
from overlayd.model.state import State

ROOM_FOR_ONE = ip_network("10.200.64.0/30")  # beside the gateway


class Hesitant:
    """A kernel of maps.  Whoever deletes a veth waits for `allowed`, and then is refused if `refuses`."""

    def __init__(self) -> None:
        self.things = {}
        self.asked, self.allowed = Event(), Event()
        self.refuses = False

    def apply(self, steps) -> None:
        if any(isinstance(step.have, Veth) and step.want is None for step in steps):
            self.asked.set()
            assert self.allowed.wait(LIMIT)
            if self.refuses:
                raise HalfDone(MechanismError("delete", "doomed veths", ENOMEM), [])
        self.take(steps)

    def apply_together(self, changes):
        return one_by_one(self.apply, changes)

    def take(self, steps) -> None:
        for step in steps:
            if step.have is not None:
                assert self.things.pop(step.have.key) == step.have, "the plan starts from what is there"
            if step.want is not None:
                assert step.want.key not in self.things, "nobody has made it already"
                self.things[step.want.key] = step.want

    def undo(self, done) -> None:
        self.take([step.inverse() for step in reversed(done)])

    def forget(self, addresses) -> None:
        pass

    def close(self) -> None:
        pass


def namespace(pid: int) -> Netns:
    return Netns(pid=pid, started=pid, inode=pid)


async def attach(node: Node, pid: int, service: str = "web", **spec) -> Attachment:
    wished = AttachSpec(service=service, **spec)
    return await node.change(
        lambda draft: attachments.attach_container(draft, wished, namespace(pid), "boot"),
        exclusive=attachment_locks(attachments.container(pid), namespace(pid), wished.isolation_network),
        shared=[service_lock(service)],
    )


async def serve(node: Node, name: str, subnet=None) -> Service:
    return await node.change(
        lambda draft: services.setup_service(draft, name, subnet=subnet, dedicated_key=None),
        exclusive=[service_lock(name)],
    )


@asynccontextmanager
async def ready(directory, kernel: Hesitant | None = None) -> AsyncIterator[tuple[Node, Hesitant]]:
    journal, kernel = Journal.open(directory), kernel or Hesitant()
    node = Node(State([Identity(private_key=b"k" * 32)]), journal, kernel, Facts(mtu=1420))
    cluster = ip_network("10.200.0.0/16")
    await node.change(
        lambda draft: overlay.setup_global(
            draft, deployment="d", instance_id="1", cluster=cluster, slice=None, wg_port=51820, nat=None
        ),
        everything=True,
    )
    await serve(node, "web", ROOM_FOR_ONE)
    await serve(node, "api")
    yield node, kernel
    assert kernel.things == layout(node.state, node.facts)
    await node.close()
    await journal.close()


class Moody(Hesitant):
    """A kernel that takes its time, and refuses some of what it is asked to take away."""

    def __init__(self, moods: list[bool]) -> None:
        super().__init__()
        self.allowed.set()
        self.moods = moods

    def apply(self, steps) -> None:
        if any(isinstance(step.have, Veth) for step in steps):
            sleep(0.001)
            if self.moods and self.moods.pop():
                raise HalfDone(MechanismError("delete", "doomed veths", ENOMEM), [])
        super().apply(steps)


async def leaving(node: Node, kernel: Hesitant, pid: int) -> asyncio.Task[Attachment | None]:
    """A detach that has gone as far as the kernel."""
    task = asyncio.create_task(detach(node, attachments.container(pid)))
    assert await asyncio.to_thread(kernel.asked.wait, LIMIT)
    return task


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_change_that_is_cancelled_in_the_kernel_is_taken_back_when_the_thread_is_through(
    tmp_path, refuses
) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.refuses = refuses
        row = await attach(node, 1)
        gone = await leaving(node, kernel, 1)
        gone.cancel()
        await asyncio.sleep(0.01)
        assert not gone.done(), "the thread is at work, whoever waits for it"
        kernel.allowed.set()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert node.state.get(Attachment, row.handle) == row
        kernel.refuses = False
        assert await detach(node, row.handle) == row


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_last_address_passes_on_when_it_is_free_and_not_before(tmp_path, refuses) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.refuses = refuses
        address = (await attach(node, 1)).address
        gone = await leaving(node, kernel, 1)
        coming = asyncio.create_task(attach(node, 2))
        await asyncio.sleep(0.05)
        assert not coming.done(), "it waits, for the address may come free"
        kernel.allowed.set()
        outcomes = await asyncio.gather(gone, coming, return_exceptions=True)
        if refuses:
            assert [type(outcome) for outcome in outcomes] == [MechanismError, Exhausted]
            assert "no free address" in str(outcomes[1])
        else:
            assert outcomes[1].address == address
        holders = [row.address for row in node.state.table(Attachment).values()]
        assert holders == [address], "and it has one holder"


async def test_the_number_of_an_isolation_network_that_is_not_gone_yet_is_not_given_to_another(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.refuses = True
        await attach(node, 1, isolation_network="red")
        gone = await leaving(node, kernel, 1)
        await attach(node, 2, "api", isolation_network="blue")
        kernel.allowed.set()
        await asyncio.gather(gone, return_exceptions=True)
        numbers = [row.number for row in node.state.table(Isolation).values()]
        assert len(numbers) == len(set(numbers)) == 2


async def test_the_subnet_of_a_service_that_is_not_gone_yet_is_not_given_to_another(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.refuses = True
        await attach(node, 1, ephemeral=True)
        gone = await leaving(node, kernel, 1)
        with pytest.raises(RequestError, match="in use"):
            await serve(node, "new", ROOM_FOR_ONE)
        kernel.allowed.set()
        await asyncio.gather(gone, return_exceptions=True)


async def test_nobody_makes_what_another_is_about_to_make(tmp_path) -> None:
    """The first attach changes the service's row, on which the veths of all its containers hang."""
    async with ready(tmp_path) as (node, _):
        found = await asyncio.gather(*(attach(node, pid, "api") for pid in range(1, 6)))
        assert len({attachment.address for attachment in found}) == 5


async def test_a_detach_waits_for_the_attach_before_it(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.allowed.set()
        again = asyncio.create_task(serve(node, "api"))  # holds the others up
        coming = asyncio.create_task(attach(node, 1, "api", isolation_network="red"))
        going = asyncio.create_task(detach(node, "pid:1"))
        await asyncio.gather(again, coming, going)
        assert going.result() == coming.result()
        assert not node.state.table(Attachment)


async def test_a_detach_that_is_refused_does_not_make_a_later_one_believe_that_it_was_done(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.refuses = True
        await attach(node, 1)
        gone = await leaving(node, kernel, 1)
        second = asyncio.create_task(detach(node, "pid:1"))
        await asyncio.sleep(0.01)
        kernel.allowed.set()
        outcomes = await asyncio.gather(gone, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [MechanismError, MechanismError]


@pytest.mark.parametrize("is_there", [True, False])
async def test_whether_a_container_without_a_process_is_there_is_asked_beside_the_loop(
    tmp_path, monkeypatch, is_there: bool
) -> None:
    asked: list[str] = []

    def lives(_: Attachment) -> bool:
        asked.append(current_thread().name)
        return is_there

    monkeypatch.setattr(reclaim, "lives", lives)
    async with ready(tmp_path) as (node, kernel):
        kernel.allowed.set()
        place = Place("one", "eth0", NetnsPath("/run/netns/one", device=4, inode=77, cookie=7))
        spec = AttachSpec(service="web")
        attachment = await node.change(
            lambda draft: attachments.attach_namespace(draft, spec, place, "boot", lives), exclusive=["web"]
        )
        asked.clear()
        assert await detach(node, attachment.handle, dead=True) == (None if is_there else attachment)
        assert len(asked) == 1 and asked[0].startswith("kernel")


async def test_what_is_not_attached_is_detached_without_waiting(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        await attach(node, 1)
        gone = await leaving(node, kernel, 1)
        assert await asyncio.wait_for(detach(node, "pid:2"), LIMIT) is None
        kernel.allowed.set()
        await gone


async def test_many_are_detached_with_one_commit(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.allowed.set()
        rows = [await attach(node, pid, "api", isolation_network="red") for pid in range(1, 6)]
        before = node.syncs
        ends = await detach_all(node, [*(row.handle for row in rows), "pid:6"])
        assert node.syncs == before + 1
        assert ends == {row.handle: row for row in rows} | {"pid:6": None}
        assert not node.state.table(Attachment)
        assert not node.state.table(Isolation)


async def test_links_of_many_that_may_be_dead_are_looked_at_once_and_beside_the_loop(tmp_path, monkeypatch) -> None:
    looks = []

    def ended(rows) -> list[Attachment]:
        looks.append((asyncio._get_running_loop(), rows := [*rows]))
        return [row for row in rows if row.handle.endswith("0/eth0")]

    def lives(row: Attachment) -> bool:
        raise AssertionError(f"{row.handle} is looked at by itself")

    monkeypatch.setattr(reclaim, "ended", ended)
    monkeypatch.setattr(reclaim, "lives", lives)
    async with ready(tmp_path) as (node, kernel):
        kernel.allowed.set()
        rows = [await enter(node, number) for number in range(20)]
        unlisted = [await enter(node, number) for number in range(20, 22)]
        handles = [row.handle for row in rows]
        ends = await detach_all(node, [*(row.handle for row in unlisted), *handles], dead=set(handles))
        assert [(loop, len(seen)) for loop, seen in looks] == [(None, 20)]
        assert {handle for handle, row in ends.items() if row is not None} == {
            "netns:c0/eth0",
            "netns:c10/eth0",
            "netns:c20/eth0",
            "netns:c21/eth0",
        }
        assert len(node.state.table(Attachment)) == 18


async def test_who_was_not_looked_at_is_not_taken_for_dead(tmp_path, monkeypatch) -> None:
    """Somebody attaches what an earlier detach of a dead container has not found."""
    monkeypatch.setattr(reclaim, "lives", lambda _: True)
    async with ready(tmp_path) as (node, kernel):
        kernel.allowed.set()
        coming = asyncio.create_task(enter(node, 1))
        await asyncio.sleep(0)
        going = asyncio.create_task(detach(node, "netns:c1/eth0", dead=True))
        row = await coming
        assert await going is None
        assert node.state.get(Attachment, row.handle) == row


async def enter(node: Node, number: int) -> Attachment:
    place = Place(f"c{number}", "eth0", NetnsPath(f"/run/netns/c{number}", device=4, inode=100 + number, cookie=number))
    return await node.change(
        lambda draft: attachments.attach_namespace(draft, AttachSpec(service="api"), place, "boot", lambda _: True),
        exclusive=[attachments.namespace(f"c{number}", "eth0")],
        shared=[service_lock("api")],
    )


async def test_of_many_that_are_refused_together_each_is_tried_alone(tmp_path) -> None:
    async with ready(tmp_path, Moody([False, True, False, True])) as (node, _):
        first, second, third = [await attach(node, pid, "api") for pid in (1, 2, 3)]
        ends = await detach_all(node, [first.handle, second.handle, third.handle])
        assert (ends[first.handle], type(ends[second.handle]), ends[third.handle]) == (first, MechanismError, third)
        assert list(node.state.table(Attachment)) == [second.handle]


async def test_what_is_under_way_is_waited_for_and_the_others_are_not_held_up(tmp_path) -> None:
    async with ready(tmp_path) as (node, kernel):
        first, second = [await attach(node, pid, "api") for pid in (1, 2)]
        gone = await leaving(node, kernel, 1)
        both = asyncio.create_task(detach_all(node, [first.handle, second.handle]))
        kernel.allowed.set()
        assert await both == {first.handle: None, second.handle: second}
        assert await gone == first


async def test_what_the_disk_would_not_take_back_goes_with_the_next_change(tmp_path, monkeypatch) -> None:
    async with ready(tmp_path) as (node, kernel):
        kernel.refuses = True
        attachment = await attach(node, 1)
        gone = await leaving(node, kernel, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "commit", refused_commit)
            kernel.allowed.set()
            assert isinstance((await asyncio.gather(gone, return_exceptions=True))[0], MechanismError)
        assert node.owed == 2, "the attachment and its lease"
        assert node.state.get(Attachment, "pid:1") == attachment
        await node.change(lambda draft: overlay.set_node_id(draft, 7), exclusive=["node"])
        assert node.owed == 0
        rows = dict(node.state.table(Attachment))
    again = Journal.open(tmp_path)
    assert {id[1]: decode(id, data) for id, data in again.rows.items() if id[0] == Attachment.table} == rows
    await again.close()


def refused_commit(journal: Journal, change: object, then: object = None) -> asyncio.Future[None]:
    refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    refusal.set_exception(StateError("no space left on device"))
    return refusal


async def test_the_loop_hears_of_the_disk_and_of_the_kernel_together(tmp_path, monkeypatch) -> None:
    async with ready(tmp_path) as (node, _):
        loop, told = asyncio.get_running_loop(), []

        def tell(*what) -> asyncio.Handle:
            told.append(current_thread().name)
            return call_soon(*what)

        call_soon = loop.call_soon_threadsafe
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", tell)
            await attach(node, 1)
        assert told == ["creations"], "the thread that made it durable has handed it on, and woken nobody else"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_the_disk_refuses_is_not_begun_in_the_kernel(tmp_path, monkeypatch, cancelled) -> None:
    async with ready(tmp_path) as (node, kernel):
        asked, allowed, things = Event(), Event(), dict(kernel.things)

        def refuse(_journal, _batch) -> str:
            asked.set()
            assert allowed.wait(LIMIT)
            return "no space left on device"

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_write", refuse)
            coming = asyncio.create_task(attach(node, 1))
            assert await asyncio.to_thread(asked.wait, LIMIT)
            if cancelled:
                coming.cancel()
                await asyncio.sleep(0.01)
                assert not coming.done(), "the disk may still take it"
            allowed.set()
            with pytest.raises(StateError, match="no space left"):
                await coming
        assert kernel.things == things
        assert not node.state.table(Attachment)
        assert not node.owed
        assert await attach(node, 1)


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["attach"] * 4 + ["detach"] * 4 + ["serve", "pause", "pause"]),
        st.integers(1, 3),
        st.sampled_from(["web", "web", "web", "api"]),
        st.booleans(),
        st.sampled_from(["", "red", "blue"]),
    ),
    min_size=8,
    max_size=25,
)


@given(REQUESTS, st.lists(st.booleans(), min_size=8, max_size=25))
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_at_once_and_refused_nothing_is_held_twice_or_by_nobody(
    tmp_path_factory, requests, moods
) -> None:
    async def run() -> None:
        directory = tmp_path_factory.mktemp("data")
        async with ready(directory, Moody(list(moods))) as (node, _):
            asked = [asyncio.create_task(attach(node, 1, join_global=True))]
            for kind, pid, service, ephemeral, network in requests:
                match kind:
                    case "attach":
                        spec = {"ephemeral": ephemeral, "isolation_network": network, "join_global": True}
                        asked.append(asyncio.create_task(attach(node, pid, service, **spec)))
                    case "detach":
                        asked.append(asyncio.create_task(detach(node, f"pid:{pid}")))
                    case "serve":
                        asked.append(asyncio.create_task(serve(node, service)))
                    case "pause":
                        await asyncio.sleep(0.002)
                await asyncio.sleep(0)
            outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), LIMIT)
            assert not [one for one in outcomes if isinstance(one, Exception) and not isinstance(one, OverlaydError)]
            attached = list(node.state.table(Attachment).values())
            held = sorted((str(a), row.handle) for row in attached for a in (row.address, row.global_address))
            leases = node.state.table(Lease).values()
            assert sorted((str(lease.address), lease.holder) for lease in leases if lease.holder) == held
            numbers = {row.name: row.number for row in node.state.table(Isolation).values()}
            assert len(set(numbers.values())) == len(numbers)
            assert numbers.keys() == {row.isolation_network for row in attached} - {""}
            assert not node.state.departing
            rows = {row.id: row for kind in ROWS if kind is not Identity for row in node.state.table(kind).values()}
        again = Journal.open(directory)
        assert {id: decode(id, data) for id, data in again.rows.items()} == rows
        await again.close()

    asyncio.run(run())
