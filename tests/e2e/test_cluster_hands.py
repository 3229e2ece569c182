"""What somebody's hands do to the store: keys that are removed, and values that make no sense, under ping.

No tunnel is lost, no name, no address; the nodes put right what is theirs, and what they cannot put right is named with
its key by the doctor and the log.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lab import CommandFailed, Lab, Refused, ping
from lab.etcd import PATIENT, Etcd
from lab.patience import until
from lab.sites import Site, pinging, serve, sites

PREFIX = "/overlayd/prod/"
AGREE = "the store, the journal and the device agree\n"


class Place:
    def __init__(self, lab: Lab, etcd: Etcd) -> None:
        self.lab, self.etcd = lab, etcd
        self.sites = sites(lab, etcd, ["alpha", "beta", "gamma"])
        serve(self.sites)

    def get(self, key: str) -> str:
        return self.etcd.ctl("get", "--print-value-only", PREFIX + key).strip()

    def put(self, key: str, value: str) -> None:
        """Of any size, which a command line has not."""
        file = self.lab.directory / "value"
        file.write_text(value)
        member = self.etcd.members[0]
        script = f"ETCDCTL_API=3 etcdctl {' '.join(PATIENT)} --endpoints {member.url} put {PREFIX}{key} < {file}"
        member.node.run(["sh", "-c", script])

    def delete(self, key: str, *options: str) -> None:
        self.etcd.ctl("del", *options, PREFIX + key)

    def record(self, site: Site) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(f"s/node/{site.node.name}"))
        return found

    def names(self, site: Site) -> list[str]:
        return [site.resolve(f"{each.node.name}-web") for each in self.sites]

    def fault(self, site: Site, key: str) -> str:
        """What the doctor says of a record; empty when it says nothing."""
        findings = site.request("doctor")["findings"]
        return next((str(each["problem"]) for each in findings if each["object"] == f"record {key}"), "")

    def agree(self) -> None:
        """The store, the journals and the devices are the same again, and nobody has anything to say."""
        for site in self.sites:
            until(lambda site=site: self._check(site) == AGREE, lambda site=site: self._check(site))
            until(lambda site=site: not self._told(site), lambda site=site: self._told(site))

    @staticmethod
    def _check(site: Site) -> str:
        try:
            return site.node.overlayctl("cluster", "check")
        except CommandFailed as error:
            return str(error)

    @staticmethod
    def _told(site: Site) -> list[str]:
        return [each["problem"] for each in site.request("doctor")["findings"] if each["code"].startswith("cluster")]

    def logged(self, site: Site, text: str) -> bool:
        return text in site.node.log.read_text()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab, Etcd(lab) as etcd:
        yield Place(lab, etcd)


@contextmanager
def nothing_lost(place: Place) -> Iterator[None]:
    """No echo between any two of the containers, and no peer of any device, at any time that was looked."""
    pings = pinging(place.sites)
    before = [site.device_peers() for site in place.sites]
    counted = [received(site) for site in place.sites]
    lost: list[list[int]] = []
    try:
        yield
        place.agree()
        for each in pings:
            each.wait_for(3)
    finally:
        lost = [each.stop() for each in pings]
    assert not any(lost)
    assert [site.device_peers() for site in place.sites] == before
    # A peer that had gone and come again would count from nothing.
    for site, then in zip(place.sites, counted, strict=True):
        assert all(number >= then[key] for key, number in received(site).items())
    assert all(place.names(site) == [each.address for each in place.sites] for site in place.sites)


def received(site: Site) -> dict[str, int]:
    """Bytes from each peer, by its key."""
    lines = site.node.run(["wg", "show", site.status["interface"], "transfer"]).splitlines()
    return {line.split()[0]: int(line.split()[1]) for line in lines}


@pytest.mark.parametrize("value", ["garbage", "[]", '{"instance": 7}', "\x00\xff"])
def test_a_record_of_a_node_that_makes_no_sense_is_put_right_by_that_node(place: Place, value: str) -> None:
    _, beta, _ = place.sites
    with nothing_lost(place):
        place.put("s/node/beta", value)
        until(lambda: place.logged(beta, "the store's record of this node made no sense, and is put again"))
        until(lambda: place.get("s/node/beta").startswith('{"instance'), lambda: place.get("s/node/beta"))


@pytest.mark.parametrize("key", ["s/node/beta", "s/node/", "s/name/", "s/config", "b/", "p/", "s/pulse", ""])
def test_keys_that_are_removed_come_back(place: Place, key: str) -> None:
    with nothing_lost(place):
        place.delete(key, "--prefix")
        if key in ("b/", ""):
            for site in place.sites:
                site.node.stop()
                site.start()
                site.state("connected")
            until(lambda: place.logged(place.sites[0], "is claimed again, the store had it no longer"))


def test_a_register_that_makes_no_sense_is_put_right_by_who_holds_the_block(place: Place) -> None:
    _, beta, _ = place.sites
    block = beta.part["block"]
    with nothing_lost(place):
        place.put(f"b/{block.replace('/', '-')}", "garbage")
        place.put("b/hello", "x")
        assert f"block {block} of node beta is not in the register" in place._check(place.sites[0])
        beta.node.stop()
        beta.start()
        beta.state("connected")
        until(lambda: '"beta"' in place.get(f"b/{block.replace('/', '-')}"))
        place.delete("b/hello")


def test_names_that_make_no_sense_are_told_again(place: Place) -> None:
    alpha, beta, _ = place.sites
    with nothing_lost(place):
        place.put("s/name/beta", "garbage")
        until(lambda: place.logged(beta, "somebody has changed s/name/beta in the store: our names are told again"))
        place.put("s/name/beta/7", '{"intruder": ["10.200.0.9"]}')
        until(lambda: not place.get("s/name/beta/7"), "it stays")
        until(lambda: not alpha.resolve("intruder"), "it resolves")


def test_a_number_that_no_node_puts_is_not_the_last_word(place: Place) -> None:
    alpha, beta, _ = place.sites
    with nothing_lost(place):
        for seq in (2**40, 2**62, 2**63, 10**30):
            place.put("s/node/beta", json.dumps(place.record(beta) | {"seq": seq}))
            until(lambda: place.record(beta)["seq"] < 2**40, lambda: place.record(beta))
        beta.request("register_dns", name="afterwards", ip=beta.address)
        until(lambda: alpha.resolve("afterwards") == beta.address, alpha.node.log_tail)
        beta.request("unregister_dns", name="afterwards")


def test_a_cluster_is_not_renumbered_under_its_nodes(place: Place) -> None:
    alpha, beta, _ = place.sites
    config = json.loads(place.get("s/config"))
    with nothing_lost(place):
        for other in ({"cluster_cidr": "10.99.0.0/16"}, {"block_prefix": 26}, {"service_share": 0}):
            place.put("s/config", json.dumps(config | other))
            until(lambda: "and the cluster was made with 10.200.0.0/16" in place.fault(alpha, "s/config"))
            beta.node.stop()
            beta.start()
            beta.state("connected")
            beta.attach().kill()
            until(lambda: "and the cluster was made with" in place.fault(beta, "s/config"))
        place.put("s/config", json.dumps(config))


@pytest.mark.parametrize(
    ("value", "told"),
    [("garbage", "JSON is malformed"), ('{"format": 2}', "format 2, and this overlayd knows 1: install")],
)
def test_a_configuration_that_is_not_understood_is_named_and_nothing_stops(place: Place, value: str, told: str) -> None:
    alpha, beta, _ = place.sites
    config = place.get("s/config")
    written = value if value == "garbage" else json.dumps(json.loads(config) | {"format": 2})
    with nothing_lost(place):
        place.put("s/config", written)
        until(lambda: told in place.fault(alpha, "s/config"), lambda: alpha.request("doctor"))
        alpha.attach().kill()
        alpha.request("register_dns", name="still", ip=alpha.address)
        until(lambda: beta.resolve("still") == alpha.address, beta.node.log_tail)
        alpha.request("unregister_dns", name="still")
        place.put("s/config", config)


def test_records_of_nodes_that_are_none_are_skipped_and_can_be_removed(place: Place) -> None:
    alpha, beta, _ = place.sites
    forged = place.record(beta) | {"instance": "e", "seq": 1}
    with nothing_lost(place):
        place.put("s/node/huge", json.dumps({"x": "y" * 900_000}))
        place.put("s/node/wide", json.dumps(forged | {"block": "0.0.0.0/0", "key": _key()}))
        place.put("s/node/thief", json.dumps(forged | {"block": alpha.part["block"], "key": _key()}))
        place.put("s/node/twin", json.dumps(forged | {"block": "10.200.250.0/24"}))
        place.put("s/unknown", "x")
        told = {
            "huge": r"at most 65536",
            "wide": "0.0.0.0/0 is no /24 block of 10.200.0.0/16: not routed to it",
            "thief": "is this node's own: not routed to it",
            "twin": "its key is that of node beta, whose record is older: no peer",
        }
        for name, why in told.items():
            until(lambda name=name, why=why: why in place.fault(alpha, f"s/node/{name}"), lambda: alpha.part)
        for name in told:
            alpha.node.overlayctl("cluster", "remove-node", name)
        place.delete("s/unknown")


def test_the_record_of_a_newer_overlayd_keeps_what_this_one_does_not_know(place: Place) -> None:
    alpha, beta, _ = place.sites
    with nothing_lost(place):
        place.put("s/node/beta", json.dumps(place.record(beta) | {"version": "9.9", "labels": {"rack": 1}}))
        until(lambda: place.record(beta)["version"] != "9.9", lambda: place.record(beta))
        assert place.record(beta)["labels"] == {"rack": 1}
        config = json.loads(place.get("s/config")) | {"later": [1]}
        place.put("s/config", json.dumps(config))
        alpha.request("cluster_set", key="rate", value="20")
        assert json.loads(place.get("s/config"))["later"] == [1]


def test_a_presence_that_makes_no_sense_protects_nobody(place: Place) -> None:
    """Written without a lease it would stay for ever: the node could not be removed."""
    alpha, _, gamma = place.sites
    gamma.is_present()
    with pytest.raises(Refused, match="node gamma lives"):
        alpha.request("cluster_remove_node", node="gamma")
    gamma.node.kill()
    place.put("p/gamma", "x")
    alpha.request("cluster_remove_node", node="gamma")
    alpha.knows(1)
    gamma.start()
    gamma.state("connected")
    alpha.knows(2)
    ping(alpha.container, gamma.address, count=2)


def test_an_office_of_the_janitor_that_nobody_holds_is_taken(place: Place) -> None:
    alpha, _, gamma = place.sites
    place.put("p/_janitor", "x")
    alpha.node.overlayctl("cluster", "set", "node_ttl_secs=4")
    gamma.node.kill()
    place.delete("p/gamma")
    alpha.knows(1)
    alpha.node.overlayctl("cluster", "set", "node_ttl_secs=0")
    until(lambda: any(place.logged(site, "was held by no node that is known") for site in place.sites))


def test_two_clusters_on_one_etcd_know_nothing_of_each_other(place: Place) -> None:
    alpha, beta, _ = place.sites
    other = [Site(place.lab, place.etcd, name) for name in ("one", "two")]
    for number, site in enumerate(other):
        site.options = [*place.etcd.options, "--cluster", "test", "--node", ("alpha", "beta")[number]]
        site.start("--cluster-cidr", "10.201.0.0/16")
    for site in other:
        site.join()
        site.knows(1)
        site.serve()
    assert alpha.status["peer_count"] == 1
    assert other[0].part["block"].startswith("10.201.")
    assert not alpha.resolve("one-web")
    other[1].request("cluster_leave", force=True)
    other[0].knows(0)
    ping(alpha.container, beta.address, count=2)


def _key() -> str:
    return b64encode(os.urandom(32)).decode()
