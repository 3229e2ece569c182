"""What README and docs/ name is there: commands, options, files, headings, and the numbers of the picture."""

import re
import shlex
from ipaddress import ip_network
from pathlib import Path

import pytest
from pages import ROOT, blocks

from overlayd.cli import arguments
from overlayd.cli.call import parse_request
from overlayd.daemon.config import parser
from overlayd.model.subnets import choose, first_usable

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|[;&|(] *)((?:overlayctl|overlayd) (?=[a-z-])[^;|)&>]*)")
# Who pastes the blocks of a page, in their order.
RUN_BY = {
    "README": (
        *("Makefile", "e2e/test_manual_blocks.py", "e2e/test_manual_blocks.py"),
        *["e2e/test_quick_start.py"] * 8,
        "Makefile",
    ),
    "cluster": (*("e2e/test_manual_blocks.py",) * 3, "e2e/test_cluster_access.py"),
    "cni": ("e2e/test_cni_runtimes.py",) * 3,
    "fleet": ("e2e/test_fleet.py",) * 6,
    "install": (
        *("e2e/test_package.py", "e2e/test_manual_blocks.py", "image/test_image.py"),
        *["e2e/test_manual_blocks.py"] * 2,
    ),
    "migration": ("e2e/test_fleet.py",),
    "operations": ("e2e/test_manual_blocks.py",) * 2,
}


def commands(page: Path) -> list[str]:
    """What a reader would type: of code in lines and of blocks, without comments."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.split(" #")[0] for block in blocks(page.stem) for line in block.replace("\\\n", " ").splitlines()]
    inline = [
        " ".join(code.split()) for code in re.findall("`([^`]+)`", re.sub("^```.*?^```$", "", text, flags=re.M | re.S))
    ]
    return [found.strip() for code in (*lines, *inline) for found in COMMAND.findall(code)]


def _given(word: str) -> str:
    """A value in place of what the page leaves open."""
    word = re.sub(r"\$\w+", "7", word)
    return {"BACKEND": "auto", "FORMAT": "text", "LEVEL": "info", "SECTION": "links", "SHELL": "bash"}.get(word, word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(page):
        if "[" in command or "..." in command or ", " in command:  # a form rather than a command
            continue
        program, *words = [_given(word) for word in shlex.split(command)]
        try:
            if program == "overlayd":
                parser().parse_args([*words, *(["1"] if words[-1] in _taking() else [])])
            elif words[0] == "call" and words[1:2] != ["--list"] and len(words) > 2:
                _of_a_request(words[1], words[2:])
            else:
                _parse(words)
        except SystemExit as end:
            said = capsys.readouterr().err  # a page may name a command without all that it takes
            assert end.code == 0 or "the following arguments are required" in said, f"{command}: {said}"


def _taking() -> set[str]:
    return {name for action in parser()._actions if action.nargs != 0 for name in action.option_strings}


def _of_a_request(op: str, pairs: list[str]) -> None:
    """Its keys are the request's."""
    try:
        parse_request(op, pairs)
    except Exception as error:
        assert "unknown" not in str(error), f"{op}: {error}"


def _parse(words: list[str]) -> None:
    arguments.parser().parse_args(words)


@pytest.mark.parametrize("page", RUN_BY)
def test_every_block_of_commands_is_pasted_by_a_test(page: str) -> None:
    assert len(RUN_BY[page]) == len(blocks(page))
    for name in RUN_BY[page]:
        if name != "Makefile":
            text = (ROOT / "tests" / name).read_text()
            assert f'blocks("{page}")' in text or f"{page}.md" in text, f"{name} does not read {page}"


def test_no_page_with_commands_is_left_out() -> None:
    assert {page.stem for page in PAGES if blocks(page.stem)} - {"architecture"} == RUN_BY.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:deploy|docs|tests|examples)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_the_picture_tells_what_would_be_so() -> None:
    picture = (ROOT / "docs" / "overlay.svg").read_text()
    cluster = ip_network("10.200.0.0/16")
    for node in (1, 2):
        subnet = choose(cluster, "web", node, lambda candidate: None)
        assert picture.count(str(subnet)) == 2, "on the node, and among the other's allowed IPs"
        assert str(first_usable(subnet) + 1) in picture, "the first container's address"
        assert picture.count(f"10.200.{node}.0/24") == 2
