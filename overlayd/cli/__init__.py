"""The two commands: `overlayd`, the daemon, and `overlayctl`, which asks it."""

from overlayd.cli.main import control, daemon, run

__all__ = ["control", "daemon", "run"]
