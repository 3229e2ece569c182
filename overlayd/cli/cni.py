"""`overlayctl cni`: the plugin and the network's configuration, put where container runtimes look for them.

Owns: which files these are, and the order in which they come and go.  Must not know: what a plugin does.
"""

import asyncio
import errno
import filecmp
import json
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import overlayd
from overlayd.cli.arguments import EXIT_ERR, EXIT_FINDINGS
from overlayd.cli.call import UsageError
from overlayd.client import OverlayClient, Unreachable, default_socket
from overlayd.client.cni import CniRefused, call
from overlayd.proto import cni_conflist
from overlayd.proto.cni import VERSIONS, CniError, queue_of, socket_beside

SHIM = Path(overlayd.__file__).with_name("cni") / cni_conflist.PLUGIN
FILE = "05-overlayd.conflist"
READ_BY_RUNTIMES = (".conf", ".conflist", ".json")  # as libcni has it
ASIDE = ".overlayd-aside"  # the end of the names of files that --exclusive put aside
PAUSE = 0.3  # seconds between two looks whether containers can be attached


async def _install(args: Namespace) -> int:
    _conflist(args, [])
    bin_dir, conf_dir = _directory(args.bin_dir), _directory(args.conf_dir)
    target = conf_dir / FILE
    others = _others(conf_dir) if args.exclusive else []
    if _is_of_others(target):
        raise FileExistsError(errno.EEXIST, "it is not overlayd's: move it away first", str(target))
    for other in others:
        if (aside := Path(f"{other}{ASIDE}")).exists():
            raise FileExistsError(
                errno.EEXIST, f"{other} was put aside before: move one of both away first", str(aside)
            )
    _copy(SHIM, bin_dir / SHIM.name)
    print(f"{bin_dir / SHIM.name}: in place")
    plugins = {name: versions for name in cni_conflist.CHAINED if (versions := _versions(bin_dir / name))}
    common = [each for each in VERSIONS if all(each in versions for versions in plugins.values())]
    await _offer(args, _conflist(args, [*plugins], common), target)
    chained = f", behind it {', '.join(plugins)}" if plugins else ""
    print(f"{target}: the network {args.name}{chained}")
    if lacking := [name for name in cni_conflist.CHAINED if name not in plugins]:
        print(f"not in {bin_dir}, and left out: {', '.join(lacking)} (package containernetworking-plugins)")
    for other in others:
        other.rename(f"{other}{ASIDE}")
        print(f"{other}: put aside as {other.name}{ASIDE}")
    return 0


def _conflist(args: Namespace, plugins: list[str], versions: Sequence[str] = VERSIONS) -> str:
    """The file of a network.  UsageError when its name or its subnet is none."""
    try:
        text = cni_conflist.conflist(args.name, args.subnet, plugins, versions).decode()
        cni_conflist.read(text)
    except CniError as error:
        raise UsageError(str(error)) from None
    return text


async def _offer(args: Namespace, text: str, target: Path) -> None:
    """Have the daemon write the file once containers can be attached, for --timeout at most."""
    end, said = time.monotonic() + args.timeout, ""
    while True:
        try:
            await call(_socket(args), "OFFER", text, path=str(target))
            return
        except (CniRefused, Unreachable) as error:
            if time.monotonic() > end or (isinstance(error, CniRefused) and error.number not in (11, 50, 51)):
                if said:
                    print(f"{target} is not written: overlayctl cni install again when that is over", file=sys.stderr)
                raise
            if str(error) != said:
                said = str(error)
                print(f"waiting: {said}", file=sys.stderr)
        await asyncio.sleep(PAUSE)


async def _uninstall(args: Namespace) -> int:
    left = _left(args)
    attached = await _attached(args)
    if (left or attached) and not args.force:
        if left:
            print(f"{left} DELs wait for overlayd: start it, it does them before anything else", file=sys.stderr)
        if attached:
            print(f"{attached} containers are attached, and cannot be removed without the plugin", file=sys.stderr)
        return EXIT_ERR
    conf_dir = Path(args.conf_dir)
    plugin, network = Path(args.bin_dir) / SHIM.name, conf_dir / FILE
    if theirs := _is_of_others(network):
        print(f"{network}: is not overlayd's, and stays")
    found = [file for file in ((plugin,) if theirs else (network, plugin)) if file.exists()]
    for file in found:
        file.unlink()
        print(f"{file}: removed")
    if not (found or theirs):
        print(f"nothing of overlayd is in {args.bin_dir} and {conf_dir}")
    _put_back(conf_dir)
    return 0


