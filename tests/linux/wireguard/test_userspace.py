"""The userspace backend: what every backend must do, and the faults that a process and a socket bring with them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EADDRINUSE, EEXIST, ENAMETOOLONG, ENOENT, ENOSPC, EPROTO, ETIMEDOUT
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from lab.patience import LIMIT
from lab.processes import stop

from overlayd import keys
from overlayd.errors import MechanismError
from overlayd.linux.wireguard import process
from overlayd.linux.wireguard.choice import choose
from overlayd.linux.wireguard.userspace import Userspace
from overlayd.model.objects import Device, Step

pytest.register_assert_rewrite("wireguard_cases")
from wireguard_cases import DeviceCases, Namespaces, a_peer, until  # noqa: E402

SOCKETS = Path("/var/run/wireguard")


def pid_of(name):
    """The process that was started for a device, found by its command line."""
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):  # not a process, or one that ended
            if (entry / "cmdline").read_bytes().split(b"\0")[-2:-1] == [name.encode()]:
                return int(entry.name)
    return None


def status(pid, field):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split("\t", 1)[1] for line in lines if line.startswith(f"{field}:"))


class Answerer:
    """A listener in the place of wireguard-go that says one thing to everybody; with a pause before each byte, if any,
    and at the end.
    """

    def __init__(self, name, answer, pause=0):
        SOCKETS.mkdir(mode=0o700, exist_ok=True)
        self.path = SOCKETS / f"{name}.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.answer = answer
        self.pause = pause
        self.received = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, suppress(BrokenPipeError):
                self.received.append(connection.recv(1 << 16))
                if not self.pause:
                    connection.sendall(self.answer)
                    continue
                for byte in self.answer:
                    time.sleep(self.pause)
                    connection.send(bytes([byte]))
                time.sleep(self.pause)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        self.path.unlink()


@contextmanager
def dying_wireguard(directory, name):
    """A process that looks as wireguard-go does for a moment at its end: the TUN is closed, the socket still open."""
    program = directory / "wireguard-go"
    program.symlink_to(sys.executable)
    code = (
        "import socket, sys, time; listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); "
        "listener.listen(); print('listens', flush=True); time.sleep(60)"
    )
    SOCKETS.mkdir(mode=0o700, exist_ok=True)
    with subprocess.Popen([program, "-c", code, SOCKETS / f"{name}.sock"], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_userspace_can_be_chosen():
    assert isinstance(choose("userspace"), Userspace)


class TestUserspace(DeviceCases):
    @pytest.fixture
    def backend(self):
        return Userspace()


class TestFaults(Namespaces):
    @pytest.fixture
    def backend(self):
        return Userspace()

    def test_the_process_is_detached_and_inherits_nothing(self, alpha):
        ours = os.open("/dev/zero", os.O_RDONLY)
        os.set_inheritable(ours, True)
        try:
            device = alpha.create()
        finally:
            os.close(ours)
        pid = pid_of(device.name)
        assert int(status(pid, "PPid")) != os.getpid()
        assert os.getsid(pid) not in (os.getsid(0), 0)
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        files: dict[str, str] = {}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # one that it has just closed
                files[entry.name] = str(entry.readlink())
        assert files["0"] == "/dev/null"
        assert files["1"] == files["2"] == "/memfd:wireguard-go (deleted)"
        assert "/dev/zero" not in files.values()

    def test_the_process_outlives_the_one_that_started_it(self, alpha):
        device = alpha.device()
        alpha.names.add(device.name)
        program = (
            "import sys\n"
            "from overlayd.linux.wireguard.userspace import Userspace\n"
            "from overlayd.model.objects import Device\n"
            "Userspace().create(Device('', sys.argv[1], bytes.fromhex(sys.argv[2]), 51820, 1420, frozenset()))"
        )
        alpha.namespace(sys.executable, "-c", program, device.name, device.private_key.hex())
        assert alpha.alive(device.name)
        assert alpha.read(device.name)[:2] == (device.private_key, 51820)

    def test_its_log_takes_no_more_memory_than_the_first_words(self, alpha):
        device = alpha.create()
        output = Path(f"/proc/{pid_of(device.name)}/fd/2")
        # What wireguard-go would do from here on.  A write beyond the end is refused, and it ignores that.
        with output.open("r+b", buffering=0) as log, pytest.raises(PermissionError):
            for _ in range(1000):
                log.write(b"ERROR: something happened\n")
        assert output.stat().st_size == 4096
        assert alpha.alive(device.name)

    def test_a_flood_of_news_about_links_does_not_end_it(self, alpha):
        device = alpha.create()
        alpha.namespace("ip", "link", "set", device.name, "up")
        pid = pid_of(device.name)
        stop(pid)  # as a busy machine does, when many containers come at once
        try:
            alpha.namespace(
                "sh", "-c", "for n in $(seq 400); do echo link set lo mtu $((1500 + n)); done | ip -batch -"
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.2)
        # It looks at what it was told when it reads from the tunnel.
        alpha.namespace("ping", "-c", "1", "-W", "1", "-I", device.name, "192.0.2.1", check=False)
        time.sleep(0.2)
        assert alpha.alive(device.name)

    def test_a_killed_process_is_noticed_and_brought_back(self, alpha):
        device = alpha.create()
        pid = pid_of(device.name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alpha.alive(device.name))
        until(lambda: not Path(f"/proc/{pid}").exists())  # no zombie stays behind
        assert (SOCKETS / f"{device.name}.sock").is_socket()  # the stale socket that a killed process leaves
        alpha.namespace.call(alpha.backend.create, device)
        assert alpha.read(device.name)[:2] == (device.private_key, device.listen_port)
        alpha.set_peers(device.name, [Step(None, a_peer(1))])

    def test_a_killed_process_of_a_renamed_device_is_brought_back_under_the_new_name(self, alpha):
        device = alpha.create()
        renamed = alpha.device(name=f"{device.name}x", private_key=device.private_key)
        alpha.names.add(renamed.name)
        alpha.namespace("ip", "link", "set", device.name, "name", renamed.name)
        alpha.configure(device, renamed)
        pid = pid_of(device.name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alpha.alive(renamed.name))
        until(lambda: not Path(f"/proc/{pid}").exists())  # until then it may hold the link
        alpha.namespace.call(alpha.backend.create, renamed)
        assert alpha.read(renamed.name)[:2] == (device.private_key, device.listen_port)
        assert [path.name for path in SOCKETS.glob(f"{device.name}*")] == [f"{renamed.name}.sock"]

    def test_a_stale_socket_is_replaced(self, alpha):
        device = alpha.device()
        SOCKETS.mkdir(mode=0o700, exist_ok=True)
        path = SOCKETS / f"{device.name}.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        assert not alpha.alive(device.name)
        alpha.create(name=device.name)
        assert alpha.alive(device.name)

    def test_a_link_deleted_behind_our_back_is_made_again(self, alpha):
        device = alpha.create()
        pid = pid_of(device.name)
        alpha.namespace("ip", "link", "delete", device.name)
        assert not alpha.alive(device.name)
        alpha.namespace.call(alpha.backend.create, device)
        assert alpha.alive(device.name)
        assert pid_of(device.name) != pid

    def test_a_process_that_closed_its_link_and_not_yet_its_socket_is_waited_for(self, alpha, tmp_path):
        device = alpha.device()
        alpha.names.add(device.name)
        with dying_wireguard(tmp_path, device.name) as dying:
            assert not alpha.alive(device.name)
            alpha.namespace.call(alpha.backend.create, device)
            assert dying.wait(timeout=LIMIT) == -signal.SIGTERM
        assert alpha.read(device.name)[:2] == (device.private_key, device.listen_port)

    def test_a_stopped_process_whose_link_was_deleted_is_replaced(self, alpha, monkeypatch):
        monkeypatch.setattr(process, "_END_DEADLINE", 0.2)
        device = alpha.create()
        pid = pid_of(device.name)
        stop(pid)
        alpha.namespace("ip", "link", "delete", device.name)
        alpha.namespace.call(alpha.backend.create, device)
        assert alpha.read(device.name)[:2] == (device.private_key, device.listen_port)
        assert pid_of(device.name) != pid

    def test_a_process_that_dies_while_it_is_taken_up_is_made_again(self, alpha):
        device = alpha.create()
        pid = pid_of(device.name)
        stop(pid)  # so that it dies after it was found alive, before it answers
        killing = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        killing.start()
        alpha.namespace.call(alpha.backend.create, device)
        killing.join()
        assert alpha.read(device.name)[:2] == (device.private_key, device.listen_port)

    def test_a_process_that_hangs_is_still_deleted(self, alpha, monkeypatch):
        device = alpha.create()
        monkeypatch.setattr(process, "_END_DEADLINE", 0.2)
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 0.2)
        stop(pid_of(device.name))
        with pytest.raises(MechanismError, match="does not answer") as caught:
            alpha.activity(device.name)
        assert caught.value.errno == ETIMEDOUT
        alpha.delete(device.name)
        assert alpha.index(device.name) is None
        assert not (SOCKETS / f"{device.name}.sock").exists()

    def test_nobody_waits_for_a_process_that_did_not_answer_until_it_answers_again(self, alpha, monkeypatch):
        device, other = alpha.create(listen_port=1001), alpha.create(listen_port=1002)
        pid = pid_of(device.name)
        stop(pid)
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 0.5)
        with pytest.raises(MechanismError, match="does not answer"):
            alpha.set_peers(device.name, [Step(None, a_peer(1))])
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 60)  # whoever waits now waits for too long
        for ask in (alpha.read, lambda name: alpha.set_peers(name, [Step(None, a_peer(1))])):
            with pytest.raises(MechanismError, match="does not answer") as caught:
                ask(device.name)
            assert caught.value.errno == ETIMEDOUT
        assert alpha.read(other.name).private_key == other.private_key
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 0.5)
        with pytest.raises(MechanismError, match="does not answer"):
            alpha.activity(device.name)
        os.kill(pid, signal.SIGCONT)
        monkeypatch.setattr(process, "ANSWER_DEADLINE", LIMIT)
        alpha.activity(device.name)
        assert alpha.read(device.name).private_key == device.private_key

    def test_only_a_process_that_is_silent_is_ended_and_only_that(self, alpha, monkeypatch):
        monkeypatch.setattr(process, "ANSWER_DEADLINE", LIMIT)
        monkeypatch.setattr(process, "_END_DEADLINE", 0.2)
        device, other = alpha.create(listen_port=1001), alpha.create(listen_port=1002)
        pid = pid_of(device.name)
        assert alpha.backend.end_if_silent(device.name) == 0
        assert alpha.alive(device.name)
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 0.5)
        stop(pid)
        assert alpha.backend.end_if_silent(device.name) == pid
        until(lambda: alpha.index(device.name) is None)
        assert alpha.alive(other.name)
        alpha.namespace.call(alpha.backend.create, device)
        assert alpha.read(device.name)[:2] == (device.private_key, device.listen_port)

    def test_a_silent_listener_that_is_no_wireguard_is_never_ended(self, alpha, monkeypatch):
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 0.2)
        name = alpha.device().name
        with Answerer(name, b"", pause=1):
            assert alpha.backend.end_if_silent(name) == 0  # it would be this very process

    def test_an_answer_in_drops_is_no_answer_in_time(self, alpha, monkeypatch):
        monkeypatch.setattr(process, "ANSWER_DEADLINE", 0.5)
        name = alpha.device().name
        with Answerer(name, b"rx_bytes=" + b"1" * 40, pause=0.1), pytest.raises(MechanismError) as caught:
            alpha.activity(name)
        assert caught.value.errno == ETIMEDOUT

    def test_the_old_name_of_a_renamed_device_is_nobody_else(self, alpha):
        device = alpha.create()
        renamed = alpha.device(name=f"{device.name}x", private_key=device.private_key)
        alpha.names.add(renamed.name)
        alpha.namespace("ip", "link", "set", device.name, "name", renamed.name)
        alpha.configure(device, renamed)
        alpha.delete(device.name)
        assert alpha.alive(renamed.name)
        with pytest.raises(MechanismError) as caught:
            alpha.namespace.call(alpha.backend.create, device)
        assert caught.value.errno == EEXIST
        assert alpha.index(device.name) is None
        assert alpha.alive(renamed.name)

    def test_a_rename_loses_no_packet(self, alpha, beta):
        here, there = alpha.create(), beta.create()
        to_there = a_peer(
            public_key=keys.public(there.private_key),
            endpoint=(ip_address("192.0.2.2"), there.listen_port),
            allowed_ips=frozenset({ip_network("10.7.0.2")}),
        )
        to_here = a_peer(public_key=keys.public(here.private_key), allowed_ips=frozenset({ip_network("10.7.0.1")}))
        alpha.up(here, "10.7.0.1/24")
        beta.up(there, "10.7.0.2/24")
        alpha.set_peers(here.name, [Step(None, to_there)])
        beta.set_peers(there.name, [Step(None, to_here)])
        alpha.namespace("ping", "-c", 1, "-W", LIMIT, "10.7.0.2")
        renamed = replace(here, name=f"{here.name}x")
        alpha.names.add(renamed.name)
        replies = []
        pings = ("ping", "-q", "-c", 30, "-i", "0.02", "-W", 30, "10.7.0.2")
        thread = threading.Thread(target=lambda: replies.append(alpha.namespace(*pings, check=False)))
        thread.start()
        alpha.namespace("ip", "link", "set", here.name, "name", renamed.name)
        alpha.configure(here, renamed)
        thread.join()
        assert "30 received" in replies[0]
        assert alpha.activity(renamed.name)[to_there.public_key].rx_bytes > 30 * 84

    def test_a_rename_that_fails_half_way_leaves_the_old_name(self, alpha):
        first, second = alpha.create(listen_port=1001), alpha.create(listen_port=1002)
        alpha.up(first)
        steps = [replace(second, name=f"{second.name}{suffix}") for suffix in ("", "x", "y")]
        alpha.names.update(device.name for device in steps)
        for have, want in pairwise(steps):
            with pytest.raises(MechanismError) as caught:
                alpha.configure(have, replace(want, listen_port=1001))
            assert caught.value.errno == EADDRINUSE
            assert alpha.read(have.name).private_key == second.private_key
            assert not (SOCKETS / f"{want.name}.sock").exists()
            alpha.namespace("ip", "link", "set", have.name, "name", want.name)
            alpha.configure(have, want)

    def test_a_socket_of_another_device_is_not_taken_over_by_a_rename(self, alpha):
        one, other = alpha.create(listen_port=1001), alpha.create(listen_port=1002)
        with pytest.raises(MechanismError) as caught:
            alpha.configure(one, alpha.device(name=other.name))
        assert caught.value.errno == EEXIST
        assert alpha.read(other.name).private_key == other.private_key

    def test_the_directory_of_the_sockets_is_for_root_alone(self, alpha):
        alpha.create()
        assert SOCKETS.stat().st_mode & 0o777 == 0o700

    def test_a_name_that_is_too_long_is_refused_before_anything_is_done(self, alpha):
        with pytest.raises(MechanismError) as caught:
            alpha.create(name="o" * 16)
        assert caught.value.errno == ENAMETOOLONG
        assert pid_of("o" * 16) is None

    def test_a_link_of_that_name_and_another_kind_is_an_error_and_stays(self, alpha):
        device = alpha.device()
        alpha.namespace("ip", "link", "add", device.name, "type", "bridge")
        index = alpha.index(device.name)
        with pytest.raises(MechanismError, match=device.name) as caught:
            alpha.create(name=device.name)
        assert "TUN" in caught.value.detail
        assert alpha.index(device.name) == index
        assert pid_of(device.name) is None

    def test_a_port_that_is_taken_fails_the_creation_and_leaves_nothing(self, alpha):
        with (
            alpha.namespace.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as other,
            pytest.raises(MechanismError) as caught,
        ):
            other.bind(("", 40444))
            device = alpha.device(listen_port=40444)
            alpha.namespace.call(alpha.backend.create, device)
        assert caught.value.errno == EADDRINUSE
        assert "40444" in str(caught.value)
        assert alpha.index(device.name) is None
        assert pid_of(device.name) is None

    @pytest.mark.parametrize(
        "answer, errno",
        [(b"errno=-28\n\n", ENOSPC), (b"errno=28\n\n", ENOSPC), (b"errno=0", EPROTO), (b"", EPROTO), (b"\n\n", EPROTO)],
    )
    def test_what_the_process_refuses_is_an_error_with_its_number(self, alpha, answer, errno):
        name = alpha.device().name
        with Answerer(name, answer):
            for ask in (
                lambda: alpha.read(name),
                lambda: alpha.activity(name),
                lambda: alpha.set_peers(name, [Step(None, a_peer(1))]),
            ):
                with pytest.raises(MechanismError, match=name) as caught:
                    ask()
                assert caught.value.errno == errno

    def test_one_allowed_ip_is_dropped_by_one_line_where_the_process_can(self, alpha):
        name = alpha.device().name
        peer = a_peer(1, allowed_ips=frozenset({ip_network("10.0.0.0/24"), ip_network("10.0.1.0/24")}))
        fewer = replace(peer, allowed_ips=frozenset({ip_network("10.0.0.0/24")}))
        with Answerer(name, b"errno=0\n\n") as answerer:
            alpha.set_peers(name, [Step(peer, fewer)])
            alpha.set_peers(name, [Step(peer, fewer)])
        probe, *changes = answerer.received  # asked once
        assert peer.public_key.hex().encode() not in probe
        assert (
            changes
            == [f"set=1\npublic_key={peer.public_key.hex()}\nupdate_only=true\nallowed_ip=-10.0.1.0/24\n\n".encode()]
            * 2
        )

    def test_a_listener_that_is_no_wireguard_is_never_killed(self, alpha):
        name = alpha.device().name
        with Answerer(name, b"errno=0\n\n") as answerer:
            alpha.delete(name)  # would end this very process
            answerer.path.touch()

    def test_nobody_on_the_socket_is_told_as_that(self, alpha):
        with pytest.raises(MechanismError, match=r"no wireguard-go on .*/otnone") as caught:
            alpha.read("otnone")
        assert caught.value.errno == ENOENT

    def test_a_device_of_the_userspace_backend_needs_no_address_or_mtu(self, alpha):
        device = Device("web", alpha.device().name, keys.generate(), 0, 1280, frozenset())
        alpha.names.add(device.name)
        alpha.namespace.call(alpha.backend.create, device)
        assert alpha.read(device.name).private_key == device.private_key
