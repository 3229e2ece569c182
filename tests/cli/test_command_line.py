"""What the command line itself has: help, completion, manual pages, and words for what was perhaps meant."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from canned import Canned
from lab.node import CONTROL, DAEMON

from overlayd import __version__, cli, wire
from overlayd.cli import arguments, commands, inspection
from overlayd.daemon.config import parser as daemon_parser
from overlayd.inspect import picture


def test_help_teaches_and_is_quick_to_start() -> None:
    code = (
        "import sys; from overlayd.cli import run\n"
        "try: run(['--help'])\n"
        "except SystemExit: print('slow:', {'asyncio', 'msgspec', 'uvloop'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "examples:" in out
    assert "exit status:" in out
    assert "slow: set()" in out


def test_the_version_is_printed_by_both_commands_alike(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"overlayctl {__version__}\n"


def test_every_command_on_the_line_is_done_by_something_and_nothing_else_is() -> None:
    words = {each.word for each in arguments.COMMANDS if not each.actions}
    words |= {f"{each.word} {action.word}" for each in arguments.COMMANDS for action in each.actions}
    assert words == commands.COMMANDS.keys()


def test_the_sections_on_the_line_are_those_of_a_picture() -> None:
    assert arguments.SECTIONS == picture.SECTIONS == tuple(inspection._HEADERS)


def test_only_inspect_waits_for_pyroute2() -> None:
    code = (
        "import sys; from overlayd.cli import run\n"
        "assert run(['--socket', '/nonexistent', 'status']) == 69\n"
        "print('slow:', {'pyroute2', 'nacl', 'uvloop'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "slow: set()\n"


@pytest.mark.parametrize("words", [["call"], ["inspect", "nonsense"], ["edge", "mint"], []])
def test_what_is_missing_or_unknown_on_the_line_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(words)
    assert caught.value.code == 2
    missing = {"call": "OP", "inspect": "'nonsense' is none of links, addresses"}
    expected = "NAME" if words == ["edge", "mint"] else missing.get("".join(words[:1]), "COMMAND")
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["stauts"], "status"),
        (["dns", "flsuh"], "flush"),
        (["status", "--sokcet", "x"], "--socket"),
        (["completion", "bsh"], "bash"),
        (["peers", "-o", "jsno"], "json"),
        (["Status"], "status"),
        (["call", "STATUS"], "status"),
        (["status", "--wiat"], "--wait?\n"),
    ],
)
def test_what_was_perhaps_meant(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(words)
    assert caught.value.code == 2
    assert f"did you mean {meant}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--json", "status"], "--json has its place behind the command: overlayctl status --json"),
        (["cluster", "--output=json", "nodes"], "overlayctl cluster nodes --output=json"),
    ],
)
def test_an_option_of_a_command_that_stands_before_it(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_where_a_terminal_takes_no_unicode(canned: Canned, encoding: str) -> None:
    name = "node-\u00f6-\u65e5-\U0001f409"
    canned.answer = lambda request: wire.Status(peer_count=0, service_count=0, interface=name)
    code = "from overlayd.cli.main import control; control()"
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "--socket", str(canned.path), "status", *options],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        printed = done.stdout.decode(encoding)
        if options:
            assert json.loads(printed)["interface"] == name
        else:
            assert (name if encoding == "utf-8" else r"-\u65e5-\ud83d\udc09") in printed


def test_options_of_every_command_before_it_or_after_it(canned: Canned) -> None:
    canned.answer = lambda request: wire.Status(peer_count=0, service_count=0)
    path = ["--socket", str(canned.path)]
    for words in ([*path, "status"], ["status", *path], ["status", "--timeout", "9", *path]):
        assert cli.run(words) == 0
    assert cli.run(["--socket", "/nonexistent", "status", *path]) == 0, "the later one counts"
    assert arguments.parser().parse_args(["--timeout", "9", "dns", "list"]).timeout == 9
    assert arguments.parser().parse_args(["dns", "list", "--timeout", "9"]).timeout == 9
    assert arguments.parser().parse_args(["dns"]).timeout == arguments.DEFAULT_TIMEOUT


@pytest.mark.parametrize("words", [["--help"], ["call", "--list"], ["--version"], ["man"], ["completion", "bash"]])
def test_nobody_reads_what_is_printed(words: list[str]) -> None:
    for command in (f"{' '.join(words)} | true", f"{' '.join(words)} >&-", f"{' '.join(words)} >&- 2>&-"):
        code = f"'{sys.executable}' -c 'import time; time.sleep(0.2); from overlayd.cli import control; control()'"
        done = subprocess.run(["sh", "-c", f"{code} {command}"], capture_output=True, text=True, check=False)
        assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    for each in arguments.COMMANDS:
        assert each.word in script
        for action in each.actions:
            assert action.word in script


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield each
                yield from _parsers(each)


@pytest.mark.parametrize("parser", [*_parsers(arguments.parser())], ids=lambda parser: parser.prog)
def test_help_of_every_command_has_an_example_and_json_where_an_answer_may_be_json(
    parser: argparse.ArgumentParser,
) -> None:
    assert f"{parser.prog.split()[0]} {parser.prog.split()[1]}" in (parser.epilog or ""), "an example"
    options = {name: action for action in parser._actions for name in action.option_strings}
    takes_json = any("json" in (action.choices or ()) for action in options.values())
    assert ("--json" in options) == takes_json


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "bundle.tar.gz"
    assert cli.run(["--socket", "/nonexistent", "bundle", str(below), "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"overlayctl: {below}: Not a directory\n"
    assert cli.run(["cni", "install", "--bin-dir", str(below)]) == 1
    assert capsys.readouterr().err == f"overlayctl: {below}: Not a directory\n"


@pytest.mark.parametrize(
    "words",
    [
        ["bundle", ""],
        ["inspect", "--data-dir", ""],
        ["--socket", "", "status"],
        ["cni", "uninstall", "--bin-dir="],
        ["whoami", "--identity-file", ""],
    ],
)
def test_an_unset_variable_of_a_shell_is_no_path(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(words)
    assert caught.value.code == 2
    assert "the path is empty" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[""], ["dns", ""], ["peers", "--filter", "x", "y"], ["status", "--filter", "x"]])
def test_wrong_words_are_named_once(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(words)
    assert caught.value.code == 2
    assert "did you mean --filter" not in capsys.readouterr().err, "which was said"


@pytest.mark.parametrize(
    "words", [["st\x1b[31m"], ["--socket", "/nonexistent/\x1b[31m", "status"], ["call", "\x1b[31m"]]
)
def test_what_was_said_is_not_told_to_the_terminal(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        cli.run(words)
    told = capsys.readouterr().err
    assert "\x1b" not in told and r"\x1b[31m" in told


def test_a_file_that_is_no_socket_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["--socket", str(tmp_path / "file"), "status"]) == 69
    assert f"{tmp_path}/file is not a socket" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--name", "a b"], ["--name", ""], ["--subnet", "10.0.0.0/99"], ["--subnet", "x"]])
def test_a_network_that_is_none_leaves_no_plugin(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "conf"), "--cni-socket", "/nonexistent"]
    with pytest.raises(SystemExit) as caught:
        cli.run(["cni", "install", "--timeout", "0.1", *places, *wrong])
    assert caught.value.code == 2
    assert not [*tmp_path.iterdir()], capsys.readouterr().out


@pytest.mark.parametrize("port", ["65536", "99999", "x", "-1"])
def test_a_port_that_is_none_is_named(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["web", f"--port={port}"])
    assert caught.value.code == 2
    assert port in capsys.readouterr().err


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def complete(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("overlayctl", *words))
        ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _overlayctl; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert complete("sta") == ["status"]
    assert complete("edge", "") == ["mint", "list", "revoke", "--socket", "--timeout", "--help"]
    assert complete("edge", "mint", "--al") == ["--allow"]
    assert complete("edge", "mint", "laptop", "--al") == ["--allow"]
    assert complete("--socket=/x", "status", "--w") == ["--wait"]
    assert complete("completion", "f") == ["fish"]
    for before in (("--socket", "/x"), ("--socket", "=", "/x"), ("--timeout", "9")):
        assert complete(*before, "sta") == ["status"]
        assert complete(*before, "status", "--w") == ["--wait"]
    assert complete("peers", "-o", "") == ["table", "wide", "json"]
    assert complete("dns", "query", "web", "--output", "j") == ["json"]
    assert complete("peers", "-o", "wide", "--fil") == ["--filter"]
    assert complete("dns", "--filter", "query", "fl") == ["flush"]
    assert complete("call", "attach") == ["attach_container"]
    assert complete("nonsense", "") == []


@pytest.mark.parametrize("page", ["overlayctl", "overlayd"])
def test_manual_pages_are_right_roff(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["man", page]) == 0
    roff = capsys.readouterr().out
    assert roff.startswith(f".TH {page.upper()} {1 if page == 'overlayctl' else 8} ")
    parser = arguments.parser() if page == "overlayctl" else daemon_parser()
    for action in parser._actions:
        for option in action.option_strings:
            assert option.replace("-", "\\-") in roff
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-ww", "-z"], input=roff, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    every = [[each.word] for each in arguments.COMMANDS]
    every += [[each.word, action.word] for each in arguments.COMMANDS for action in each.actions]
    assert len(every) >= 12
    for words in every:
        with pytest.raises(SystemExit) as caught:
            cli.run([*words, "--help"])
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "handle.pid=71" in out
    assert "Reading the journal and the connections takes root" in out


def test_inspect_fails_when_there_is_no_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "links", "--data-dir", str(tmp_path / "mistyped")]) == arguments.EXIT_ERR
    said = capsys.readouterr()
    assert said.out.startswith("links:"), "what the kernel has is shown all the same"
    assert "--data-dir" in said.err
    assert said.err.startswith("overlayctl: not compared with the journal: ")


@pytest.mark.parametrize("unbuffered", ["", "1"])  # then each write is one to the file
@pytest.mark.parametrize("word", ["--version", "--help"])
@pytest.mark.parametrize(("program", "name"), [(CONTROL, "overlayctl"), (DAEMON, "overlayd")])
def test_what_cannot_be_printed_is_told_in_one_line(program: list[str], name: str, word: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            [*program, word], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert (done.returncode, done.stderr) == (1, f"{name}: No space left on device\n")
