"""The two command lines: their help, and that the README tells the same."""

import re
import subprocess
import sys
from pathlib import Path

from overlayd import __version__
from overlayd.cli.arguments import COMMANDS

README = Path(__file__).resolve().parents[2] / "README.md"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ENTRY = {"overlayd": "daemon", "overlayctl": "control"}  # pyproject.toml, [project.scripts]


def say(command: str, *arguments: str) -> str:
    """What a command prints on stdout; it must exit 0 and keep stderr clean."""
    entry = ENTRY[command]
    done = subprocess.run(
        [sys.executable, "-c", f"from overlayd.cli import {entry}; {entry}()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def readme_section(command: str) -> str:
    """The part of the README under the heading that names the command."""
    match = re.search(rf"^### `{command}`\n(.*?)(?=^##)", README.read_text(), re.MULTILINE | re.DOTALL)
    assert match, f"README.md has no section `{command}`"
    return match[1]


def documented(command: str) -> set[str]:
    """The options that the first column of the section's table names."""
    rows = re.findall(r"^\| `(--[^|]*)\|", readme_section(command), re.MULTILINE)
    return {option for row in rows for option in OPTION.findall(row)}


def helped(command: str) -> set[str]:
    """The options that the help lists, subcommands included."""
    text = say(command, "--help")
    if command == "overlayctl":
        words = (each.word for each in COMMANDS if not each.actions)
        text += "".join(say(command, word, "--help") for word in words)
    listed = re.findall(r"^ {2,}(-[^ ].*)$", text, re.MULTILINE)
    return {option for line in listed for option in OPTION.findall(line.split("  ")[0])} - {"--help"}


def test_help_and_readme_name_the_same_options() -> None:
    assert documented("overlayctl") == helped("overlayctl")
    assert documented("overlayd") <= helped("overlayd")  # docs/settings.md has all of them


def test_help_of_the_daemon_tells_what_an_operator_must_know() -> None:
    text = say("overlayd", "--help")
    for word in ("overlayd.toml", "OVERLAYD_", "SIGTERM", "69", "77", "78"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120


def test_version_is_the_packages() -> None:
    assert say("overlayd", "--version") == f"overlayd {__version__}\n"
