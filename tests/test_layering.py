"""The folder is the layer, and within the daemon the room: who imports whom, which layers do no I/O, and how long a
module may be.

Read from the source, not from running it: `ast` for .py and .pyi, import and cimport lines for .pyx and .pxd.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "overlayd"

# docs/architecture.md: what each layer may import of overlayd, beside itself.
MAY_IMPORT = {
    "": set(),  # overlayd/__init__.py
    "errors": set(),
    "fault": set(),
    "wire": {"errors", "_fast"},
    "_fast": {"errors"},
    "keys": {"errors"},
    "spelling": set(),
    "printing": set(),
    "proto": {"errors", "keys", "wire", "_fast"},
    "model": {"errors", "keys", "spelling", "_fast"},
    "linux": {"errors", "fault", "keys", "_fast", "proto", "model"},
    "daemon": {"", "errors", "fault", "keys", "spelling", "printing", "wire", "_fast", "proto", "model", "linux"},
    "client": {"", "errors", "wire", "_fast", "proto"},
    "inspect": {"errors", "keys", "_fast", "proto", "model"},
    "web": {"errors", "wire", "client"},
    "cli": {
        *("", "errors", "spelling", "printing", "wire", "client", "inspect", "web"),
        *("proto.cni", "proto.cni_conflist", "model.ends", "daemon.main", "daemon.config"),
    },
}
# docs/architecture.md: what each room of the daemon, and each module beside them, may import of the others.
ROOMS: dict[str, set[str]] = {
    "": set(),  # daemon/__init__.py
    "garbage": set(),
    "listeners": set(),
    "outlet": set(),
    "logs": {"outlet"},
    "parse": set(),
    "systemd": set(),
    "tasks": set(),
    "tls": set(),
    "change": {"listeners"},
    "peers": {"change", "listeners", "tasks"},
    "dns": {"change", "listeners", "tasks"},
    "upkeep": {"change", "listeners", "tasks"},
    "nat": {"change", "listeners", "peers", "tasks", "tls"},
    "cluster": {"change", "config", "nat", "tasks", "tls"},
    "config": {"parse", "dns"},
    "adopt": {"change"},
    "start": {"adopt", "change"},
    "teardown": {"change"},
    "status": {"change", "peers"},
    "doctor": {"change", "garbage", "listeners", "peers", "dns", "upkeep", "nat", "tasks"},
    "handlers": {"change", "peers", "dns", "upkeep", "nat", "status", "doctor", "parse"},
    "metrics": {"handlers", "upkeep", "tasks"},
    "server": {"change", "handlers", "tasks"},
    "cni": {"change", "handlers", "server", "upkeep", "parse", "tasks"},
}
ROOMS["main"] = {*ROOMS, "main"}
PURE = {"errors", "keys", "spelling", "wire", "_fast", "proto", "model"}
# Modules by which a function could reach a socket, a file, a clock, chance, a process or an event loop.
IMPURE = {
    *("asyncio", "builtins", "concurrent", "ctypes", "datetime", "fcntl", "fileinput", "glob", "http", "io"),
    *("logging", "mmap", "multiprocessing", "os", "pathlib", "posix", "pyroute2", "random", "resource", "sched"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess"),
    *("sys", "tempfile", "termios", "threading", "time", "tty", "urllib", "uuid", "uvloop"),
}
IMPURE_BUILTINS = {"open", "print", "input", "breakpoint"}  # calls of these count as imports of `builtins`
# os.strerror is a table of texts; a new key is made of chance, by whoever asks `keys` for one: decisions are given it.
ALLOWED_IMPURE = {("errors", "os"), ("keys", "secrets")}
# What Cython may take from C: memory and arithmetic, no system calls.
IMPURE_HEADERS = {"sys/socket.h", "unistd.h", "time.h", "pthread.h", "fcntl.h", "stdio.h"}
LARGEST_MODULE = 500  # lines
NAMES_THAT_SAY_NOTHING = {"util", "utils", "common", "helper", "helpers", "manager", "misc"}

CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<source>[.\w]+)\s+c?import\s+(?P<names>[^#]+)|c?import\s+(?P<modules>[\w., ]+))"
)
CYTHON_HEADER = re.compile(r"""^\s*cdef\s+extern\s+from\s+["']<?(?P<header>[^"'>]+)""")


def modules(package: Path) -> list[Path]:
    """Every source file of the package."""
    return sorted(path for suffix in ("py", "pyi", "pyx", "pxd") for path in package.rglob(f"*.{suffix}"))


def dotted(path: Path, package: Path) -> tuple[str, ...]:
    """overlayd/model/plan.py -> ("overlayd", "model", "plan"); a package's __init__ -> the package."""
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def absolute(source: str, path: Path, package: Path) -> str:
    """The module that `from SOURCE import ...` in `path` names, with leading dots resolved."""
    level = len(source) - len(source.lstrip("."))
    if not level:
        return source
    here = dotted(path, package)
    base = here if path.stem == "__init__" else here[:-1]
    base = base[: len(base) - (level - 1)]
    return ".".join((*base, *filter(None, source.lstrip(".").split("."))))


def imports(path: Path, package: Path) -> tuple[str, ...]:
    """Every module that a file imports, as an absolute dotted name.

    `from a import b` gives a.b, because b may be a module: the longer name says more about the layer.  Imports inside
    functions and under TYPE_CHECKING count as well.
    """
    return _imports(path.read_text(), path, package)


@cache
def _imports(text: str, path: Path, package: Path) -> tuple[str, ...]:
    return tuple(_read_imports(text, path, package))


def _read_imports(text: str, path: Path, package: Path) -> Iterator[str]:
    if path.suffix in (".pyx", ".pxd"):
        for line in text.replace("\\\n", " ").splitlines():
            if (match := CYTHON_IMPORT.match(line)) is None:
                continue
            if match["modules"]:
                yield from (part.split()[0] for part in match["modules"].split(",") if part.strip())
            else:
                base = absolute(match["source"], path, package)
                yield from (
                    f"{base}.{name.split()[0]}" for name in match["names"].strip(" ()").split(",") if name.strip()
                )
        return
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS:
            yield f"builtins.{node.func.id}"
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""), path, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layer(module: tuple[str, ...]) -> str:
    """("overlayd", "model", "plan") -> "model"; the package itself -> ""."""
    return module[1] if len(module) > 1 else ""