async def _check(args: Namespace) -> int:
    problems = []
    binary, file = Path(args.bin_dir) / SHIM.name, Path(args.conf_dir) / FILE
    if not binary.exists():
        problems.append(f"{binary} is not there: overlayctl cni install")
    elif not filecmp.cmp(SHIM, binary, shallow=False):
        problems.append(f"{binary} is of another version: overlayctl cni install")
    text = ""
    try:
        read = file.read_text(errors="surrogateescape")
        cni_conflist.read(read)
        text = read
    except FileNotFoundError:
        problems.append(f"{file} is not there: overlayctl cni install")
    except CniError as error:
        problems.append(f"{file}: {error}: move it away, and overlayctl cni install")
    earlier = [each for each in _others(Path(args.conf_dir)) if each.name < FILE]
    if file.exists() and earlier:
        problems.append(
            f"{earlier[0]} comes before {FILE}, and is what the runtime takes: move it, or install --exclusive"
        )
    plugins: list[dict[str, Any]] = json.loads(text)["plugins"] if text and not problems else []
    for plugin in plugins:
        if not (Path(args.bin_dir) / plugin["type"]).exists():
            problems.append(f"{file} chains {plugin['type']}, which is not in {args.bin_dir}")
    if left := _left(args):
        problems.append(f"{left} DELs are left and wait for overlayd")
    try:
        network = json.loads(text) if text else json.loads(cni_conflist.conflist("overlay", "slice", []))
        status = {**network["plugins"][0], "name": network["name"], "cniVersion": "1.1.0"}
        await call(_socket(args), "STATUS", json.dumps(status))
    except (CniRefused, Unreachable) as error:
        problems.append(str(error))
    print("\n".join(problems) or "the plugin and the network are in place, and containers can be attached")
    return EXIT_FINDINGS if problems else 0


# By the words of `cni_words.ACTIONS` behind "cni".
ACTIONS: dict[str, Callable[[Namespace], Awaitable[int]]] = {
    "install": _install,
    "uninstall": _uninstall,
    "check": _check,
}


def _socket(args: Namespace) -> str:
    given = args.cni_socket or os.environ.get("OVERLAYD_CNI_SOCKET")
    return given or socket_beside(args.socket or default_socket())


def _directory(path: str) -> Path:
    """The absolute path of a directory, which is made if it is missing: the daemon has another working directory."""
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path).resolve()


def _put_back(conf_dir: Path) -> None:
    """Give the networks that --exclusive put aside their names again."""
    for aside in sorted(conf_dir.glob(f"*{ASIDE}")):
        before = Path(str(aside).removesuffix(ASIDE))
        if before.exists():
            print(f"{aside}: stays, for there is another {before.name} by now")
        else:
            aside.rename(before)
            print(f"{before}: has its name back")


def _is_of_others(file: Path) -> bool:
    """Whether networks are there that have no plugin of ours; of an empty file nothing is lost."""
    held = file.read_bytes() if file.is_file() else b""
    return bool(held) and cni_conflist.PLUGIN.encode() not in held


def _copy(source: Path, target: Path) -> None:
    """Copy a file, by a rename at the end: runtimes may be executing what is there."""
    draft = target.with_name(f".{target.name}.new")
    try:
        shutil.copyfile(source, draft)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(target)) from error


def _versions(plugin: Path) -> list[str]:
    """What a plugin says that it speaks; nothing of one that is not there."""
    try:
        told = subprocess.run(
            [plugin], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, timeout=10, check=True
        )
        return [str(each) for each in json.loads(told.stdout)["supportedVersions"]]
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return []


def _others(conf_dir: Path) -> list[Path]:
    """Networks of others that runtimes read there."""
    found = conf_dir.iterdir() if conf_dir.is_dir() else ()
    return sorted(each for each in found if each.suffix in READ_BY_RUNTIMES and each.name != FILE)


def _left(args: Namespace) -> int:
    """How many DELs wait for a daemon."""
    queue = Path(queue_of(_socket(args)))
    return sum(not each.name.startswith(".") for each in queue.iterdir()) if queue.is_dir() else 0


async def _attached(args: Namespace) -> int:
    """How many containers are attached by CNI; 0 as well when no daemon tells."""
    with suppress(Unreachable):
        async with await OverlayClient.connect(args.socket or default_socket(), call_timeout=args.timeout) as client:
            return sum(each.handle.startswith("netns:") for each in (await client.list("containers")).containers)
    return 0
