"""What each CNI command does: the same decisions as those of the requests that orchestrators send.

Owns: ADD, DEL, CHECK, STATUS and GC, and how a failure is told by CNI's codes.  Must not know: sockets and frames.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec

from overlayd import wire
from overlayd.daemon import parse
from overlayd.daemon.change.presence import ended
from overlayd.daemon.cni import check, interface, readiness
from overlayd.daemon.cni.delete_queue import DeleteQueue
from overlayd.daemon.handlers import containers, services
from overlayd.daemon.handlers.context import Daemon
from overlayd.daemon.server import audit
from overlayd.daemon.server.listener import Credentials
from overlayd.daemon.upkeep.reclaim import detach, detach_all
from overlayd.errors import (
    AddressUnavailable,
    Exhausted,
    InterfaceExists,
    InvalidValue,
    MechanismError,
    NamespaceGone,
    NotSetUp,
    OverlaydError,
    OwnNamespace,
    RequestError,
    StateError,
    quoted,
)
from overlayd.linux import veth
from overlayd.model import attachments
from overlayd.model.attachments import AttachSpec, StillThere
from overlayd.model.names import require_printable
from overlayd.model.objects import LONGEST_SCOPE, Address, Network
from overlayd.model.rows import Attachment, Service
from overlayd.proto import cni, cni_conflist, cni_network
from overlayd.proto.cni import Answer, Call, CniError
from overlayd.proto.cni_network import SLICE, Asked

log = logging.getLogger(__name__)

CONVERGING = 5.0  # seconds after a repair in which a difference may be one that is being put right, by the contract

OFFER = "OFFER"  # ours, of `overlayctl cni install`: have a list of plugins written once containers can be attached

_ANYWHERE: dict[int, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}

Record = Callable[[str, str, float], None]

# What a failure is to CNI, and what to do about it; the first that fits.
_CODES: tuple[tuple[type[OverlaydError], int, str], ...] = (
    (NamespaceGone, cni.UNKNOWN_CONTAINER, "the container has ended; the runtime makes another one"),
    (OwnNamespace, cni.UNKNOWN_CONTAINER, "a container in the host's network needs no CNI"),
    (InterfaceExists, cni.NAME_TAKEN, "give each network of a container an interface name of its own"),
    (veth.Taken, cni.NAME_TAKEN, "rename or delete what has the name in the container"),
    (AddressUnavailable, cni.NO_ADDRESS, "overlayctl ip -o wide shows who holds which address"),
    (
        StillThere,
        cni.INVALID_ENVIRONMENT,
        "end the container of that id, or call DEL for it, before another one has it",
    ),
    (Exhausted, cni.NO_ADDRESS, "overlayctl ip shows how many addresses each service has, and how many are held"),
    (NotSetUp, cni.TRY_AGAIN, "overlayd is being set up; the runtime tries again"),
    (RequestError, cni.INVALID_CONFIG, ""),
    (MechanismError, cni.KERNEL, "overlayctl doctor says more"),
    (StateError, cni.TRY_AGAIN, "free space or repair the disk of overlayd's data directory"),
)


class Commands:
    """queue: of DELs, in which what has been done since is forgotten."""

    def __init__(self, daemon: Daemon, queue: DeleteQueue) -> None:
        self._daemon = daemon
        self._queue = queue
        self._locks: dict[str, asyncio.Lock] = {}  # by handle, of interfaces
        self._users: Counter[str] = Counter()  # commands about these
        self._repaired = float("-inf")
        self._record: Record | None = None
        self._done: Mapping[str, Callable[[Call, int | None], Awaitable[str]]] = {
            "ADD": self._add,
            "DEL": self._delete,
            "CHECK": self._check,
            "STATUS": self._status,
            "GC": self._collect,
            OFFER: self._offer,
        }

    def observe(self, record: Record) -> None:
        """Tell of every command from now on: `cni_add` and so on, how it ended, and the seconds that it took."""
        self._record = record

    def note_repair(self, _name: str) -> None:
        """An object of this node was put right just now."""
        self._repaired = time.monotonic()

    async def run(self, call: Call, descriptor: int | None, client: Credentials) -> Answer:
        """Do a command, and answer it.  Never raises.  descriptor: of the container's namespace; client: who called."""
        began = time.monotonic()
        end: str | Exception
        try:
            end = await self._done.get(call.cni.command, self._unknown)(call, descriptor)
        except Exception as error:
            end = error
        return self._answer(call, client, end, began)

    async def run_left(self, calls: Sequence[Call]) -> list[Answer]:
        """Do DELs that were left while no daemon ran, together, unless an ADD has made the interface again since."""
        began = time.monotonic()
        ends: dict[str, BaseException | Attachment | None] = {}
        valid = dict[str, Call]()
        for call in calls:
            handle = _handle(call)
            try:
                cni.require_call(call.cni, "")
                valid[handle] = call
            except CniError as error:
                ends[handle] = error
        async with self._locked(*valid):
            held = [handle for handle, call in valid.items() if self._queue.holds(call)]
            for handle, end in (await detach_all(self._daemon.node, held)).items():
                if not isinstance(end, BaseException):
                    self._queue.forget(valid[handle])
                ends[handle] = end
        told = ((call, ends.get(_handle(call))) for call in calls)
        return [self._answer(call, None, end if isinstance(end, BaseException) else "", began) for call, end in told]

    def _answer(self, call: Call, client: Credentials | None, end: str | BaseException, began: float) -> Answer:
        """Tell how a command has ended: with what is printed, or an error.  client: None for a DEL that was left."""
        environment, failed = call.cni, ""
        if isinstance(end, str):
            answer = Answer(0, end)
        else:
            refusal = _told(end)
            failed = f"code {refusal.code}, {refusal.message}"
            answer = cni.failure(refusal, cni_network.version_of(call.config))
        seconds = time.monotonic() - began
        op = f"cni_{environment.command.lower()}"
        if self._record is not None:
            self._record(op if environment.command in cni.COMMANDS else "cni", "err" if failed else "ok", seconds)
        if environment.command in ("ADD", "DEL", "GC") or failed:
            of_one = environment.command in ("ADD", "DEL", "CHECK")
            what = f"netns:{environment.container_id}/{environment.ifname}" if of_one else "-"
            told = audit.Told(op, what, "err" if failed else "ok", failed, seconds)
            who = client or Credentials(os.getpid(), os.getuid(), os.getgid())
            program = audit.program_of(client) if client is not None else "left before the start"
            asyncio.get_running_loop().call_soon(audit.write, who, program, told)  # when the answer is out
        return answer

    async def _unknown(self, call: Call, _: int | None) -> str:
        cni.require_call(call.cni, "")
        raise AssertionError("a command that is known is done")

    # --- ADD ---

    async def _add(self, call: Call, descriptor: int | None) -> str:
        asked = cni_network.parse(call.cni, call.config)
        if descriptor is None:
            raise CniError(cni.INVALID_ENVIRONMENT, f"CNI_NETNS: {call.cni.netns} came without its namespace")
        if reason := readiness.missing(self._daemon):
            raise CniError(cni.TRY_AGAIN, f"overlayd cannot attach containers yet: {reason}", "the runtime tries again")
        require_printable(asked.isolation, "isolation", LONGEST_SCOPE)  # a pod's annotation may be anything
        environment = asked.environment
        handle = attachments.namespace(environment.container_id, environment.ifname)
        async with self._locked(handle):
            service = await self._service(asked)
            spec = AttachSpec(
                service=service.name,
                join_global=asked.join_global,
                isolation_network=asked.isolation,
                now=int(time.time()),
                ip=_address(asked, service),
                mac=bytes.fromhex(asked.mac.replace(":", "")),
                default_route=asked.default_route,
                network=asked.network,
                names=tuple(_names(asked, handle)),
            )
            place = wire.LinuxNetns(id=environment.container_id, path=environment.netns, ifname=environment.ifname)
            made = await self._attach(asked, spec, place, descriptor)
            self._queue.forget(call)
        return cni.result(made, asked.version).stdout

    async def _attach(self, asked: Asked, spec: AttachSpec, place: wire.LinuxNetns, descriptor: int) -> cni.Made:
        """What is attached in that namespace already keeps its address, and is made again if it was changed."""
        node, handle = self._daemon.node, attachments.namespace(place.id, place.ifname)
        before = node.state.get(Attachment, handle)
        made = await containers.attach_namespace(self._daemon, spec, place, descriptor, keeps=True)
        row = node.state.table(Attachment)[handle]
        if before is not None:
            await interface.restore(node, row, descriptor)
        return self._made(asked, made, default_route=await interface.has_default_route(node, row, descriptor))

    async def _service(self, asked: Asked) -> Service:
        """The service to attach to, which is set up at its first use."""
        state = self._daemon.node.state
        overlay = state.overlay
        subnet = asked.subnet
        if subnet == SLICE and overlay is not None:
            subnet = overlay.slice
            if subnet is None:
                raise CniError(cni.INVALID_CONFIG, "subnet: this node has no slice", "give a CIDR, or leave it out")
        service = state.get(Service, asked.service)
        if service is None:
            wanted = str(subnet) if subnet is not None else None
            await services.setup_service_overlay(
                self._daemon, wire.SetupServiceOverlay(asked.service, "auto", subnet=wanted)
            )
            service = state.table(Service)[asked.service]
        if subnet is not None and subnet != service.subnet:
            raise CniError(
                cni.INVALID_CONFIG,
                f"subnet: service {service.name} has {service.subnet}, not {subnet}",
                "tear the service down first (overlayctl call teardown_service_overlay), or name another one",
            )
        return service

    def _made(self, asked: Asked, made: wire.Attached, *, default_route: bool) -> cni.Made:
        assert made.interface is not None
        inner = made.interface
        outer = veth.host_mac(bytes.fromhex(inner.mac.replace(":", ""))).hex(":")
        gateway = made.gateway or ""
        overlay = self._daemon.node.state.overlay
        routes = [_ANYWHERE[6 if ":" in gateway else 4]] if default_route else []
        if asked.join_global and overlay is not None:
            routes.append(overlay.cluster)
        return cni.Made(
            host=cni.Interface(inner.host_name, outer, inner.mtu),
            container=cni.Interface(inner.name, inner.mac, inner.mtu, asked.environment.netns),
            address=f"{made.ip}/{made.prefix_len}",
            gateway=gateway,
            routes=tuple(routes),
            dns=self._dns(asked),
        )

    def _dns(self, asked: Asked) -> dict[str, Any]:
        """As the configuration has it, else this node's name server, if it serves at the usual port."""
        if asked.dns is not None:
            told: dict[str, Any] = msgspec.to_builtins(asked.dns)
        else:
            server, domain = self._daemon.nameserver.announced_to([asked.service])
            told = {"nameservers": [str(server)], "domain": domain} if server is not None else {}
        for key, values in (("search", asked.searches), ("options", asked.options)):
            if values and key not in told:
                told[key] = list(values)
        return told

    # --- the others ---

    async def _delete(self, call: Call, _: int | None) -> str:
        cni.require_call(call.cni, "")  # a configuration that is broken by now stops nobody
        handle = _handle(call)
        async with self._locked(handle):
            await detach(self._daemon.node, handle)
            self._queue.forget(call)
        return ""

    async def _check(self, call: Call, descriptor: int | None) -> str:
        asked = cni_network.parse(call.cni, call.config)
        environment = asked.environment
        handle = attachments.namespace(environment.container_id, environment.ifname)
        async with self._locked(handle):
            leads_outside = asked.previous is None or asked.previous.leads_outside
            differences = await check.differences(self._daemon.node, handle, descriptor, default_route=leads_outside)
        row = self._daemon.node.state.get(Attachment, handle)
        differences += _foreign_addresses(asked, row)
        if differences:
            if row is not None and time.monotonic() - self._repaired < CONVERGING:
                raise CniError(cni.TRY_AGAIN, f"{differences[0]}; overlayd is putting something right", "ask again")
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise CniError(cni.KERNEL, f"{differences[0]}{more}", "overlayctl doctor says more")
        return ""

    async def _status(self, call: Call, _: int | None) -> str:
        asked = cni_network.parse(call.cni, call.config)
        await readiness.require(self._daemon, asked.service)
        return ""

    async def _collect(self, call: Call, _: int | None) -> str:
        # Those that are there now: what comes meanwhile is younger than the list of the valid.
        asked = cni_network.parse(call.cni, call.config)
        node = self._daemon.node
        rows = [
            row
            for row in node.state.table(Attachment).values()
            if row.network == asked.network and row.handle not in self._users
        ]
        kept = {attachments.namespace(*each) for each in asked.valid} if asked.valid is not None else None
        listed = [row for row in rows if kept is None or row.handle in kept]
        unlisted = [row.handle for row in rows if kept is not None and row.handle not in kept]
        async with self._locked(*unlisted):
            # Looked at before: a link can hardly be looked at while the kernel deletes others.
            dead = {row.handle for row in await node.run(ended, listed)}
            ends = await detach_all(node, [*unlisted, *dead], dead=dead)
        failed = [error for error in ends.values() if isinstance(error, Exception)]
        gone = [end for end in ends.values() if isinstance(end, Attachment)]
        log.info("CNI network %s: %d attachments are gone, unlisted or dead", asked.network, len(gone))
        if failed:
            first = _told(failed[0])
            raise CniError(first.code, "; ".join(map(str, failed)), first.details)
        return ""

    async def _offer(self, call: Call, _: int | None) -> str:
        """Write a list of plugins, by which runtimes take this node for one that has a network."""
        asked = cni_conflist.read(call.config)
        target = Path(call.cni.path)
        if not target.is_absolute():
            raise CniError(cni.INVALID_ENVIRONMENT, f"{quoted(call.cni.path)} is not an absolute path")
        await readiness.require(self._daemon, asked.service)
        draft = target.with_name(f".{target.name}.new")  # a runtime reads what ends in .conflist
        try:
            draft.write_text(call.config)
            draft.chmod(0o644)
            draft.rename(target)
        except OSError as error:
            raise CniError(
                cni.IO_FAILURE, f"cannot write {target}: {error.strerror}", "see where overlayd may write"
            ) from error
        log.info("%s offers the network %s to container runtimes", target, asked.network)
        return ""

    @asynccontextmanager
    async def _locked(self, *handles: str) -> AsyncIterator[None]:
        """One command of an interface at a time; of several in one order, so that nobody waits in a circle."""
        held: list[asyncio.Lock] = []
        for handle in handles:
            self._users[handle] += 1
        try:
            for handle in sorted(handles):
                lock = self._locks.setdefault(handle, asyncio.Lock())
                await lock.acquire()
                held.append(lock)
            yield
        finally:
            for lock in held:
                lock.release()
            for handle in handles:
                self._users[handle] -= 1
                if not self._users[handle]:
                    del self._users[handle]
                    self._locks.pop(handle, None)


