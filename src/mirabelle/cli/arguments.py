"""What a person writes after an option, read: shapes."""

from __future__ import annotations

import re
from pathlib import Path

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


def output_of(out: Path, suffix: str, source: Path) -> Path:
    """The file that --out names, held to its kind, so that nobody's other file is written over.

    Raises:
        UserError: E143 another ending, or the very file that is read; E151 a folder.
    """
    if out.suffix != suffix:
        raise UserError("E143", f"--out must end in {suffix}; got {out}", f"write --out {out.with_suffix(suffix)}")
    if out.is_dir():
        raise UserError("E151", f"{out} is a folder", f"name a file in it: {out / ('out' + suffix)}")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError("E143", f"--out is {source} itself, which is being read", "name another file")
    return out
