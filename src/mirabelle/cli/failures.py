"""Turns an exception into an error message for the user and an exit status for scripts."""

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
from mirabelle.run.group import LedElsewhereError

DONE, BUG, USAGE, INTERRUPTED, TERMINATED, BROKEN_PIPE = 0, 1, 2, 130, 143, 141
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)
_SHOWN = 80  # characters of a path
_UNTIL_FIRST_HAS_TOLD = 3.0  # seconds in which a launcher ends the other processes if the first one fails


def report_failure(error: BaseException, *, verbose: bool) -> int:
    """Print an error on standard error, first what happened, then what to do, and return the exit status.

    Args:
        error: the exception that ended the command.
        verbose: also print the traceback of an error raised in the user's own code.
    """
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _say("interrupted; run the same command again to continue from the last checkpoint", INTERRUPTED)
    if isinstance(error, Terminated):
        return _say("terminated; run the same command again to continue from the last checkpoint", TERMINATED)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return DONE
    exits = isinstance(error, SystemExit) and _frame_in_user_code(error) is None  # rich exits so on a broken pipe
    if isinstance(error, BrokenPipeError) or exits:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    mistake = _as_user_error(error)
    if mistake is None:
        return _say(_crash(error), BUG)
    text = str(mistake)
    if verbose and mistake.__cause__ is not None:
        cause = mistake.__cause__
        text += "\n\n" + "".join(traceback.format_exception(cause)).rstrip()
    return _say(text, mistake.exit_status)


def report_failure_of_follower(error: BaseException, rank: int, *, verbose: bool) -> int:
    """As `report_failure`, for a process that is not the first: what that has told, or will tell soon, is not told twice.

    Args:
        error: the exception that ended the command.
        rank: of the process, with which its message begins.
        verbose: as in `report_failure`.
    """
    if isinstance(error, LedElsewhereError):
        return error.exit_status
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return INTERRUPTED
    if isinstance(error, Terminated):
        return TERMINATED
    try:
        time.sleep(_UNTIL_FIRST_HAS_TOLD)
    except (KeyboardInterrupt, Terminated):  # the launcher ends this process, since the first has failed, too
        return TERMINATED
    click.echo(f"process {rank}: ", nl=False, err=True)
    return report_failure(error, verbose=verbose)


def _say(text: str, status: int) -> int:
    click.echo(text, err=True)
    return status


def _as_user_error(error: BaseException) -> UserError | None:
    """The error as a `UserError` that the user can correct; None if it is a bug in Mirabelle."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if is_out_of_memory(error):
        remedy = (
            "use a smaller batch_size or less data at a time; run the same command again to continue from the last checkpoint"
        )
        return UserError("E203", f"memory ran out: {str(error).strip() or type(error).__name__}"[:200], remedy)
    frame = _frame_in_user_code(error)
    if frame is not None:
        message = f"{frame.filename}:{frame.lineno}: {frame.name} raised {type(error).__name__}: {error}"
        remedy = "correct your code (-v shows the whole traceback), then run the same command again to continue"
        mistake = UserError("E120", message, remedy)
        mistake.__cause__ = error
        return mistake
    return _of_system(error) if isinstance(error, OSError) else None


def _of_system(error: OSError) -> UserError | None:
    """A full disk, or a path that the system does not take; None for other errors."""
    if error.errno in _FULL:
        return UserError(
            "E202", f"cannot write {error.filename or 'output'}: {error.strerror}", "free disk space and try again"
        )
    if error.errno in _CLOSED and error.filename is not None:
        path = str(error.filename)
        shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}…"
        return UserError("E130", f"{shown} cannot be used: {error.strerror}", "check the path and its permissions")
    return None


def _frame_in_user_code(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the traceback that lies in a Python file named by a recipe; None if there is none."""
    frames = traceback.walk_tb(error.__traceback__)
    own = [(frame, line) for frame, line in frames if frame.f_globals.get("__name__", "").startswith(MODULE_OF_FILES)]
    if not own:
        return None
    frame, line = own[-1]
    return traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)


def _usage(error: click.ClickException) -> UserError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "mirabelle"
    remedy = f"see {path} --help"
    if isinstance(error, click.NoSuchOption):
        known = [name for parameter in context.command.params for name in parameter.opts] if context is not None else []
        near = get_close_matches(error.option_name, known, n=1)
        message = f'{path} has no option "{error.option_name}"'
        return UserError("E100", message, f"did you mean {near[0]}?" if near else remedy)
    return UserError("E100", f"{path}: {error.format_message().rstrip('.')}", remedy)


def _crash(error: BaseException) -> str:
    """Write the traceback to a temporary file and return the message that names this file."""
    trace = "".join(traceback.format_exception(error))
    content = f"mirabelle {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n{trace}"
    path = Path(tempfile.gettempdir()) / f"mirabelle-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    try:
        path.write_text(content, encoding="utf-8")
    except OSError:
        return f"{trace}\ninternal error: {type(error).__name__}: {error}\nhelp: please report the lines above"
    first = " ".join(str(error).split())[:200]
    return (
        f"internal error: {type(error).__name__}: {first}\n"
        f"help: this is a bug in Mirabelle; please report it with {path}; the same command continues from what was saved"
    )
