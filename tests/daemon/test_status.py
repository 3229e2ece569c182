"""A status that is put together from the last one is what it would be from nothing, and shows what has taken effect."""

import asyncio
import json
from errno import EINVAL
from ipaddress import ip_address, ip_network
from threading import Event
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.patience import LIMIT
from lab.patience import until_async as until
from msgspec.structs import replace
from node_with_peers import NodeWithPeers

from overlayd import keys
from overlayd.daemon.change.slices import TakesLong
from overlayd.daemon.status import AT_ONCE, About, StatusView
from overlayd.errors import MechanismError
from overlayd.model.layout import Facts
from overlayd.model.rows import Node, Overlay, Peer, Service
from overlayd.model.state import State
from overlayd.proto.wireguard import Activity

ABOUT = About("1.2", 1767225600, "kernel")
KEYS = [bytes([number]) * 32 for number in range(1, 4)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "drop", "seen", "unseen", "serve", "close", "renew"]),
        st.sampled_from(KEYS),
        st.integers(0, 2),
    )
)


async def test_many_peers_are_described_in_slices_and_changes_meanwhile_are_shown() -> None:
    overlay = Overlay(
        deployment="d", instance_id="1", interface="zl-d-1-g", cluster=ip_network("10.0.0.0/8"), wg_port=1
    )
    rows = [Peer(public_key=number.to_bytes(32), endpoint=f"192.0.2.1:{number}") for number in range(1, 4 * AT_ONCE)]
    state = State([Node(private_key=b"k" * 32), overlay, *rows])
    health = SimpleNamespace(generation=0, activity=lambda _scope, _key: None, condition=lambda _scope, _key: "idle")
    node = SimpleNamespace(state=state, facts=Facts(mtu=1420), kernel=SimpleNamespace(backend=None))
    view = StatusView(node, health, ABOUT)
    for _ in range(2):
        with pytest.raises(TakesLong):
            view.encoded()
        asked = [asyncio.create_task(view.described()) for _ in range(2)]
        changed = replace(rows[1], endpoint=f"192.0.2.2:{health.generation + 1}")
        await asyncio.sleep(0)
        view.follow({rows[0].id: None, changed.id: changed})
        await asyncio.gather(*asked)
        answer = json.loads(await view.described())
        shown = {peer["public_key"]: peer["endpoint"] for peer in answer["peers"]}
        assert len(shown) == answer["peer_count"] == len(rows) - 1
        assert shown[keys.text(changed.public_key)] == changed.endpoint
        assert json.loads(view.encoded()) == answer
        health.generation += 1  # every peer may have done something


async def test_a_peer_of_many_allowed_ips_is_described_in_slices_while_these_are_new() -> None:
    overlay = Overlay(
        deployment="d", instance_id="1", interface="zl-d-1-g", cluster=ip_network("10.0.0.0/8"), wg_port=1
    )
    networks = tuple(ip_network((number << 8, 24)) for number in range(1024))
    wide = Peer(public_key=KEYS[0], listed=networks)
    state = State([Node(private_key=b"k" * 32), overlay, wide])
    heard = Activity((ip_address("192.0.2.1"), 1), 5, 0, 0)
    health = SimpleNamespace(generation=0, activity=lambda _scope, _key: heard, condition=lambda _scope, _key: "fresh")
    view = StatusView(
        SimpleNamespace(state=state, facts=Facts(mtu=1420), kernel=SimpleNamespace(backend=None)), health, ABOUT
    )
    for listed in (networks, networks[1:]):
        view.follow({wide.id: replace(wide, listed=listed)})
        with pytest.raises(TakesLong):
            view.encoded()
        await view.described()
        heard = heard._replace(last_handshake=heard.last_handshake + 1)
        health.generation += 1
        (shown,) = json.loads(view.encoded())["peers"]
        assert shown["last_handshake_unix_secs"] == heard.last_handshake
        assert shown["allowed_ips"] == ",".join(map(str, listed))


