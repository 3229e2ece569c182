"""The two versions: this checkout, and another commit compiled in a directory of its own under build/.

Owns: that directory, cached by commit and interpreter, and the command line that runs a tree's daemon and nothing
else's.  Must not know: what is measured.

Both are compiled and run by the interpreter that runs the harness, with the packages of its environment: what is
compared is our code.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
CACHE = BUILD / "base"
PACKAGES = ".packages"  # in a tree: what it needs and this checkout does not


@dataclass(frozen=True)
class Tree:
    """name: for people.  directory: that holds the package `overlayd`."""

    name: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Python imports this tree, wherever it is started."""
        packages = self.directory / PACKAGES
        path = [str(self.directory), *([str(packages)] if packages.is_dir() else [])]
        return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}

    @property
    def daemon(self) -> list[str]:
        """The command line of its daemon without options."""
        return [*self.python, "-c", "from overlayd.cli import daemon; daemon()"]

    @property
    def python(self) -> list[str]:
        """The command line of an interpreter that imports this tree."""
        return ["env", *(f"{name}={value}" for name, value in self.environment.items()), sys.executable]


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def this_checkout() -> Tree:
    """The tree that the harness is in, compiled by `make build`."""
    try:
        name = git("rev-parse", "--short=12", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "overlayd"))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return Tree("no commit", ROOT)
    return Tree(f"{name} with changes" if changed else name, ROOT)


def checked_out(revision: str) -> Tree:
    """Another commit, compiled; SystemExit when there is no such commit."""
    try:
        commit = git("rev-parse", "--verify", "--quiet", "--short=12", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"bench-check: BASE={revision} is no commit of this repository") from error
    directory = CACHE / commit
    if not directory.is_dir():
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
        unfinished = CACHE / f"{commit}.unpacking"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        subprocess.run(["tar", "-x", "-C", unfinished], input=archive, check=True)
        unfinished.rename(directory)
    tree = Tree(commit, directory)
    compile_tree(tree)
    return tree


def compile_tree(tree: Tree) -> None:
    """Compile the extension modules of a tree in place, unless this interpreter has done so."""
    stamp = tree.directory / f".compiled-{sysconfig.get_config_var('SOABI')}"
    if stamp.exists():
        return
    missing = _missing_packages(tree)
    if missing:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        constraints = ["-c", str(tree.directory / "constraints.txt")]
        subprocess.run([*pip, *constraints, "--target", str(tree.directory / PACKAGES), *missing], check=True)
    setup = "from setuptools import setup; setup()"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", setup, "--quiet", "build_ext"], cwd=tree.directory, check=True
    )
    stamp.touch()


def _missing_packages(tree: Tree) -> list[str]:
    """The requirements of a tree that this environment has no version of."""
    requirements = tomllib.loads((tree.directory / "pyproject.toml").read_text())["project"]["dependencies"]
    missing = []
    for requirement in requirements:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].strip()
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(requirement)
    return missing
