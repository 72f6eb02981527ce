"""Writes docs/reference.md from the docstrings behind the doors, and the JSON Schema of recipes: `make docs`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from mirabelle.cli.init import SCHEMA
from mirabelle.errors import CODES
from mirabelle.model.replacement import REPLACEMENTS
from mirabelle.recipe.schema import recipe_schema
from mirabelle.records.record import argument_descriptions, described

_WIDTH = 124  # characters of a line of the reference
TARGET = Path(__file__).with_name("reference.md")
FAMILIES = {
    "factorize": "Steps that factorize",
    "prune": "Steps that prune",
    "distill": "Steps that distill",
    "quantize": "Steps that quantize",
    "training": "Training",
    "objectives": "Terms of an objective",
    "scores": "Scores",
}
OTHERS = (
    ("Goal", "task", "Goal"),
    ("A schedule of one's own", "records.schedules", "Gradual"),
    ("Data: a folder of class folders, settings under `[task.arguments]`", "sources.datasets.image_settings", "ImageFolder"),
    ("Data: a folder or a range of .tar files, the same", "sources.datasets.image_settings", "TarShards"),
    ("Data: built-in sets, the same", "sources.datasets.image_settings", "BuiltInImages"),
    ("Data: a folder of class folders of recordings, the same", "sources.datasets.settings", "SoundFolder"),
    ("Data: a file of texts, the same", "sources.datasets.text_settings", "TextFile"),
    ("Data: texts with a tag for each word, the same", "sources.datasets.text_settings", "TokenFile"),
    ("Data: pairs of texts, the same", "sources.datasets.text_settings", "SequenceFile"),
    ("Data: questions about paragraphs in a .json file, the same", "sources.datasets.text_settings", "QuestionFile"),
    ("Data: a .txt file of running text, the same", "sources.datasets.corpus_settings", "Corpus"),
    ("Data: an .npz file or a folder of IDX files, settings under `[task.arguments]`", "sources.datasets.settings", "Arrays"),
    ("Data: a .csv, .data or .parquet file, settings under `[task.arguments]`", "sources.datasets.settings", "TableFile"),
    (
        "Data: images augmented while a model trains, under `[task]`: `augment = { crop = 4, flip = true }`",
        "task",
        "Augmentation",
    ),
    ("In Python: the whole job", "job", "compress"),
    ("In Python: what a model of sequences writes", "task", "Generation"),
    ("In Python: an answer of a callback", "run", "Stop"),
    ("In Python: a program for other runtimes", "runtime.program", "exported_program"),
)
CONTRACTS = {"Evidence", "Score", "Forward", "Objective", "Term", "Execution", "KeptZeros", "Prepared", "JoinsTraining"}


def reference() -> str:
    """The whole page."""
    parts = ["# Reference", "", "Made by `make docs` from the docstrings; what a recipe can name, and what can go wrong.", ""]
    for family, title in FAMILIES.items():
        room = importlib.import_module(f"mirabelle.{family}")
        parts += [f"## {title}", "", inspect.getdoc(room) or "", ""]
        for name in room.__all__:
            entry = getattr(room, name)
            if inspect.isclass(entry) and name not in CONTRACTS and not REPLACEMENTS.is_member(entry):
                parts += [f"### {family}.{name}", "", "```text", documentation(entry), "```", ""]
    for title, room, name in OTHERS:
        entry = getattr(importlib.import_module(f"mirabelle.{room}"), name)
        parts += [f"## {title}", "", "```text", documentation(entry), "```", ""]
    parts += ["## Errors", "", "| code | exit status | |", "|---|--:|---|"]
    parts += [f"| {code} | {status} | {title} |" for code, (status, title) in CODES.items()]
    return "\n".join(parts) + "\n"


def documentation(entry: Any) -> str:
    """A docstring; that of a record with the descriptions of inherited settings at the end of its section "Args"."""
    text = inspect.getdoc(entry) or ""
    names = [field.name for field in dataclasses.fields(entry)] if dataclasses.is_dataclass(entry) else []
    own = {name for described_names, _ in argument_descriptions(entry.__doc__ or "") for name in described_names}
    inherited = [words for name in names if name not in own and (words := described(entry, name))]
    if not inherited:
        return text
    wrap = textwrap.TextWrapper(_WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
    added = "\n".join(wrap.fill(words) for words in inherited)
    head, title, section = text.partition("\nArgs:\n")
    if title:
        arguments, gap, rest = section.partition("\n\n")
        return f"{head}{title}{arguments}\n{added}{gap}{rest}"
    first, title, rest = re.split(r"(\n\n(?:Raises|Example|Source):|\Z)", text, maxsplit=1)
    return f"{first}\n\nArgs:\n{added}{title}{rest}"


def schema() -> str:
    """The JSON Schema that is shipped for editors."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
