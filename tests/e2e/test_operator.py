"""overlayctl on living nodes: what an operator is shown, and what goes into a bug report."""

import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import msgspec
from lab import Lab, ping
from lab.cluster import Member, Pair
from lab.patience import until

from overlayd import __version__, wire
from overlayd.cli import arguments


def test_names_lists_and_wg_of_two_nodes(pair: Pair) -> None:
    alpha, beta = pair.alpha, pair.beta
    alpha.introduce(beta, name="beta")
    alpha.request("setup_service_overlay", service="vault", mode="dedicated")
    ping(alpha.node, str(pair.beta.slice.replace(".0/24", ".1")))
    until(lambda: "answers" in alpha.node.overlayctl("peers", "--filter", "beta"))
    assert alpha.node.overlayctl("status", "--wait").startswith("all is well: 1 peers, 2 services\n")
    assert "beta" in alpha.node.overlayctl("nat")
    assert alpha.node.overlayctl("ready") == "ready\n"
    assert alpha.node.overlayctl("version").splitlines() == [f"overlayctl {__version__}", f"overlayd {__version__}"]
    assert f"pid:{pair.web.pid}" in alpha.node.overlayctl("containers")
    assert "(node)" in alpha.node.overlayctl("ip")
    # wg names the peer's key and its port, not our name for it.
    theirs = {tuple(line.split("\t")) for line in alpha.node.run(["wg", "show", "all", "dump"]).splitlines()}
    ours = {tuple(line.split("\t")) for line in alpha.node.overlayctl("show", "dump").splitlines()}
    assert {line[:1] + line[2:4] for line in theirs if len(line) == 5} == {
        line[:1] + line[2:4] for line in ours if len(line) == 5
    }
    for line in theirs:
        if len(line) == 9:
            (same,) = [each for each in ours if each[1] == line[1]]
            assert same[:6] == line[:6]
            assert same[8:] == (line[8], "beta")


# What the page says that a command prints, as a type, or as the keys that it always has.
PRINTED: dict[str, Any] = {
    "status": wire.Status,
    "nat": wire.NatStatus,
    "dns list": wire.Dns,
    "dns query web": wire.DnsAnswer,
    "services": list[wire.ListedService],
    "containers": list[wire.ListedContainer],
    "networks": list[wire.ListedNetwork],
    "ip": {"pools", "addresses"},
    "peers": list[wire.StatusPeer],
    "doctor": list[wire.Finding],
    "device renew": list[wire.RenewedDevice],
    "edge list": list[wire.EdgePeer],
    "edge mint laptop --ttl 1h --node-endpoint 192.0.2.1:51820": wire.EdgeConfig,
    "cluster status": wire.StatusCluster | None,
    "top --number 1": {"received", "sent", "peers", "services"},
    "ready": {"ready", "reason"},
    "why {web} {db}": {"hops", "way_back"},
    "ping {db} -c 1": {"address", "milliseconds"},
    "whoami": {*("pid", "uid", "exe_path", "exe_hash", "namespace_id", "socket", "started_at_unix_ms", "boot_id")},
    "inspect": {"picture", "journal", "differences"},
    "version": {"overlayctl", "overlayd"},
}
OF_A_CLUSTER = {"cluster nodes", "cluster show", "cluster check", "events"}  # as other tests read them


def test_json_is_what_the_page_says(pair: Pair) -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    table = page.partition("## In a shell")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.MULTILINE)
    said = {command: text for commands, text in rows for command in re.findall(r"`([^`]+)`", commands)}
    have_json = set()
    for each in arguments.COMMANDS:
        for action in each.actions or (each,):
            words = each.word if action is each else f"{each.word} {action.word}"
            have_json |= {words for option in action.options if "--json" in option.names}
    assert said.keys() == have_json
    ends = {"web": f"pid:{pair.web.pid}", "db": pair.db_address}
    tried = set()
    for command, form in PRINTED.items():
        (named,) = [each for each in said if f"{command} ".startswith(f"{each} ")]
        tried.add(named)
        given = [word.format(**ends) for word in command.split()]
        printed = pair.alpha.node.try_overlayctl(*given, "--json")[1]
        if isinstance(form, set):
            assert form <= json.loads(printed).keys(), command
            for key in form:
                assert f"`{key}`" in said[named], (command, key)
        else:
            msgspec.json.decode(printed, type=form)
    assert tried | OF_A_CLUSTER == have_json


def test_what_flows_is_shown(pair: Pair) -> None:
    flood = subprocess.Popen(pair.web.command(["ping", "-q", "-i", "0.05", "-s", "1000", pair.db_address]))
    try:
        until(lambda: _rate(pair.alpha.node.overlayctl("top", "-n", "1", "--interval", "0.5")) > 1.0)
        until(lambda: _sent(pair) > 1024)
    finally:
        flood.terminate()
        flood.wait()


