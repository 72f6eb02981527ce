"""`mirabelle`: finds and runs a command, and turns errors into a message and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn

import click

from mirabelle import __version__
from mirabelle.cli import failures
from mirabelle.cli.messages import own_lines_only
from mirabelle.cli.options import COMMON_OPTIONS
from mirabelle.cli.signals import SignalHandler, interruption_behind
from mirabelle.errors import UserError, did_you_mean
from mirabelle.run.launch import launched

_COMPLETION = "_MIRABELLE_COMPLETE"
_BY_ALL_PROCESSES = ("run", "compare", "auto")  # commands in which several processes take part; the first alone does others
COMMANDS = (
    "demo",
    "init",
    "check",
    "run",
    "compare",
    "auto",
    "runs",
    "inspect",
    "predict",
    "bench",
    "verify",
    "export",
    "pack",
    "unpack",
    "large",
    "report",
    "doctor",
)


class Commands(click.Group):
    """The commands in the order in which a new user needs them; each module is imported only when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mirabelle.cli.{cmd_name}").command
        present = {parameter.name for parameter in command.params}
        for name, option in COMMON_OPTIONS.items():
            if name not in present:
                option(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise UserError("E100", f'mirabelle has no command "{args[0]}"', did_you_mean(args[0], COMMANDS))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the command; a usage error that click raises without a context gets that of the command."""
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
    """Compress trained neural networks, and measure and verify the result.

    \b
    Begin here:
      mirabelle demo                                       see a complete compression in a minute
      mirabelle init --model ./net.py:net --data ./photos  print a recipe for your own model
      mirabelle check recipe.toml                          show what it will do and cost
      mirabelle run recipe.toml                            run it
      mirabelle compare comparison.toml                    find out which technique is better at a budget
    """


def main() -> NoReturn:
    """Run the command line and exit.

    Exit status: 0 done, 1 bug in Mirabelle, 2 wrong input, 3 memory or disk exhausted or training diverged, 4 goal not met or
    gate failed, 130 interrupted, 143 terminated.
    """
    SignalHandler().listen()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command, print any error on standard error, and return the exit status.

    Of several processes that were started together, the first alone prints; others print what went wrong with them alone.
    """
    verbose = bool({"-v", "--verbose"} & set(arguments))
    try:
        launch = launched()
    except UserError as error:
        return failures.report_failure(error, verbose=verbose)
    if launch is not None and launch.rank > 0:
        return _follow(arguments, launch.rank, verbose=verbose)
    return _run(arguments, verbose=verbose)


def _follow(arguments: Sequence[str], rank: int, *, verbose: bool) -> int:
    if next((one for one in arguments if not one.startswith("-")), "") not in _BY_ALL_PROCESSES:
        return failures.DONE
    try:
        with own_lines_only(verbose=verbose), _nothing_printed():
            mirabelle.main(list(arguments), prog_name="mirabelle", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BaseException as error:  # noqa: BLE001 (each kind gets its own message)
        return failures.report_failure_of_follower(interruption_behind(error), rank, verbose=verbose)
    return failures.DONE


@contextmanager
def _nothing_printed() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        yield


def _run(arguments: Sequence[str], *, verbose: bool) -> int:
    try:
        with own_lines_only(verbose=verbose):
            outcome: Any = mirabelle.main(list(arguments), prog_name="mirabelle", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except BaseException as error:  # noqa: BLE001 (each kind gets its own message)
        if isinstance(error, SystemExit) and _COMPLETION in os.environ:  # click has answered a shell's request for completion
            return failures.DONE
        return failures.report_failure(interruption_behind(error), verbose=verbose)
    return outcome if isinstance(outcome, int) else 0


if __name__ == "__main__":
    main()
