"""The blocks of the manual that a reader pastes.

Owns: where they stand.  Must not know: what runs them.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = "```"


def path(page: str) -> Path:
    """page: README, or a name in docs/."""
    return ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"


def blocks(page: str) -> list[str]:
    """Those without a language, which are commands."""
    return blocks_of(path(page).read_text())


def blocks_of(text: str) -> list[str]:
    found, block, language = [], list[str](), None
    for line in text.splitlines(keepends=True):
        if not line.startswith(FENCE):
            block.append(line)
        elif language is None:
            block, language = [], line.removeprefix(FENCE).strip()
        else:
            if not language:
                found.append("".join(block))
            language = None
    return found