def _handle(call: Call) -> str:
    return attachments.namespace(call.cni.container_id, call.cni.ifname)


def _told(error: BaseException) -> CniError:
    """Where errors become CNI's."""
    if isinstance(error, CniError):
        return error
    for kind, code, details in _CODES:
        if isinstance(error, kind):
            return CniError(code, str(error).removeprefix("request."), details)
    log.error("CNI: unexpected error", exc_info=error)
    return CniError(cni.KERNEL, f"internal error: {type(error).__name__}: {error}", "report it, with overlayd's log")


def _address(asked: Asked, service: Service) -> Address | None:
    """The address that is asked for, of those of each family."""
    for address in asked.addresses:
        if address.version != service.subnet.version:
            raise CniError(
                cni.NO_ADDRESS,
                f"{address} is not in the subnet {service.subnet} of service {service.name}",
                "ask for an address of that subnet, or for none",
            )
    return asked.addresses[0] if asked.addresses else None


def _names(asked: Asked, handle: str) -> list[str]:
    """The names to register; what is no name of DNS, as a pod's may be, is left out."""
    names = []
    for name in asked.names:
        try:
            names.append(parse.dns_name(name, "name"))
        except InvalidValue:
            log.warning("%s: %s is not a DNS name, and not registered", handle, quoted(name))
    return names


def _foreign_addresses(asked: Asked, row: Attachment | None) -> list[str]:
    """What the result of the ADD says of our interface that is not so any more."""
    previous = asked.previous
    if previous is None or row is None:
        return []
    interfaces = previous.interfaces or ()
    found = []
    for ip in previous.ips or ():
        at = ip.interface
        if at is None or not 0 <= at < len(interfaces):
            continue
        if interfaces[at].sandbox and interfaces[at].name == asked.environment.ifname:
            bare = ip.address.partition("/")[0]
            if bare != str(row.address):
                found.append(f"prevResult: {row.interface} has {row.address}, not {bare}")
    return found
