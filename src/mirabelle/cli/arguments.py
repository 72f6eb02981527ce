"""What a person writes after an option, read: shapes."""

from __future__ import annotations

import re

from mirabelle.errors import UserError


def sizes_of(shape: str | None) -> tuple[int, ...] | None:
    """The sizes that "1x28x28" names; None where nothing was said.

    Raises:
        UserError: E110 for anything else.

    Example:
        >>> sizes_of("1x28x28")
        (1, 28, 28)
    """
    if shape is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError("E110", f'--input must be sizes joined by "x"; got "{shape}"', "write --input 1x28x28, say")
    return tuple(int(size) for size in shape.split("x"))
