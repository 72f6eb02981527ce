"""Convert architecture.json of schema 1, which had no order of edits, to the list of edits that gives the same model.

Schema 1 had tables of replaced modules, of slices (composed, so that indices refer to tensors of the dense model) and of
attributes. They were replayed in a fixed order: first the modules that a student brings, then the cut, then the other
replaced modules. With a rewritten program, only quantized layers were inserted after the rewriting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirabelle.model.edits import damaged, table_of_tables

_BEFORE_CUTS = "distill."
_AFTER_REWRITING = "quantize."


def edits_of_schema_1(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The edits of a record of schema 1, as plain data of the current schema.

    Raises:
        UserError: E141 if the data are damaged.
    """
    if "modules" not in data:
        raise damaged('"modules" is missing')
    modules, slices = table_of_tables(data, "modules"), table_of_tables(data, "slices")
    attributes, program = table_of_tables(data, "attributes"), data.get("program", {})
    if not isinstance(program, Mapping):
        raise damaged('"program" is not a table')
    replaced = {name: _replaced(name, kind) for name, kind in modules.items()}
    if program:
        after = [name for name in replaced if replaced[name]["use"].startswith(_AFTER_REWRITING)]
        first = [edit for name, edit in replaced.items() if name not in after]
        middle = [{"edit": "graph.Rewrite", **program, "slices": slices}]
    else:
        after = [name for name in replaced if not replaced[name]["use"].startswith(_BEFORE_CUTS)]
        first = [edit for name, edit in replaced.items() if name not in after]
        middle = [{"edit": "model.Cut", "slices": slices, "attributes": attributes}] if slices or attributes else []
    return [*first, *middle, *(replaced[name] for name in after)]


def _replaced(name: str, kind: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in kind.items() if key != "use"}
    return {"edit": "model.Replace", "module": name, "use": str(kind.get("use", "")), "settings": settings}
