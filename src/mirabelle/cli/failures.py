"""What a person is told when a command fails, and the exit status that a script sees."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from difflib import get_close_matches
from pathlib import Path

import click

from mirabelle import __version__
from mirabelle.cli.signals import Terminated
from mirabelle.errors import MODULE_OF_FILES, UserError, is_out_of_memory

DONE, BUG, USAGE, INTERRUPTED, TERMINATED, BROKEN_PIPE = 0, 1, 2, 130, 143, 141
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def told(error: BaseException, *, verbose: bool) -> int:
    """Print on standard error what happened, one line first, then help; returns the exit status."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _say("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    if isinstance(error, Terminated):
        return _say("terminated; the same command goes on from the last checkpoint", TERMINATED)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return DONE
    exits = isinstance(error, SystemExit) and _in_code_of_the_users(error) is None  # so rich says that a pipe is broken
    if isinstance(error, BrokenPipeError) or exits:  # whoever reads our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    mistake = _as_mistake(error)
    if mistake is None:
        return _say(_crash(error), BUG)
    text = str(mistake)
    if verbose and mistake.__cause__ is not None:
        cause = mistake.__cause__
        text += "\n\n" + "".join(traceback.format_exception(cause)).rstrip()
    return _say(text, mistake.exit_status)


def _say(text: str, status: int) -> int:
    click.echo(text, err=True)
    return status


def _as_mistake(error: BaseException) -> UserError | None:
    """The error as one that a person can mend; None when it is ours."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if is_out_of_memory(error):
        remedy = "take a smaller batch_size, or less data at a time; the same command goes on from the last checkpoint"
        return UserError("E203", f"memory ran out: {str(error).strip() or type(error).__name__}"[:200], remedy)
    theirs = _in_code_of_the_users(error)
    if theirs is not None:
        message = f"{theirs.filename}:{theirs.lineno}: {theirs.name} raised {type(error).__name__}: {error}"
        mistake = UserError("E120", message, "mend it; with -v the whole way to it is shown; the same command goes on")
        mistake.__cause__ = error
        return mistake
    if isinstance(error, OSError) and error.errno in _FULL:
        return UserError("E202", f"cannot write {error.filename or 'output'}: {error.strerror}", "free space and repeat")
    return None


def _in_code_of_the_users(error: BaseException) -> traceback.FrameSummary | None:
    """The last place on the way to an error that lies in a Python file which a recipe names."""
    frames = traceback.walk_tb(error.__traceback__)
    theirs = [(frame, line) for frame, line in frames if frame.f_globals.get("__name__", "").startswith(MODULE_OF_FILES)]
    if not theirs:
        return None
    frame, line = theirs[-1]
    return traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)


def _usage(error: click.ClickException) -> UserError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "mirabelle"
    remedy = f"{path} --help tells what it takes"
    if isinstance(error, click.NoSuchOption):
        known = [name for parameter in context.command.params for name in parameter.opts] if context is not None else []
        near = get_close_matches(error.option_name, known, n=1)
        message = f'{path} has no option "{error.option_name}"'
        return UserError("E100", message, f"did you mean {near[0]}?" if near else remedy)
    return UserError("E100", f"{path}: {error.format_message().rstrip('.')}", remedy)


def _crash(error: BaseException) -> str:
    """Keep the traceback in a file; one line of what happened, then what to do."""
    trace = "".join(traceback.format_exception(error))
    words = f"mirabelle {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n{trace}"
    path = Path(tempfile.gettempdir()) / f"mirabelle-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        path.write_text(words, encoding="utf-8")
    except OSError:
        return f"{trace}\ninternal error: {type(error).__name__}: {error}\nhelp: please report the lines above"
    first = " ".join(str(error).split())[:200]
    return (
        f"internal error: {type(error).__name__}: {first}\n"
        f"help: this is a mistake of Mirabelle's; please report it with {path}; the same command goes on from what is on disk"
    )
