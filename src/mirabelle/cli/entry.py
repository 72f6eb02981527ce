"""Entry point of the installed command: handles Ctrl-C from its first line on, before the slow imports."""

from __future__ import annotations

import sys
from typing import NoReturn

from mirabelle.cli.signals import SignalHandler, Terminated


def main() -> NoReturn:
    """Run the command line; the exit status is that of the command, or 130 or 143 if interrupted while it loads."""
    try:
        SignalHandler().listen()
        from mirabelle.cli import main as command

        status = command.run(sys.argv[1:])
    except (KeyboardInterrupt, Terminated) as interruption:
        sys.stderr.write("interrupted before the command started\n")
        status = 130 if isinstance(interruption, KeyboardInterrupt) else 143
    sys.exit(status)
