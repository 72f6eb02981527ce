"""Writes docs/reference.md from the docstrings behind the doors, and the JSON Schema of recipes: `make docs`."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

from mirabelle.cli.init import SCHEMA
from mirabelle.errors import CODES
from mirabelle.recipe.schema import recipe_schema

TARGET = Path(__file__).with_name("reference.md")
FAMILIES = {
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
    ("Data: a folder of class folders, settings under `[task.arguments]`", "sources.datasets.settings", "ImageFolder"),
    ("Data: built-in sets, the same", "sources.datasets.settings", "BuiltInImages"),
    ("Data: a folder of class folders of recordings, the same", "sources.datasets.settings", "SoundFolder"),
    ("Data: a file of texts, the same", "sources.datasets.settings", "TextFile"),
    ("Data: questions about paragraphs in a .json file, the same", "sources.datasets.settings", "QuestionFile"),
    ("Data: a .txt file of running text, the same", "sources.datasets.corpus_settings", "Corpus"),
    ("Data: an .npz file, settings under `[task.arguments]`", "sources.datasets.settings", "Arrays"),
    ("Data: a .csv or .parquet file, settings under `[task.arguments]`", "sources.datasets.settings", "TableFile"),
    (
        "Data: images augmented while a model trains, under `[task]`: `augment = { crop = 4, flip = true }`",
        "task",
        "Augmentation",
    ),
    ("In Python: the whole job", "job", "compress"),
    ("In Python: what a model of sequences writes", "task", "Generation"),
    ("In Python: an answer of a callback", "run", "Stop"),
)
NOT_FOR_RECIPES = {
    "Evidence",
    "Score",
    "Forward",
    "Objective",
    "Term",
    "Execution",
    "KeptZeros",
    "StaticLayer",
    "DynamicLayer",
    "FoldedNorm",
    "TokenLayer",
    "WeightLayer",
}


def reference() -> str:
    """The whole page."""
    parts = ["# Reference", "", "Made by `make docs` from the docstrings; what a recipe can name, and what can go wrong.", ""]
    for family, title in FAMILIES.items():
        room = importlib.import_module(f"mirabelle.{family}")
        parts += [f"## {title}", "", inspect.getdoc(room) or "", ""]
        for name in room.__all__:
            entry = getattr(room, name)
            if inspect.isclass(entry) and name not in NOT_FOR_RECIPES:
                parts += [f"### {family}.{name}", "", "```text", inspect.getdoc(entry) or "", "```", ""]
    for title, room, name in OTHERS:
        entry = getattr(importlib.import_module(f"mirabelle.{room}"), name)
        parts += [f"## {title}", "", "```text", inspect.getdoc(entry) or "", "```", ""]
    parts += ["## Errors", "", "| code | exit status | |", "|---|--:|---|"]
    parts += [f"| {code} | {status} | {title} |" for code, (status, title) in CODES.items()]
    return "\n".join(parts) + "\n"


def schema() -> str:
    """The JSON Schema that is shipped for editors."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
