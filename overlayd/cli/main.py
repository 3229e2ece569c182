"""The two commands: `overlayd`, the daemon, and `overlayctl`, which asks it.

Owns: the entry points.  Must not know: the daemon's insides, what `overlayctl` understands (`arguments`) and does
(`commands`).

Each imports late what is slow, and once: a mistyped argument should not wait for asyncio.
"""

import codecs
import gc
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn


def daemon() -> NoReturn:
    """The `overlayd` command."""
    _open_standard_streams()
    gc.disable()  # what is imported stays: a tenth of the time; `daemon.garbage` enables it
    from overlayd.daemon.config import parser  # noqa: PLC0415
    from overlayd.daemon.main import run  # noqa: PLC0415

    try:
        options = parser().parse_args(sys.argv[1:])
    except SystemExit as end:  # of --help, --version and wrong usage
        sys.exit(_flushed("overlayd", int(end.code or 0)))
    except OSError as error:  # of --help and --version, to a file on a full disk
        sys.exit(_unprinted("overlayd", error))
    sys.exit(run(options))


def _open_standard_streams() -> None:
    """Open /dev/null in place of a standard stream that our parent has closed: a socket that got its number would be
    sent our log.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


def control() -> NoReturn:
    """The `overlayctl` command."""
    if sys.stdout is None:  # closed by who started us
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until we exit
    elif isinstance(sys.stdout, TextIOWrapper):
        codecs.register_error("escaped", _escaped)
        sys.stdout.reconfigure(errors="escaped")
    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # of --help, --version and wrong usage
        code = int(end.code or 0)
    sys.exit(_flushed("overlayctl", code))


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What a terminal or a pipe that takes no UTF-8 gets in place of letters, as JSON has it: \\u00f6."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[at : at + 2], 'big'):04x}" for at in range(0, len(units), 2)), error.end


def run(arguments: list[str]) -> int:
    """Do what `overlayctl ARGUMENTS` should.  Returns the exit code; raises SystemExit for a wrong word and --help."""
    from overlayd.cli.arguments import EXIT_INTERRUPTED, parser  # noqa: PLC0415 - which the daemon needs not

    try:
        args = parser().parse_args(arguments)
        from overlayd.cli import commands  # noqa: PLC0415

        return commands.run(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:  # of --help and --version, to a file on a full disk
        return _unprinted("overlayctl", error)


def _flushed(program: str, code: int) -> int:
    """The exit code, once what was printed is out: its reader may have gone, or a disk be full."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError as error:
        return _unprinted(program, error)
    return code


def _unprinted(program: str, error: OSError) -> int:
    """The exit code after printing has failed, which is said but to a reader who has gone.

    The interpreter flushes the streams once more when it exits: let that succeed.
    """
    from overlayd.cli.arguments import EXIT_BROKEN_PIPE, EXIT_ERR  # noqa: PLC0415

    code = EXIT_BROKEN_PIPE if isinstance(error, BrokenPipeError) else EXIT_ERR
    if code == EXIT_ERR:
        with suppress(OSError):  # it may be this stream
            print(f"{program}: {error.strerror}", file=sys.stderr, flush=True)
    nobody = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nobody, descriptor)
    return code