def forbidden_overlayd(importer: str, imported: tuple[str, ...]) -> bool:
    """Whether a module of the layer `importer` may not import the module `imported` of overlayd."""
    allowed = MAY_IMPORT[importer]
    if layer(imported) in MAY_IMPORT:
        return layer(imported) not in {importer, *allowed} and ".".join(imported[1:3]) not in allowed
    return "" not in {importer, *allowed}  # a name in overlayd/__init__.py, such as __version__


def room(module: tuple[str, ...]) -> str:
    """("overlayd", "daemon", "nat", "relay") -> "nat"; the daemon's own package -> ""."""
    return module[2] if len(module) > 2 else ""


def forbidden_room(importer: str, imported: tuple[str, ...]) -> bool:
    """Whether a module of the daemon's room `importer` may not import the module `imported`."""
    return layer(imported) == "daemon" and room(imported) not in {importer, *ROOMS[importer]}


def impure(importer: str, imported: tuple[str, ...]) -> bool:
    """Whether the layer `importer` is pure and the foreign module `imported` is not."""
    if importer not in PURE or (importer, imported[0]) in ALLOWED_IMPURE:
        return False
    return imported[0] in IMPURE or imported[:2] == ("libc", "time")


def headers(path: Path) -> list[str]:
    """The C headers that a Cython file includes."""
    lines = path.read_text().splitlines() if path.suffix in (".pyx", ".pxd") else []
    return [match["header"] for line in lines if (match := CYTHON_HEADER.match(line))]


