"""What pyproject.toml cannot say: the CNI shim is a program, not an extension module, and all processors compile.

`build_ext` compiles the shim beside the modules: static, so that it runs on whatever host it is copied to.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import setup
from setuptools.command.build_ext import build_ext

SHIM = "overlayd/cni/overlayd-cni"
COMPILE = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIE"]
HARDEN = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
LINK = ["-static-pie", "-Wl,-z,relro,-z,now", "-Wl,-s"]


class BuildWithShim(build_ext):
    """Extension modules, and the shim: below the build directory for a wheel, and in place."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or True  # a C compiler on each processor

    def build_extensions(self) -> None:
        """Cython in processes of its own, since it cannot run in threads, and then C."""
        translated = cythonize(self.extensions, nthreads=os.cpu_count() or 1, force=self.force, quiet=not self.verbose)
        for extension, found in zip(self.extensions, translated, strict=True):
            extension.sources = found.sources
            extension.depends = found.depends
            # Symbols, which are stripped, take a quarter of the compiler's time.
            extension.extra_compile_args.append("-g0")
        super().build_extensions()

    def run(self) -> None:
        super().run()
        places = {Path(self.build_lib), *([Path()] if self.inplace else [])}
        compiler = self.compiler.compiler[0]
        for place in places:
            target = place / SHIM
            target.parent.mkdir(parents=True, exist_ok=True)
            self.spawn([compiler, *COMPILE, *HARDEN, *LINK, "-o", f"{target}.new", f"{SHIM}.c"])
            Path(f"{target}.new").rename(target)  # it may be running


if __name__ == "__main__":  # not in a process that cythonize starts
    setup(cmdclass={"build_ext": BuildWithShim})
