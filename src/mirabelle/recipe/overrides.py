"""`--set a.b=value`: settings on the command line that take the place of what a recipe says."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.errors import Path, UserError, raise_all


@dataclass(frozen=True)
class Overrides:
    """Settings by path.

    Example:
        >>> overrides = Overrides.of(["step.1.train.lr=1e-3", "goal.size=5%"])
        >>> overrides.applied({"step": [{"use": "prune.Weights"}]})
        {'step': [{'use': 'prune.Weights', 'train': {'lr': 0.001}}], 'goal': {'size': '5%'}}
    """

    settings: Mapping[Path, tuple[str, Any]]

    @staticmethod
    def of(settings: Sequence[str]) -> Overrides:
        """From "a.b=value": keys joined by dots, steps counted from 1, the value as TOML, or else as a string.

        Raises:
            UserError: E100 when there is no key or no "=".
        """
        found: dict[Path, tuple[str, Any]] = {}
        mistakes = []
        for setting in settings:
            keys, equals, value = setting.partition("=")
            names = [name.strip() for name in keys.split(".")]
            if not equals or not all(names):
                mistakes.append(UserError("E100", f'--set takes key=value; got "{setting}"', "--set step.1.sparsity=0.9, say"))
                continue
            path = tuple(int(name) - 1 if name.isascii() and name.isdecimal() else name for name in names)
            found[path] = (f"--set {setting}", _value(value))
        raise_all(mistakes)
        return Overrides(found)

    def places(self) -> dict[Path, str]:
        """What messages call the place of each setting, and of everything inside it."""
        return {(*path, *inner): words for path, (words, value) in self.settings.items() for inner in ((), *_paths_in(value))}

    def applied(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data with the settings in them; the given data stay as they are.

        Raises:
            UserError: E100 when a path leads through something that is no table, or to a step that is not there.
        """
        result: dict[str, Any] = copy.deepcopy(dict(data))
        for path, (words, value) in self.settings.items():
            holder: Any = result
            for position, key in enumerate(path[:-1]):
                holder = _inside(holder, key, words, path[:position])
            _inside(holder, path[-1], words, path[:-1], value)
        return result


def _paths_in(value: Any) -> Iterator[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (key,)
        yield from ((key, *path) for path in _paths_in(item))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _inside(holder: Any, key: str | int, words: str, led: Path, value: Any = None) -> Any:
    """What `holder`, to which `led` leads, has at `key`, set to `value` if one is given; a table that is not there is made."""
    if isinstance(key, int):
        if not isinstance(holder, list) or not 0 <= key < len(holder):
            count = len(holder) if isinstance(holder, list) else 0
            what = led[-1] if led else "number"
            raise UserError("E100", f"{words}: there is no {what} {key + 1}; there are {count}", "steps count from 1")
    elif not isinstance(holder, dict):
        raise UserError("E100", f'{words}: "{key}" does not stand in a table', "name the keys that lead to it: step.1.sparsity")
    elif value is None:
        holder.setdefault(key, {})
    if value is not None:
        holder[key] = value
    return holder[key]
