"""Programs by their names.

Owns: the search in PATH.  Must not know: what a program is for.

`shutil.which` does the same, but `shutil` brings the libraries of three compressions along: 0.6 MB that a daemon would
hold for good.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def find(name: str) -> str | None:
    """The path of the first executable file of that name in PATH, None when there is none."""
    return next(find_all(name), None)


def find_all(name: str) -> Iterator[str]:
    """The paths of the executable files of that name in PATH, in its order, each file once."""
    seen = set()
    for directory in os.get_exec_path():
        path = str(Path(directory or ".", name))
        if is_executable(path) and (file := os.path.realpath(path)) not in seen:
            seen.add(file)
            yield path


def is_executable(path: str) -> bool:
    """Whether it is a file that this process may execute."""
    return Path(path).is_file() and os.access(path, os.X_OK)