def violations(package: Path) -> list[str]:
    """Everything in the package that breaks the table, one line each."""
    found = []
    for path in modules(package):
        here = layer(dotted(path, package))
        name = f"{path.relative_to(package.parent)}"
        if here not in MAY_IMPORT:
            found.append(f"{name}: not in any layer")
            continue
        if here == "daemon" and room(dotted(path, package)) not in ROOMS:
            found.append(f"{name}: not in any room")
            continue
        for imported in imports(path, package):
            parts = tuple(imported.split("."))
            if parts[0] != package.name:
                if impure(here, parts):
                    found.append(f"{name}: {here} is pure and imports {imported}")
            elif forbidden_overlayd(here, parts):
                found.append(f"{name}: {here or 'the package'} imports {imported}")
            elif here == "daemon" and forbidden_room(room(dotted(path, package)), parts):
                found.append(f"{name}: {room(dotted(path, package))} imports {imported}")
        if here in PURE:
            found += [
                f"{name}: {here} is pure and includes {header}" for header in headers(path) if header in IMPURE_HEADERS
            ]
    return found


def circle(package: Path) -> list[str]:
    """Modules that import each other, in a circle, the first one last again; empty when there is none."""
    names = {".".join(dotted(path, package)) for path in modules(package)}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in modules(package):
        here = ".".join(dotted(path, package))
        for imported in imports(path, package):
            # `from a import b` gives a.b, which is a module or a name in one; a package does not import its own modules
            # by being there.
            module = imported if imported in names else imported.rpartition(".")[0]
            if module in names and module != here:
                graph[here].add(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_keeps_to_its_layer() -> None:
    assert violations(PACKAGE) == []


def test_no_two_modules_import_each_other() -> None:
    assert circle(PACKAGE) == []


def test_pyroute2_is_for_inspections_alone() -> None:
    """It costs the daemon 10 MB and a quarter of a second, and its codec is ours: docs/dependencies.md."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules(PACKAGE)
        for imported in imports(path, PACKAGE)
        if imported.split(".")[0] == "pyroute2"
    }
    assert users == {"inspect/kernel.py", "inspect/way.py", "cli/inspection.py"}


def test_modules_are_short_and_named_after_what_they_own() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(PACKAGE)}
    assert {name: length for name, length in lengths.items() if length > LARGEST_MODULE} == {}
    assert [name for name in lengths if Path(name).stem in NAMES_THAT_SAY_NOTHING] == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("model/plan.py", "from overlayd.linux import link\n", "model imports overlayd.linux.link"),
        ("model/plan.py", "from ..linux import link\n", "model imports overlayd.linux.link"),
        ("model/plan.py", "from .. import wire\n", "model imports overlayd.wire"),
        (
            "model/plan.py",
            "def late():\n    import overlayd.daemon.change.node\n",
            "model imports overlayd.daemon.change.node",
        ),
        ("model/plan.py", "import time\n", "model is pure and imports time"),
        ("proto/mux.py", "from asyncio import sleep\n", "proto is pure and imports asyncio.sleep"),
        ("proto/mux.py", "open('/etc/passwd')\n", "proto is pure and imports builtins.open"),
        ("proto/mux.py", "import os.path\n", "proto is pure and imports os.path"),
        ("proto/mux.py", "from overlayd.model import plan\n", "proto imports overlayd.model.plan"),
        ("wire/codec.py", "from overlayd.proto import mux\n", "wire imports overlayd.proto.mux"),
        ("linux/link.py", "from overlayd import wire\n", "linux imports overlayd.wire"),
        (
            "daemon/change/node.py",
            "from overlayd.client import OverlayClient\n",
            "daemon imports overlayd.client.OverlayClient",
        ),
        ("client/client.py", "from overlayd.linux import link\n", "client imports overlayd.linux.link"),
        ("cli/main.py", "from overlayd.daemon import node\n", "cli imports overlayd.daemon.node"),
        ("cli/tables.py", "from overlayd.model import peers\n", "cli imports overlayd.model.peers"),
        ("errors.py", "from overlayd import wire\n", "errors imports overlayd.wire"),
        ("errors.py", "import time\n", "errors is pure and imports time"),
        ("_fast/frame.pyx", "from overlayd.wire cimport codec\n", "_fast imports overlayd.wire.codec"),
        ("_fast/frame.pyx", "cimport overlayd.model.ipam\n", "_fast imports overlayd.model.ipam"),
        ("_fast/frame.pyx", "from libc.time cimport time\n", "_fast is pure and imports libc.time.time"),
        ("_fast/frame.pyx", "import socket, struct\n", "_fast is pure and imports socket"),
        (
            "_fast/frame.pyx",
            'cdef extern from "<sys/socket.h>":\n    pass\n',
            "_fast is pure and includes sys/socket.h",
        ),
        ("linux/link.py", "from overlayd import wire\n", "linux imports overlayd.wire"),
        ("stray/thing.py", "", "not in any layer"),
        ("daemon/cellar/wine.py", "", "not in any room"),
        (
            "daemon/change/node.py",
            "from overlayd.daemon.peers.health import Health\n",
            "change imports overlayd.daemon.peers.health.Health",
        ),
        ("daemon/change/node.py", "from overlayd.daemon import nat\n", "change imports overlayd.daemon.nat"),
        ("daemon/peers/health.py", "from ..nat import session\n", "peers imports overlayd.daemon.nat.session"),
        (
            "daemon/dns/nameserver.py",
            "def late():\n    from overlayd.daemon.peers import health\n",
            "dns imports overlayd.daemon.peers.health",
        ),
        (
            "daemon/nat/session.py",
            "if TYPE_CHECKING:\n    from overlayd.daemon.upkeep.sentinel import Sentinel\n",
            "nat imports overlayd.daemon.upkeep.sentinel.Sentinel",
        ),
        (
            "daemon/handlers/nat.py",
            "import overlayd.daemon.server.server\n",
            "handlers imports overlayd.daemon.server.server",
        ),
        (
            "daemon/server/server.py",
            "from overlayd.daemon.nat import session\n",
            "server imports overlayd.daemon.nat.session",
        ),
        ("daemon/doctor.py", "from overlayd.daemon.main import main\n", "doctor imports overlayd.daemon.main.main"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    planted = tmp_path / "overlayd" / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text)
    assert violations(tmp_path / "overlayd") == [f"overlayd/{file}: {complaint}"]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("from overlayd.wire import codec\n", "from overlayd.wire import values\n"),
        ("from .codec import encode\n", "import overlayd.wire.values\n"),
        ("from .codec import encode\n", "def late():\n    from .values import Peer\n"),
        ("if TYPE_CHECKING:\n    from .codec import encode\n", "from .values import Peer\n"),
        ("from overlayd.wire import requests\n", "from .values import Peer\n"),
        ("from overlayd.wire import Status\n", "from .values import Peer\n"),
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, here: str, there: str) -> None:
    folder = tmp_path / "overlayd" / "wire"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .codec import Status\n")
    (folder / "requests.pyi").write_text("from .codec import encode\n")
    (folder / "values.py").write_text(here)
    (folder / "codec.py").write_text(there)
    found = circle(tmp_path / "overlayd")
    assert found[0] == found[-1]
    assert {"overlayd.wire.values", "overlayd.wire.codec"} <= set(found)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("errors.py", "import os\n"),
        ("proto/mux.py", "from overlayd._fast.frame import Decoder\nfrom . import connection\nimport struct\n"),
        ("model/plan.py", "from .objects import Step\nfrom overlayd.errors import RequestError\n"),
        ("wire/__init__.py", "from .codec import encode\nfrom overlayd.errors import ProtocolError\n"),
        ("linux/link.py", "import socket\nfrom overlayd.model.objects import Veth\n"),
        ("daemon/main.py", "from overlayd import __version__, wire\nimport asyncio\n"),
        ("daemon/main.py", "from overlayd.daemon import start\nfrom overlayd.daemon.server.server import Server\n"),
        ("daemon/nat/session.py", "from overlayd.daemon.peers.health import Health\nfrom .relay import Relay\n"),
        ("cli/main.py", "from overlayd.daemon.main import run\nfrom overlayd.daemon import main\nimport asyncio\n"),
        (
            "_fast/frame.pyx",
            "# import socket\nfrom libc.string cimport memcpy\nfrom cpython.bytes cimport (PyBytes_AsString)\n",
        ),
    ],
)
def test_what_is_allowed_is_not_complained_of(tmp_path: Path, file: str, text: str) -> None:
    planted = tmp_path / "overlayd" / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(text)
    assert violations(tmp_path / "overlayd") == []
