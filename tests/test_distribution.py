"""What is built of a checkout: every package and module is named, and the sdist holds every file."""

import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_package_and_every_extension_module_is_built() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("overlayd/**/__init__.py")}
    assert {*setuptools["packages"]} == packages
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("overlayd/**/*.pyx")}
    assert {module["name"] for module in setuptools["ext-modules"]} == modules
    assert all("-Wl,-s" in module["extra-link-args"] for module in setuptools["ext-modules"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git says what belongs to a checkout")
def test_the_sdist_holds_every_file_of_the_checkout(tmp_path: Path) -> None:
    arguments = ["--quiet", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run([sys.executable, "-W", "ignore", "setup.py", *arguments], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    known = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    assert {name for name in known if name and (ROOT / name).exists()} - held == set()