def _sent(pair: Pair) -> float:
    """Bytes a second to the busiest peer, while what comes from the containers of web is told as well."""
    told = json.loads(pair.alpha.node.overlayctl("top", "-n", "1", "--interval", "0.5", "--json"))
    assert [each["service"] for each in told["services"] if each["from_containers"] > 1024] == ["web"]
    return float(told["peers"][0]["sent"])


def _rate(shown: str) -> float:
    """KiB a second from the containers of web, 0 when it is less than one."""
    words = next(line for line in shown.splitlines() if line.startswith("web ")).split()
    return float(words[3]) if words[4].startswith(("KiB", "MiB")) else 0.0


def test_a_bundle_tells_all_but_secrets(tmp_path: Path) -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        secret = "hunter2-hunter2"
        turn = [{"addr": "192.0.2.9:3478", "username": "u", "credential": secret}]
        member.set_up({"enabled": True, "stun_servers": ["none"], "turn_servers": turn})
        member.set_up_service("web")
        member.request("setup_service_overlay", service="vault", mode="dedicated")
        member.attach(lab.container(), "web")
        keys = member.node.run(["wg", "show", "all", "private-key"]).split()[1::2]
        assert len(keys) == 2
        file = tmp_path / "bundle.tar.gz"
        member.node.overlayctl("bundle", str(file), "--data-dir", str(member.node.data_dir))
        assert file.stat().st_mode & 0o777 == 0o600
        with tarfile.open(file) as tar:
            texts = {each.name: tar.extractfile(each).read().decode() for each in tar if each.isfile()}
        assert json.loads(texts["overlayd/daemon/status.json"])["version"] == __version__
        assert "zl-" in texts["overlayd/host/links"]
        assert "table inet overlayd" in texts["overlayd/host/nftables"]
        assert json.loads(texts["overlayd/daemon/containers.json"])["containers"]
        for text in texts.values():
            assert not any(each in text for each in [*keys, secret])
        member.node.stop()
        member.node.overlayctl("bundle", str(file), "--data-dir", str(member.node.data_dir))
        with tarfile.open(file) as tar:
            assert "overlayd/daemon/unreachable" in tar.getnames()


def test_a_node_is_ready_when_it_is_set_up() -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start()
        code, said, _ = member.node.try_overlayctl("ready")
        assert (code, said.startswith("not ready: not set up")) == (4, True)
        code, printed, _ = member.node.try_overlayctl("ready", "--json")
        assert code == 4
        answer = json.loads(printed)
        assert answer["ready"] is False
        assert f"not ready: {answer['reason']}\n" == said
        member.set_up()
        assert member.node.overlayctl("ready") == "ready\n"
        assert json.loads(member.node.overlayctl("ready", "--json")) == {"ready": True, "reason": None}
        versions = {"overlayctl": __version__, "overlayd": __version__}
        assert json.loads(member.node.overlayctl("version", "--json")) == versions


def test_events_of_who_watches_and_of_nobody_else(pair: Pair) -> None:
    alpha = pair.alpha
    with alpha.node.connect() as watcher, alpha.node.connect() as bystander:
        watcher.further.add("changed")
        watcher.request("watch")
        box = pair.lab.container()
        address = alpha.attach(box, "web")
        alpha.request("register_dns", name="seen", ip=address)
        alpha.detach(box)
        alpha.node.run(["ip", "link", "del", pair.bridges[0]])

        def heard() -> list[tuple[str, str, str]]:
            watcher.request("status")
            changed = [each for each in watcher.events if each["event"] == "changed"]
            return [(each["kind"], each["object"], each["what"]) for each in changed]

        until(lambda: ("repair", f"bridge {pair.bridges[0]}", "repaired") in heard())
        handle = f"pid:{box.pid}"
        for each in (
            ("container", handle, "set"),
            ("name", "seen", "set"),
            ("name", "seen", "removed"),
            ("container", handle, "removed"),
        ):
            assert each in heard()
        bystander.request("status")
        assert not [each for each in bystander.events if each["event"] == "changed"]


def test_findings_are_events_when_they_come_and_go(pair: Pair) -> None:
    alpha = pair.alpha
    with alpha.node.connect() as watcher:
        watcher.further.add("changed")
        watcher.request("watch")

        def heard(what: str) -> list[dict[str, Any]]:
            watcher.request("status")
            found = [each for each in watcher.events if each.get("kind") == "finding" and each["what"] == what]
            return [each["finding"] for each in found]

        alpha.node.run(["ip", "link", "add", "lan", "type", "bridge"])
        alpha.node.run(["ip", "address", "add", "10.200.77.1/24", "dev", "lan"])
        alpha.node.run(["ip", "link", "set", "lan", "up"])
        until(lambda: [each["code"] for each in heard("raised")] == ["network-overlap"], alpha.node.log_tail)
        assert heard("raised") == [each for each in alpha.findings() if each["code"] == "network-overlap"]
        assert heard("cleared") == []
        alpha.node.run(["ip", "link", "del", "lan"])
        until(lambda: heard("cleared") == heard("raised"), alpha.node.log_tail)
