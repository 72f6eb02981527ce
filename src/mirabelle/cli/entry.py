"""Entry point of the installed command: handles Ctrl-C from its first line on, before the slow imports."""

from __future__ import annotations

import atexit
import contextlib
import os
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
    _leave(status)


def _leave(status: int) -> NoReturn:
    """Exit; with several processes at once, after what is due at the exit.

    The threads by which torch's processes exchange messages may outlive the interpreter, which then aborts.
    """
    if "mirabelle.run.process_group" in sys.modules and sys.modules["mirabelle.run.process_group"].is_joined():
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)
