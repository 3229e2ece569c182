"""The shim before a socket of the test's own: what it sends, what it prints, and what it does when nobody answers."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.shim import CONFIG, ID, SHIM, Listener, call, finish, start, variables
from overlayd.proto.cni import queue_of

ANSWER = b'{"exit":0,"stdout":"{}"}'
NETNS = "/proc/self/ns/net"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    with Listener(path) as listening:
        yield listening


def queue(path: Path) -> Path:
    directory = path.with_name("cni-del")
    directory.mkdir(mode=0o700)
    return directory


def test_it_runs_on_any_host() -> None:
    headers = subprocess.run(["readelf", "--program-headers", SHIM], check=True, capture_output=True, text=True).stdout
    assert "LOAD" in headers
    assert "INTERP" not in headers  # so no library is looked for
    assert SHIM.stat().st_size < 1_000_000


def test_it_tells_its_versions_alone(path: Path) -> None:
    ended = call("VERSION", path, b"")
    assert ended.exit == 0
    assert ended.told == {"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


def test_what_it_sends(path: Path, listener: Listener) -> None:
    config = b'{"name":"\xc3\xa9\\n \xf0\x9f\x90\xb3","x":"\x01\x7f"}'
    process = start(
        variables("ADD", path, netns=NETNS, args='IgnoreUnknown=1;X="\\') | {"HOME": "/root", "CNI_OTHER": "x"},
        config,
    )
    served = listener.accept()
    (descriptor,) = served.descriptors
    assert os.fstat(descriptor).st_ino == Path(NETNS).stat().st_ino
    assert json.loads(served.body) == {
        "cni": {
            "command": "ADD",
            "container_id": ID,
            "netns": NETNS,
            "ifname": "eth0",
            "args": 'IgnoreUnknown=1;X="\\',
            "path": "/opt/cni/bin",
        },
        "config": config.decode(),
    }
    served.answer(ANSWER)
    assert finish(process) == (0, "{}")


@pytest.mark.parametrize("text", ["", '{"a":"\\u000a\\"é🐳/"}', "a\n\t\x01\x7f\\b", "x" * 100_000])
@pytest.mark.parametrize("code", [0, 1, 7])
def test_what_it_prints(path: Path, listener: Listener, text: str, code: int) -> None:
    process = start(variables("GC", path))
    served = listener.accept()
    served.answer(f'{{"exit":{code},"stdout":{json.dumps(text, ensure_ascii=False)}}}'.encode())
    assert finish(process) == (code, text)


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b'{"exit":x,"stdout":""}', b'{"exit":0,"stdout":"a"b"}', b'{"exit":0,"stdout":"\\u12"}']
)
def test_an_answer_that_no_daemon_of_its_version_gives(path: Path, listener: Listener, answer: bytes) -> None:
    process = start(variables("ADD", path))
    listener.accept().answer(answer)
    assert finish(process).error == (11, f"the answer of overlayd ({path}) is not understood")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b" " * (8 << 20) + b" ", "the network's configuration has more than 8 MiB"),
        (b"\xff", "the network's configuration is not UTF-8, or has more than 8 MiB"),
        (b"\xed\xa0\x80", "the network's configuration is not UTF-8, or has more than 8 MiB"),  # a surrogate
        (b"\xc0\xaf", "the network's configuration is not UTF-8, or has more than 8 MiB"),  # longer than it need be
        (b"\xf4\x90\x80\x80", "the network's configuration is not UTF-8, or has more than 8 MiB"),  # beyond U+10FFFF
        (b"\xc3", "the network's configuration is not UTF-8, or has more than 8 MiB"),  # cut
    ],
)
def test_a_configuration_that_is_no_text(path: Path, config: bytes, message: str) -> None:
    assert call("ADD", path, config).error == (6, message)


def test_eight_mebibytes_are_sent(path: Path, listener: Listener) -> None:
    size = (8 << 20) - 200
    process = start(variables("ADD", path), b" " * size)
    served = listener.accept()
    assert len(json.loads(served.body)["config"]) == size
    served.answer(ANSWER)
    assert finish(process) == (0, "{}")


def test_an_environment_that_is_no_text(path: Path) -> None:
    environment = {os.fsencode(k): os.fsencode(v) for k, v in variables("ADD", path).items()} | {b"CNI_ARGS": b"\xff"}
    assert finish(start(environment)).error == (4, "CNI_ARGS is not UTF-8")


def test_a_command_that_is_none(path: Path) -> None:
    message = "CNI_COMMAND: 'MIX' is none of ADD, DEL, CHECK, STATUS, GC, VERSION"
    assert call("MIX", path).error == (4, message)
    assert call("\udcff\x01", path).error == (4, message.replace("MIX", "??"))


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_a_namespace_that_is_gone(path: Path, command: str) -> None:
    assert call(command, path, netns="/run/netns/gone").error == (
        3,
        "CNI_NETNS: /run/netns/gone: No such file or directory",
    )
    assert call(command, path, netns=f"{SHIM}/x").error == (4, f"CNI_NETNS: {SHIM}/x: Not a directory")


def test_a_delete_needs_no_namespace(path: Path, listener: Listener) -> None:
    process = start(variables("DEL", path, netns="/run/netns/gone"))
    served = listener.accept()
    assert served.descriptors == []
    assert json.loads(served.body)["cni"]["netns"] == "/run/netns/gone"
    served.answer(ANSWER)
    assert finish(process) == (0, "{}")


def test_what_is_told_while_no_daemon_runs(path: Path) -> None:
    began = time.monotonic()
    waiting = {command: start(variables(command, path, netns=NETNS)) for command in ("ADD", "CHECK", "GC")}
    message = f"overlayd is not running ({path}): No such file or directory"
    assert call("STATUS", path).error == (50, message)
    for process in waiting.values():
        assert finish(process).error == (11, message)
        assert time.monotonic() - began >= 10


def test_a_restart_is_invisible(path: Path) -> None:
    with Listener(path) as first:
        process = start(variables("ADD", path, netns=NETNS))
        served = first.accept()  # and dies with the request half done
        served.connection.close()
        os.close(served.descriptors[0])
        first.accept().connection.close()
    path.unlink()
    with Listener(path) as second:
        again = second.accept()
        assert len(again.descriptors) == 1
        again.answer(ANSWER)
    assert finish(process) == (0, "{}")


def test_a_delete_is_left_for_the_next_daemon(path: Path) -> None:
    directory = queue(path)
    began = time.monotonic()
    assert call("DEL", path, b'{"name":"overlay"}') == (0, "")
    assert time.monotonic() - began >= 2
    (left,) = directory.iterdir()
    assert left.name == f"{ID}.eth0"
    assert left.stat().st_mode & 0o777 == 0o600
    assert json.loads(left.read_bytes()) == {
        "cni": {
            "command": "DEL",
            "container_id": ID,
            "netns": "",
            "ifname": "eth0",
            "args": "",
            "path": "/opt/cni/bin",
        },
        "config": '{"name":"overlay"}',
    }


def test_a_delete_is_left_for_the_daemon_of_that_socket(tmp_path: Path) -> None:
    for socket in ("/a.cni", "/b.sock", "/.sock"):
        directory = Path(queue_of(f"{tmp_path}{socket}"))
        directory.mkdir()
        assert call("DEL", Path(f"{tmp_path}{socket}")).exit == 0
        assert len(list(directory.iterdir())) == 1


def test_a_delete_that_cannot_be_left(path: Path) -> None:
    directory = path.with_name("cni-del")
    nowhere = start(variables("DEL", path))
    assert finish(nowhere).error == (
        11,
        f"overlayd is not running, and there is no {directory} to leave the DEL in: No such file or directory",
    )
    directory.mkdir()
    escaping = start(variables("DEL", path, containerid="../../etc/passwd"))
    too_long = start(variables("DEL", path, containerid="a" * 201))
    odd = start(variables("DEL", path, ifname="e/0"))
    assert finish(escaping).error[0] == 4
    assert finish(too_long).error[0] == 4
    assert finish(odd).error == (4, "CNI_IFNAME: 'e/0' is not the name of an interface")
    assert list(directory.iterdir()) == []
    for number in range(10_000):
        (directory / f"{number}.eth0").touch()
    assert call("DEL", path).error == (
        11,
        f"overlayd is not running, and 10000 DELs wait for it in {directory} already",
    )


def test_a_daemon_that_comes_to_no_answer(path: Path, listener: Listener, tmp_path: Path) -> None:
    """With a shim that waits a hundredth of the time."""
    program = tmp_path / "impatient"
    times = ["-DRETRY=5", "-DPATIENCE=100", "-DPATIENCE_DEL=20", "-DLIMIT=600"]
    subprocess.run(["gcc", "-std=gnu11", *times, "-o", program, SHIM.with_suffix(".c")], check=True)
    waiting = {
        command: subprocess.Popen(
            [program], env=variables(command, path, netns=NETNS), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        for command in ("ADD", "DEL", "CHECK", "STATUS", "GC")
    }
    for process in waiting.values():
        assert finish(process).error == (11, f"overlayd ({path}) has not answered in 60 s")


def test_standard_input_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        process = subprocess.Popen([SHIM], env=variables("ADD", path), stdin=directory, stdout=subprocess.PIPE)
        assert finish(process).error == (5, "cannot read standard input: Is a directory")
    finally:
        os.close(directory)


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_what_is_no_file_of_a_namespace_is_not_opened(path: Path, command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        assert call(command, path, netns=str(other)).error == (4, f"CNI_NETNS: {other} is no network namespace")


def test_damaged_input_under_the_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "fuzz_shim"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = Path(__file__).with_name("fuzz_shim.c")
    compile = ["gcc", "-std=gnu11", "-g", "-O1", *sanitize, f"-I{SHIM.parent}", "-o", program, source]
    subprocess.run(compile, check=True)
    (tmp_path / "place").mkdir()
    printed = subprocess.run(
        [program, tmp_path / "place", "10000", "17"], check=True, capture_output=True, text=True, timeout=300
    ).stdout
    seen = dict(map(int, line.split()) for line in printed.splitlines())
    assert {-1, 0, 3, 4, 6, 11, 50} <= seen.keys()
    assert sum(seen.values()) == 10_000
    assert all(b'{"cni":' in left.read_bytes() for left in (tmp_path / "place" / "cni-del").iterdir())
    assert CONFIG["type"] == SHIM.name
