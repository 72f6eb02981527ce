"""Ctrl-C and SIGTERM raise an exception in the running command, once, even if other code wraps it in another error."""

from __future__ import annotations

import math
import signal
import time
import warnings
from types import FrameType

_IGNORE_SECONDS = 1.0


class Terminated(BaseException):
    """Raised when the process receives SIGTERM."""


class SignalHandler:
    """Raises `KeyboardInterrupt` on SIGINT and `Terminated` on SIGTERM, and ignores further signals for one second.

    A second Ctrl-C, or a second SIGTERM to the group of processes, must not interrupt the clean-up that the first one started.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def listen(self) -> None:
        """Install the handler for both signals, except those that the parent process has set to be ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if now - self._last < _IGNORE_SECONDS:
            return
        self._last = now
        warnings.simplefilter("ignore", ResourceWarning)  # files left open by an interruption need no warning
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def interruption_behind(error: BaseException) -> BaseException:
    """The interruption that caused an error, or the error itself.

    Compiled code may turn a `KeyboardInterrupt` into another error, so the chain of causes is searched.

    Example:
        >>> try:
        ...     raise SystemError("returned a result with an exception set") from KeyboardInterrupt()
        ... except SystemError as error:
        ...     interruption_behind(error)
        KeyboardInterrupt()
    """
    reason: BaseException | None = error
    seen: set[int] = set()
    while reason is not None and id(reason) not in seen:
        if isinstance(reason, (KeyboardInterrupt, Terminated)):
            return reason
        seen.add(id(reason))
        reason = reason.__cause__ or reason.__context__
    return error
