"""What Prometheus is told, who may be asked for health and readiness, and the line of each change."""

import json
import time
from contextlib import ExitStack, suppress

import psutil
import pytest
from exposition_text import parse
from lab import Lab, Refused, ping
from lab.cluster import Member
from lab.http import get
from lab.patience import until

from overlayd import __version__


@pytest.mark.parametrize("each_peer", [False, True])
def test_a_scrape_tells_what_there_is(each_peer: bool) -> None:
    with Lab() as lab:
        alpha, beta = Member(lab, 1, "alpha"), Member(lab, 2, "beta")
        place = str(alpha.node.data_dir.parent / "metrics.sock") if each_peer else "9586"
        alpha.start("--metrics", place, *(["--metrics-peers"] if each_peer else []))
        beta.start()
        assert get(alpha.node, place, "/healthz") == (200, "ok\n")
        assert get(alpha.node, place, "/readyz")[0] == 503
        for member in (alpha, beta):
            member.set_up()
        assert get(alpha.node, place, "/readyz") == (200, "ready\n")
        alpha.introduce(beta)
        beta.introduce(alpha)
        alpha.set_up_service("web")
        alpha.attach(lab.container(), "web")
        with pytest.raises(Refused):
            alpha.request("add_peer", public_key="x", endpoint="", allowed_ips="", persistent_keepalive_secs=0)
        ping(alpha.node, "10.200.2.1")
        alpha.node.run(["ip", "link", "del", alpha.request("list", what="services")["services"][0]["bridge"]])

        def samples() -> dict[tuple[str, ...], float]:
            status, text = get(alpha.node, place, "/metrics")
            assert status == 200
            return {(name, *labels.values()): number for name, labels, number in parse(text)}

        until(lambda: samples()["overlayd_peers", "answers"] == 1)
        until(lambda: samples().get(("overlayd_repairs_total", "bridge"), 0) >= 1)
        found = samples()
        assert found["overlayd_build_info", __version__, alpha.request("status")["backend"]] == 1
        assert found["overlayd_ready",] == 1
        assert found["overlayd_requests_total", "attach_container", "ok"] == 1
        assert found["overlayd_requests_total", "add_peer", "err"] == 1
        assert found["overlayd_requests_total", "status", "ok"] >= 1
        assert found["overlayd_request_duration_seconds_count", "attach_container"] == 1
        assert (found["overlayd_services", "shared"], found["overlayd_attachments", "pid"]) == (1, 1)
        assert (found["overlayd_pool_addresses", "web"], found["overlayd_pool_held", "web"]) == (61, 1)
        assert found["overlayd_peer_paths", "direct"] == 1
        assert found["overlayd_handshake_age_seconds_count",] == 1
        assert found["overlayd_journal_syncs_total",] > 0
        # Those from before the switch is on are not timed.
        assert 0 < found["overlayd_journal_sync_duration_seconds_count",] <= found["overlayd_journal_syncs_total",]
        device = alpha.request("status")["interface"]
        own = [key for key in found if key[0] == "wireguard_received_bytes_total"]
        if each_peer:
            assert [key[1:3] for key in own] == [(device, beta.public_key)]
            shaken = [number for key, number in found.items() if key[0] == "wireguard_latest_handshake_seconds"]
            assert abs(shaken[0] - time.time()) < 600
        else:
            assert own == [("wireguard_received_bytes_total", device)]
            assert found[own[0]] > 0
        assert_process(found, alpha)
        assert get(alpha.node, place, "/nothing")[0] == 404
        assert get(alpha.node, place, "/metrics", "POST")[0] == 405
        assert get(alpha.node, place, "/healthz", "HEAD") == (200, "")
        assert get(alpha.node, place, "no request")[0] == 400
        assert get(alpha.node, place, "/" + "x" * 9000)[0] == 400


def assert_process(found: dict[tuple[str, ...], float], member: Member) -> None:
    """What is told of the daemon's process is what psutil reads of it, as far as that stands still."""
    assert member.node.daemon is not None
    process = psutil.Process(member.node.daemon.pid)
    assert 0 < found["process_cpu_seconds_total",] <= sum(process.cpu_times()[:2]) + 0.001  # a sum of fractions
    memory = process.memory_info()
    assert abs(found["process_resident_memory_bytes",] / memory.rss - 1) < 0.5
    assert abs(found["process_virtual_memory_bytes",] / memory.vms - 1) < 0.5
    assert abs(found["process_start_time_seconds",] - process.create_time()) < 2
    assert abs(found["process_open_fds",] - process.num_fds()) < 10
    assert found["process_max_fds",] == process.rlimit(psutil.RLIMIT_NOFILE)[0]


def test_connections_are_counted_while_they_are_open() -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start("--metrics", "9586")

        def connected() -> float:
            text = get(member.node, "9586", "/metrics")[1]
            return next(number for name, _, number in parse(text) if name == "overlayd_connections")

        until(lambda: connected() == 1)  # the member's own; that which looked whether it is up has gone
        more = [member.node.connect() for _ in range(5)]
        until(lambda: connected() == 6)
        for each in more:
            each.close()
        until(lambda: connected() == 1)


def test_who_connects_and_asks_nothing_keeps_nobody_from_asking() -> None:
    with Lab() as lab, ExitStack() as stack:
        alpha = Member(lab, 1, "alpha")
        alpha.start("--metrics", "9586")
        for half in (b"", b"GET /healthz HTT") * 50:
            idler = stack.enter_context(alpha.node.open_socket())
            idler.connect(("127.0.0.1", 9586))
            with suppress(ConnectionError):  # when it is closed already
                idler.sendall(half)
        assert get(alpha.node, "9586", "/healthz") == (200, "ok\n")
        assert "16 connections at once: the oldest that has asked nothing is closed" in alpha.node.log.read_text()


def test_every_change_is_one_line_with_who_asked_for_it() -> None:
    with Lab() as lab:
        member = Member(lab, 1, "alpha")
        member.start("--log-format", "json")
        member.set_up()
        member.set_up_service("web")
        container = lab.container()
        member.attach(container, "web")
        with pytest.raises(Refused):
            member.attach(lab.container(), "nosuch")
        member.request("list", what="services")
        member.request(
            "attach_container", handle={"platform": "guest_managed", "id": "vm1"}, service="web", join_global=False
        )
        member.request("register_dns", name="web", ip="10.200.1.9")
        until(lambda: '"op":"register_dns"' in member.node.log.read_text())  # after its answer
        lines = [json.loads(line) for line in member.node.log.read_text().splitlines()]
        told = [each for each in lines if each["logger"] == "overlayd.audit"]
        ops = [
            "set_local_node_id",
            "setup_global_overlay",
            "setup_service_overlay",
            *["attach_container"] * 3,
            "register_dns",
        ]
        assert [each["op"] for each in told] == ops
        assert told[3]["object"] == f"pid:{container.pid}"
        assert [each["result"] for each in told[3:5]] == ["attached", "err"]
        assert "refused, service nosuch is not set up" in told[4]["message"]
        assert [each.get("detail") for each in told] == [None, None, None, "web", "nosuch", "web", "10.200.1.9"]
        assert [each["object"] for each in told[5:]] == ["guest:vm1", "web"]  # as `list` has it
        assert told[6]["message"].startswith("register_dns web 10.200.1.9: done in ")
        assert all(each["uid"] == 0 and each["pid"] > 0 and each["program"] and each["ms"] >= 0 for each in told)
