"""What a router says of a port that it was asked to send here; the protocols are played."""

from ipaddress import IPv4Address

import pytest

from overlayd.daemon.nat.port_mapping import PortMapping
from overlayd.proto.port_mapping import Mapping, Refusal

ROUTER, OWN, OUTSIDE = IPv4Address("192.168.1.254"), IPv4Address("192.168.1.1"), IPv4Address("198.51.100.7")


@pytest.mark.parametrize("nowhere", [Mapping(IPv4Address(0), 51820, 3600), Mapping(OUTSIDE, 0, 3600)])
async def test_a_mapping_to_nowhere_is_none_and_another_protocol_is_asked(
    nowhere: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, Mapping | Refusal] = {"pcp": nowhere, "nat_pmp": nowhere, "upnp": Refusal("no answer")}
    for name in [*said]:

        async def ask(*_: object, name: str = name) -> Mapping | Refusal:
            return said[name]

        monkeypatch.setattr(PortMapping, f"_ask_by_{name}", ask)
    mapping = PortMapping(None, 51820)  # type: ignore[arg-type]
    refused = await mapping._ask_router(ROUTER, OWN, None)  # type: ignore[arg-type]
    assert isinstance(refused, Refusal) and "sends nothing here" in refused.reason
    said["nat_pmp"] = Mapping(OUTSIDE, 51820, 3600)
    assert await mapping._ask_router(ROUTER, OWN, None) == said["nat_pmp"]  # type: ignore[arg-type]
