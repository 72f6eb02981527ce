"""`--set a.b=value`: settings on the command line that override those of a recipe."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.errors import Path, UserError, raise_all


@dataclass(frozen=True)
class Overrides:
    """Values that override those of a recipe, by path.

    Args:
        settings: path of a value -> (text of the option for messages, value).

    Example:
        >>> overrides = Overrides.of(["step.1.train.lr=1e-3", "goal.size=5%"])
        >>> overrides.applied({"step": [{"use": "prune.Weights"}]})
        {'step': [{'use': 'prune.Weights', 'train': {'lr': 0.001}}], 'goal': {'size': '5%'}}
    """

    settings: Mapping[Path, tuple[str, Any]]

    @staticmethod
    def of(settings: Sequence[str]) -> Overrides:
        """Parse settings of the form "a.b=value".

        Keys are joined by dots, and steps count from 1. The value is read as TOML; if it is not valid TOML, it is a string.

        Raises:
            UserError: E100 if a setting has no key or no "=".
        """
        found: dict[Path, tuple[str, Any]] = {}
        mistakes = []
        for setting in settings:
            keys, equals, value = setting.partition("=")
            names = [name.strip() for name in keys.split(".")]
            if not equals or not all(names):
                mistakes.append(UserError("E100", f'--set takes key=value; got "{setting}"', "write --set step.1.sparsity=0.9"))
                continue
            path = tuple(int(name) - 1 if name.isascii() and name.isdecimal() else name for name in names)
            found[path] = (f"--set {setting}", _value(value))
        raise_all(mistakes)
        return Overrides(found)

    def places(self) -> dict[Path, str]:
        """Path of each setting, and of each value inside it -> the text of the option, for messages."""
        return {(*path, *inner): words for path, (words, value) in self.settings.items() for inner in ((), *_paths_in(value))}

    def applied(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the data with the settings applied.

        Raises:
            UserError: E100 if a path leads through a value that is not a table, or to a step that does not exist.
        """
        result: dict[str, Any] = copy.deepcopy(dict(data))
        for path, (words, value) in self.settings.items():
            parent: Any = result
            for position, key in enumerate(path[:-1]):
                parent = _item(parent, key, words, path[:position])
            _item(parent, path[-1], words, path[:-1], value)
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


def _item(parent: Any, key: str | int, words: str, path: Path, value: Any = None) -> Any:
    """The item of a table or list, after setting it to `value` if one is given; a missing table is created.

    Args:
        parent: the table or list.
        key: of the item.
        words: text of the option, for messages.
        path: of `parent`.
        value: new value; None to only read the item.
    """
    if isinstance(key, int):
        if not isinstance(parent, list) or not 0 <= key < len(parent):
            count = len(parent) if isinstance(parent, list) else 0
            what = path[-1] if path else "number"
            raise UserError("E100", f"{words}: there is no {what} {key + 1}; there are {count}", "steps count from 1")
    elif not isinstance(parent, dict):
        raise UserError("E100", f'{words}: "{key}" is not in a table', "give the whole path, such as step.1.sparsity")
    elif value is None:
        parent.setdefault(key, {})
    if value is not None:
        parent[key] = value
    return parent[key]
