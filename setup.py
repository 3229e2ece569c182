"""The one thing that pyproject.toml cannot say: the CNI shim is a program, not an extension module.

`build_ext` compiles it beside those: static, so that it runs on whatever host it is copied to.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

SHIM = "overlayd/cni/overlayd-cni"
COMPILE = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIE"]
HARDEN = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
LINK = ["-static-pie", "-Wl,-z,relro,-z,now", "-Wl,-s"]


class BuildWithShim(build_ext):
    """Extension modules, and the shim: below the build directory for a wheel, and in place."""

    def run(self) -> None:
        super().run()
        places = {Path(self.build_lib), *([Path()] if self.inplace else [])}
        compiler = self.compiler.compiler[0]
        for place in places:
            target = place / SHIM
            target.parent.mkdir(parents=True, exist_ok=True)
            self.spawn([compiler, *COMPILE, *HARDEN, *LINK, "-o", f"{target}.new", f"{SHIM}.c"])
            Path(f"{target}.new").rename(target)  # it may be running


setup(cmdclass={"build_ext": BuildWithShim})
