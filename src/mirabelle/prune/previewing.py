"""Previews of structured pruning rank by a few samples: they are made before every run, and by `mirabelle check`."""

from __future__ import annotations

PREVIEWED = 64  # samples of a preview


def ranked_on_fewer(samples: int) -> tuple[str, ...]:
    """A sentence for a preview of a step that ranks by more samples than the preview; none if it does not.

    Example:
        >>> ranked_on_fewer(1024)
        ('ranked here by 64 of its 1,024 samples: the step itself may choose a little differently',)
    """
    if samples <= PREVIEWED:
        return ()
    return (f"ranked here by {PREVIEWED} of its {samples:,} samples: the step itself may choose a little differently",)


def times_as_long(samples: int) -> float:
    """How many times the seconds of a preview's ranking the step takes longer.

    Example:
        >>> times_as_long(256)
        3.0
    """
    return max(0.0, samples / PREVIEWED - 1)
