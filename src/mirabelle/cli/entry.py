"""Where the installed command begins: it answers Ctrl-C from its first line on, and imports the rest then."""

from __future__ import annotations

import sys
from typing import NoReturn

from mirabelle.cli.signals import Asked, Terminated


def main() -> NoReturn:
    """Run the command line."""
    try:
        Asked().listen()
        from mirabelle.cli import main as command

        status = command.run(sys.argv[1:])
    except (KeyboardInterrupt, Terminated) as asked:
        sys.stderr.write("interrupted before anything was begun\n")
        status = 130 if isinstance(asked, KeyboardInterrupt) else 143
    sys.exit(status)
