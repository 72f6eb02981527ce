"""Write a resolved recipe as TOML, with the origin of each value in a comment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tomli_w

from mirabelle.errors import Path
from mirabelle.records.toml_positions import TomlPositions

Origin = Callable[[Path], str]
ORIGINS = {"fingerprint": "computed from the model and the data", "decisions": "measured by this run"}
_HEADER = "# The resolved recipe of a run: every setting and every measured decision, and where each comes from.\n"


def resolved_text(document: Mapping[str, Any], origin: Origin) -> str:
    """Convert a document to TOML, with a comment on each line that tells the origin of its value.

    Args:
        document: plain data.
        origin: returns the origin of the value at a path, such as "default" or "recipe.toml:3".

    Example:
        >>> print(resolved_text({"seed": 1, "goal": {"size": "5%"}}, {("seed",): "default", ("goal", "size"): "r.toml:3"}.get))
        # The resolved recipe of a run: every setting and every measured decision, and where each comes from.
        seed = 1  # default
        <BLANKLINE>
        [goal]
        size = "5%"  # r.toml:3
        <BLANKLINE>
    """
    text = tomli_w.dumps(document)
    positions = TomlPositions(text, "")
    origins: dict[int, dict[str, None]] = {}
    for path in _leaves(document, ()):
        line = positions.last_line(path)
        if line is not None:
            origins.setdefault(line, {})[origin(path)] = None
    lines = text.rstrip("\n").split("\n")
    for line, of_line in origins.items():
        comment = "; ".join(of_line)
        lines[line - 1] += f"  # {''.join(letter if letter.isprintable() else ' ' for letter in comment)}"
    return _HEADER + "\n".join(lines) + "\n"


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _leaves(item, (*path, position))
    else:
        yield path
