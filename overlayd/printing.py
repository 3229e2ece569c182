"""A parser of command lines whose --help and --version fail when they cannot be printed.

Owns: that.  Must not know: any option or command.
"""

import argparse
import sys
from typing import Any


class PrintingParser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        """OSError: it could not be written, which the library's passes over since Python 3.13."""
        stream = file or sys.stderr
        if message and stream is not None:
            stream.write(message)