@given(STEPS)
def test_as_from_nothing(steps) -> None:
    overlay = Overlay(
        deployment="d", instance_id="1", interface="zl-d-1-g", cluster=ip_network("10.0.0.0/8"), wg_port=1
    )
    state = State([Node(private_key=b"k" * 32), overlay])
    seen: dict[bytes, Activity] = {}
    health = SimpleNamespace(
        generation=0, activity=lambda _scope, key: seen.get(key), condition=lambda _scope, _key: "answers"
    )
    versions: dict[str, str] = {}
    backend = SimpleNamespace(name="userspace", version=lambda device: versions.get(device, ""))
    node = SimpleNamespace(state=state, facts=Facts(mtu=1420), kernel=SimpleNamespace(backend=backend))
    view = StatusView(node, health, ABOUT)
    for kind, key, number in steps:
        row = Peer(public_key=key, endpoint=f"192.0.2.1:{number + 1}", listed=(ip_network(f"10.0.{number}.0/24"),))
        service = Service(
            name=f"s{number}",
            subnet=ip_network(f"10.1.{number}.0/26"),
            bridge=f"zl-d-1-s{number}-b",
            isolated=key == KEYS[1],
            **({"device": f"zl-d-1-s{number}-d", "private_key": key, "wg_port": 7} if key == KEYS[2] else {}),
        )
        match kind:
            case "serve" | "close":
                change = {service.id: service if kind == "serve" else None}
                state.apply(change)
                view.follow(change)
            case "put" | "drop":
                change = {row.id: row if kind == "put" else None}
                state.apply(change)
                view.follow(change)
            case "seen":
                seen[key] = Activity((ip_address("192.0.2.9"), 9 + number % 2), number, rx_bytes=0, tx_bytes=0)
            case "renew":
                versions[("zl-d-1-g", service.bridge[:-1] + "d")[number % 2]] = str(number)
            case "unseen":
                seen.pop(key, None)
        health.generation += kind in ("seen", "unseen")
        view.count_findings(0)  # as every second
        assert view.encoded() == StatusView(node, health, ABOUT).encoded()
    services = {each["service"]: each for each in json.loads(view.encoded()).get("services", [])}
    assert services == {
        name: {
            "service": name,
            "mode": row.mode,
            "bridge": row.bridge,
            "subnet": str(row.subnet),
            "gateway": str(row.subnet[1]),
        }
        for name, row in state.table(Service).items()
    }


class SlowDevice:
    """Takes peers when it is allowed to, and refuses those that it shall."""

    name = "userspace"

    def __init__(self) -> None:
        self.asked, self.allowed, self.refuses = Event(), Event(), False

    def version(self, _device) -> str:
        return ""

    def set_peers(self, _device, _steps) -> None:
        self.asked.set()
        self.allowed.wait(LIMIT)
        if self.refuses:
            raise MechanismError("set peers of WireGuard device", "zl-d-1-g", EINVAL)


@pytest.mark.parametrize("refuses", [False, True], ids=["taken", "refused"])
def test_a_change_is_shown_once_it_has_taken_effect(tmp_path, refuses) -> None:
    async def run() -> None:
        device = SlowDevice()
        place = NodeWithPeers(tmp_path, device)
        health = SimpleNamespace(
            generation=0, activity=lambda _scope, _key: None, condition=lambda _scope, _key: "idle"
        )
        view = StatusView(place.node, health, ABOUT)

        def peer_count() -> int:
            return json.loads(view.encoded())["peer_count"]

        device.refuses = refuses
        with place.node.subscribe(view.follow):
            place.spawn(place.add_peer(KEYS[0], "192.0.2.1:1"))
            await until(device.asked.is_set)
            assert len(place.node.state.peers("")) == 1, "the next decision builds on it"
            assert peer_count() == 0
            device.allowed.set()
            await asyncio.wait(place.tasks)
            assert peer_count() == (0 if refuses else 1)
        device.refuses = False
        await place.close()

    asyncio.run(run())
