"""How samples are read, and what that costs: for forecasts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_MINUTES = 100  # seconds from which a duration is told in minutes


@dataclass(frozen=True)
class Reading:
    """How the samples of a split are read.

    Args:
        how: "memory"; "file" for a file that is made once from the data, and then read when needed; "source" if samples are
            read from the data themselves whenever they are needed.
        nbytes: of the samples in memory, or of the file.
        seconds: estimated from a few samples: to make the file, 0 if it is there; without a file, to read all samples once,
            0 if that is not known.
        place: of the file.
        free: bytes that are free there.

    Example:
        >>> Reading("memory", 12_300_000).in_words()
        'in memory, 12.3 MB'
        >>> Reading("source", 0, seconds=12.0).in_words()
        'read from the data whenever they are needed, about 12 s for all of them'
        >>> Reading("file", 7_500_000_000, seconds=240.0, place=Path("/cache/a.npy"), free=60_000_000_000).in_words()
        'read when needed, from a file of 7.5 GB in /cache, which takes about 4 min to make; 60.0 GB are free'
    """

    how: Literal["memory", "file", "source"]
    nbytes: int
    seconds: float = 0.0
    place: Path | None = None
    free: int | None = None

    def in_words(self) -> str:
        if self.how == "memory":
            return f"in memory, {bytes_in_words(self.nbytes)}"
        if self.place is None:
            said = "read from the data whenever they are needed"
            return f"{said}, about {_duration(self.seconds)} for all of them" if self.seconds else said
        said = f"read when needed, from a file of {bytes_in_words(self.nbytes)} in {self.place.parent}"
        if not self.seconds:
            return f"{said}, which is there"
        free = "" if self.free is None else f"; {bytes_in_words(self.free)} are free"
        return f"{said}, which takes about {_duration(self.seconds)} to make{free}"

    def to_data(self) -> dict[str, Any]:
        """The values as plain data, without those that are not known."""
        data = {"how": self.how, "nbytes": self.nbytes, "seconds": self.seconds, "place": self.place, "free": self.free}
        return {key: str(value) if key == "place" else value for key, value in data.items() if value is not None}


def bytes_in_words(count: int) -> str:
    """A number of bytes in a decimal unit.

    Example:
        >>> bytes_in_words(150_528), bytes_in_words(12)
        ('150.5 kB', '12 bytes')
    """
    return next((f"{count / size:,.1f} {name}" for size, name in _UNITS if count >= size), f"{count} bytes")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "1 s"
    return f"{seconds:.0f} s" if seconds < _MINUTES else f"{seconds / 60:,.0f} min"
