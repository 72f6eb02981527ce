"""`mirabelle`: finds the command, runs it, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from mirabelle import __version__
from mirabelle.cli import failures
from mirabelle.cli.options import EVERYWHERE
from mirabelle.cli.signals import Asked, behind
from mirabelle.errors import UserError, did_you_mean

_COMPLETION = "_MIRABELLE_COMPLETE"
COMMANDS = (
    "demo",
    "init",
    "check",
    "run",
    "inspect",
    "predict",
    "bench",
    "verify",
    "export",
    "pack",
    "unpack",
    "report",
    "doctor",
)


class Commands(click.Group):
    """Commands in the order in which a person meets them; their modules are light, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mirabelle.cli.{cmd_name}").command
        has = {parameter.name for parameter in command.params}
        for name, option in EVERYWHERE.items():
            if name not in has:
                option(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise UserError("E100", f'mirabelle has no command "{args[0]}"', did_you_mean(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As a group does; a mistake in an option, which click leaves without its command, is told with it."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = ctx.invoked_subcommand
            command = self.get_command(ctx, name) if name is not None else None
            if error.ctx is None and command is not None:
                error.ctx = click.Context(command, ctx, name)
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mirabelle")
def mirabelle() -> None:
    """Makes trained neural networks small and fast, and proves it.

    \b
    Begin here:
      mirabelle demo                                       see the whole job in a minute
      mirabelle init --model ./net.py:net --data ./photos  a recipe for your own model
      mirabelle check recipe.toml                          what it will do and cost
      mirabelle run recipe.toml                            do it
    """


def main() -> NoReturn:
    """Run the command line; exits 0 done, 1 our bug, 2 wrong input, 3 the machine, 4 goal or gate, 130/143 interrupted."""
    Asked().listen()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status, with everything told on standard error."""
    try:
        outcome: Any = mirabelle.main(list(arguments), prog_name="mirabelle", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except BaseException as error:  # noqa: BLE001 (each kind is told in its own way)
        if isinstance(error, SystemExit) and _COMPLETION in os.environ:  # click has answered a shell that completes a line
            return failures.DONE
        return failures.told(behind(error), verbose=bool({"-v", "--verbose"} & set(arguments)))
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    main()
