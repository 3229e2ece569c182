"""What is said of peers that do not answer: one, some, all."""

from overlayd.model.silent_peers import SilentPeer, silent_peers

ONE = SilentPeer("3q2+7wAA...", "192.0.2.2:51820", 200, 380)


def test_nobody():
    assert silent_peers([], 0) == []


def test_one_of_several_is_a_warning_and_all_are_an_error():
    (found,) = silent_peers([ONE], answering=7)
    assert (found.code, found.severity, found.object) == ("peer-silent", "warning", "peer 3q2+7wAA...")
    assert found.problem == "has not answered at 192.0.2.2:51820 for 3 min; last handshake 6 min ago"
    (found,) = silent_peers([ONE._replace(endpoint="", last_handshake=None, waited=20)], answering=0)
    assert (found.severity, found.problem) == ("error", "has not answered for 20 s; last handshake never")


def test_many_are_told_in_one():
    silent = [ONE._replace(name=f"p{number}", waited=60 * number) for number in range(300)]
    (found,) = silent_peers(silent, answering=1)
    assert found.object == "300 peers (p0, p1, p2, p3, ...)"
    assert found.problem == "do not answer for up to 299 min"
    assert len(silent_peers(silent[:4], answering=1)) == 4
