"""`mirabelle`: finds the command, runs it, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from mirabelle import __version__
from mirabelle.errors import UserError

_COMMANDS = ("demo", "run", "inspect", "unpack")
_INTERRUPTED, _TERMINATED, _BUG = 130, 143, 1


class _Terminated(BaseException):
    """SIGTERM came."""


class Commands(click.Group):
    """Commands whose modules are imported only when they are called, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mirabelle.cli.{cmd_name}").command
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mirabelle")
def mirabelle() -> None:
    """Makes trained neural networks small and fast, and proves it."""


def main() -> NoReturn:
    """Run the command line; exits 0 done, 1 our bug, 2 wrong input, 3 the machine, 4 goal or gate, 130/143 interrupted."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_status())


def _status() -> int:
    try:
        outcome: Any = mirabelle(standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        return _INTERRUPTED
    except _Terminated:
        click.echo("terminated; the same command goes on from the last checkpoint", err=True)
        return _TERMINATED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        click.echo(str(error), err=True)
        return error.exit_status
    return outcome if isinstance(outcome, int) else 0


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _Terminated


if __name__ == "__main__":
    main()
