"""The daemon may stop, crash and come back; packets do not notice."""

import signal

import pytest
from lab import Lab, Ping, ping
from lab.cluster import Member, Pair


def kernel_view(member: Member) -> dict[str, object]:
    """All that must survive a restart: the kernel's objects and the process behind the device."""
    return {**member.node.footprint(), "processes": member.node.wireguard_pids()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_under_a_running_ping_loses_nothing(pair: Pair, number: signal.Signals) -> None:
    alpha = pair.alpha
    ping(pair.web, pair.db_address)  # the handshake, and the neighbours' addresses, before the comparison
    status, view = alpha.request("status"), kernel_view(alpha)
    through_the_tunnel = Ping(pair.web, pair.db_address, interval=0.01)
    beside_it = Ping(alpha.node, str(pair.beta.node.address), interval=0.01)
    try:
        through_the_tunnel.wait_for(50)
        code = alpha.node.stop() if number == signal.SIGTERM else alpha.node.kill()
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        through_the_tunnel.wait_for(50)
        alpha.start()
        through_the_tunnel.wait_for(50)
    finally:
        lost, lost_by_the_link = through_the_tunnel.stop(), beside_it.stop()
    assert len(lost) <= len(lost_by_the_link), f"echoes {lost} lost in the tunnel, {lost_by_the_link} beside it"

    after = alpha.request("status")
    assert after.pop("started_at_unix") >= status.pop("started_at_unix")
    for peer in (*status["peers"], *after["peers"]):
        peer.pop("last_handshake_unix_secs")
    assert after == status
    assert kernel_view(alpha) == view
    assert alpha.attach(pair.web, "web") == pair.web_address
    assert alpha.set_up_service("web") == pair.bridges[0]


def test_what_is_attached_after_a_restart_does_not_collide_with_what_was_before(pair: Pair) -> None:
    pair.alpha.node.kill()
    pair.alpha.start()
    newcomer = pair.lab.container()
    address = pair.alpha.attach(newcomer, "web")
    assert address != pair.web_address
    ping(newcomer, pair.web_address)
    ping(newcomer, pair.db_address)
    pair.alpha.detach(newcomer)


def test_the_data_plane_of_a_stopped_daemon_goes_by_teardown(lab: Lab) -> None:
    member = Member(lab, 1, "gamma")
    bare = member.node.footprint()
    member.start()
    member.set_up()
    member.set_up_service("web")
    container = lab.container()
    member.attach(container, "web")
    member.node.stop()
    assert member.node.footprint() != bare
    assert len(member.node.wireguard_pids()) == 1
    code, said = member.node.try_daemon(member.node.daemon_argv("--teardown"))
    assert code == 0, said
    assert member.node.footprint() == bare
    assert member.node.wireguard_pids() == set()
    assert "eth0" not in container.run(["ip", "-br", "link"])
