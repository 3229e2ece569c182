"""The versions that the image is built of are those that the tests run with."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def name(requirement: str) -> str:
    """As the index compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=\[;! ]", requirement, maxsplit=1)[0]).lower()


def pinned(path: Path) -> dict[str, str]:
    return {name(found[1]): found[2] for found in re.finditer(r"^([\w.-]+)==([\w.]+)", path.read_text(), re.MULTILINE)}


def test_every_file_of_the_image_has_a_hash_and_the_tested_version() -> None:
    path = ROOT / "deploy" / "requirements.txt"
    image, tested = pinned(path), pinned(ROOT / "constraints.txt")
    assert {each: tested.get(each) for each in image} == image
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    assert {name(each) for each in needed} <= image.keys()
    blocks = re.split(r"^(?=\w)", path.read_text().split("requirements.\n", 1)[1], flags=re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks if block)
