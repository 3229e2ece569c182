"""A copy of this machine's root, in which a script may write as it likes.

Owns: the copy, which is in memory and goes with its namespace.  Must not know: what runs in it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from lab.processes import run

# $1: where to mount; $2: the script; then what is copied, and where to below /run.
_COPY = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/new" "$1/work" "$1/merged"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/new,workdir=$1/work" "$1/merged"
mount -t proc proc "$1/merged/proc" && mount -t tmpfs tmpfs "$1/merged/run"
root=$1/merged script=$2; shift 2
while [ $# -gt 0 ]; do mkdir -p "$(dirname "$root/run/$2")" && cp -r "$1" "$root/run/$2" && shift 2; done
exec chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -euc "$script"
"""


def run_in_copy(script: str, files: Mapping[str, Path]) -> str:
    """What a script of bash prints that runs in the copy.  files: by where below /run they are put."""
    with tempfile.TemporaryDirectory() as directory:
        put = [text for to, file in files.items() for text in (str(file), to)]
        return run(["unshare", "--mount", "--", "sh", "-euc", _COPY, "sh", directory, script, *put])
