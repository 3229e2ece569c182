"""Programs by their names.

Owns: the search in PATH.  Must not know: what a program is for.

`shutil.which` does the same, but `shutil` brings the libraries of three compressions along: 0.6 MB that a daemon would
hold for good.
"""

import os
from pathlib import Path


def find(name: str) -> str | None:
    """The path of the first executable file of that name in PATH, None when there is none."""
    for directory in os.get_exec_path():
        path = Path(directory or ".", name)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None
