"""Ctrl-C and SIGTERM: an exception where the command stands, once, and found again behind whatever it became on its way."""

from __future__ import annotations

import math
import signal
import time
import warnings
from types import FrameType

_DEAF_SECONDS = 1.0


class Terminated(BaseException):
    """SIGTERM came."""


class Asked:
    """A handler that raises `KeyboardInterrupt` or `Terminated`, and none within a second of it.

    Who presses Ctrl-C twice, or sends SIGTERM to a whole group of processes twice, must not interrupt the way out.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def listen(self) -> None:
        """Answer both signals from now on, unless the caller has had them ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if now - self._last < _DEAF_SECONDS:
            return
        self._last = now
        warnings.simplefilter("ignore", ResourceWarning)  # what an interruption leaves open is no news on the way out
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def behind(error: BaseException) -> BaseException:
    """The interruption from which an error came, or the error itself: compiled code turns the one into the other.

    Example:
        >>> try:
        ...     raise SystemError("returned a result with an exception set") from KeyboardInterrupt()
        ... except SystemError as error:
        ...     behind(error)
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
