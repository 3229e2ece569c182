"""What is built of a checkout: every package and module is named, the sdist holds every file, and the compose file says
what the manual says.
"""

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

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


def test_the_compose_file_runs_the_image_as_the_manual_does() -> None:
    manual = (ROOT / "docs" / "install.md").read_text().replace("\\\n", " ")
    command = re.search("^docker run (.*) overlayd (--.*)$", manual, re.MULTILINE)
    assert command
    flags = re.findall(r"--([a-z-]+) ([^\s-]\S*)", command[1])
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["overlayd"]

    def given(name: str) -> list[str]:
        return [value for flag, value in flags if flag == name]

    assert given("network") == [service["network_mode"]] and given("pid") == [service["pid"]]
    assert given("restart") == [service["restart"]] and given("name") == [service["container_name"]]
    for flag, key in (("cap-drop", "cap_drop"), ("cap-add", "cap_add"), ("volume", "volumes"), ("device", "devices")):
        assert given(flag) == service[key]
    assert given("security-opt") == service["security_opt"]
    assert command[2].split() == service["command"]
    told = {"network", "pid", "restart", "name", "cap-drop", "cap-add", "volume", "device", "security-opt"}
    assert {flag for flag, _ in flags} == told
