"""Line and column of each key and each value in a TOML text, for error messages.

The text must be well-formed: `tomllib` has read it before.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mirabelle.errors import Path, Place

if TYPE_CHECKING:
    from tree_sitter import Node

_KEYS = ("bare_key", "quoted_key", "dotted_key")
_TABLES = ("table", "table_array_element")


class TomlPositions:
    """The positions of the keys and values in a TOML text.

    Args:
        text: well-formed TOML.
        file: name of the file in messages.
        elsewhere: paths of values that were set outside the file, such as by --set, with the text for messages.

    Example:
        >>> positions = TomlPositions('seed = 1\\n[[step]]\\nuse = "x"\\n', "recipe.toml")
        >>> str(positions.of(("step", 0, "use"), key=True)), str(positions.of(("step", 0, "use")))
        ('recipe.toml:3:1', 'recipe.toml:3:7')
    """

    def __init__(self, text: str, file: str, elsewhere: Mapping[Path, str] | None = None) -> None:
        import tree_sitter
        import tree_sitter_toml

        self._file = file
        self._lines = text.split("\n")  # not splitlines: strings may contain other line separators
        self._elsewhere = dict(elsewhere or {})
        self._tables = {path[:length] for path in self._elsewhere for length in range(len(path))}
        parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
        self._nodes: dict[Path, tuple[Node, Node]] = {}
        for path, nodes in _pairs(parser.parse(text.encode()).root_node):
            if not any(path[:length] in self._elsewhere for length in range(1, len(path) + 1)):
                self._nodes.setdefault(path, nodes)  # for an array of tables: its first header

    def of(self, path: Path, *, key: bool = False) -> Place:
        """The position of the value at `path`, or of its key; if it is not in the text, of the innermost enclosing table."""
        while path:
            if path in self._elsewhere:
                return Place(self._elsewhere[path])
            if path in self._nodes:
                return self._place(self._nodes[path][0 if key else 1])
            if path in self._tables:  # a table that exists only because a value in it was set outside the file
                return Place(next(words for inner, words in self._elsewhere.items() if inner[: len(path)] == path))
            path, key = path[:-1], True
        return Place(self._file, 1, 1, self._lines[0] if self._lines else "")

    def given(self, path: Path) -> Place | None:
        """The position at which the value at `path`, or an array that contains it, was written; None if it was not."""
        while path:
            if path in self._elsewhere:
                return Place(self._elsewhere[path]) if path not in self._tables else None
            if path in self._nodes:
                key, value = self._nodes[path]
                return self._place(value) if key is not value and value.type != "inline_table" else None
            path = path[:-1]
        return None

    def last_line(self, path: Path) -> int | None:
        """The line (from 1) on which the value at `path` ends; None if the text does not contain it."""
        return self._nodes[path][1].end_point[0] + 1 if path in self._nodes else None

    def _place(self, node: Node) -> Place:
        row, offset = node.start_point
        line = self._lines[row]
        column = len(line.encode()[:offset].decode()) + 1
        last = node.end_point[1] if node.end_point[0] == row else len(line.encode())
        return Place(self._file, row + 1, column, line, len(line.encode()[offset:last].decode()))


def _pairs(document: Node) -> Iterator[tuple[Path, tuple[Node, Node]]]:
    """(path, (node of the key, node of the value)) of all keys in the text."""
    counts: dict[Path, int] = {}
    for node in document.named_children:
        if node.type == "pair":
            yield from _pair(node, ())
        elif node.type in _TABLES:
            key = next(child for child in node.named_children if child.type in _KEYS)
            path = _table_path(_names(key), counts, is_element=node.type == "table_array_element")
            if path and isinstance(path[-1], int):
                yield path[:-1], (key, key)
            yield path, (key, key)
            for child in node.named_children:
                if child.type == "pair":
                    yield from _pair(child, path)


def _table_path(names: list[str], counts: dict[Path, int], *, is_element: bool) -> Path:
    """The path of a table's header; the name of an array of tables refers to its last element."""
    path: Path = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if is_element and position == len(names) - 1:
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = (*path, counts[path] - 1)
    return path


def _pair(node: Node, prefix: Path) -> Iterator[tuple[Path, tuple[Node, Node]]]:
    key, value = node.named_children[0], [child for child in node.named_children if child.type != "comment"][-1]
    names = _names(key)
    for length in range(1, len(names)):
        yield (*prefix, *names[:length]), (key, key)
    yield from _value((*prefix, *names), key, value)


def _value(path: Path, key: Node, value: Node) -> Iterator[tuple[Path, tuple[Node, Node]]]:
    yield path, (key, value)
    if value.type == "inline_table":
        for child in value.named_children:
            if child.type == "pair":
                yield from _pair(child, path)
    elif value.type == "array":
        elements = [child for child in value.named_children if child.type != "comment"]
        for position, child in enumerate(elements):
            yield from _value((*path, position), child, child)


def _names(key: Node) -> list[str]:
    """The parts of a dotted key, without quotes."""
    if key.type == "dotted_key":
        return [name for child in key.named_children for name in _names(child)]
    text = (key.text or b"").decode()
    return list(tomllib.loads(f"{text} = 0")) if key.type == "quoted_key" else [text]
