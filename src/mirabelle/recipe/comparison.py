"""Read a comparison file (TOML): a model, data, budgets, and the techniques or recipes to compare."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mirabelle import records
from mirabelle.errors import UserError, did_you_mean, gathered, raise_all
from mirabelle.recipe.file import SOURCES, Reading, SourcesFile, opened
from mirabelle.recipe.named_sources import check_sources
from mirabelle.recipe.recipe import Recipe
from mirabelle.records.record import Count, record
from mirabelle.records.trust import names_of
from mirabelle.step import Step
from mirabelle.task.goal import limit_of
from mirabelle.training.settings import Training

KEYS = (*SOURCES, "compare", "candidate")
LimitKind = Literal["size", "macs", "latency"]
_NAME = re.compile(r"[\w(][\w .+%()-]*[\w%)]|\w")
_RESERVED = ("teacher", "amounts", "start", "validation", "test")  # what else lies in the folder of a comparison
KINDS: tuple[LimitKind, ...] = ("size", "macs", "latency")
TECHNIQUES = ("distill", "prune", "quantize", "factorize", "share")
Limits = tuple[str | float, ...]


@record
class CompareTable:
    """`[compare]`: what is compared, at which budgets.

    Args:
        techniques: names of techniques, joined by "+" where one recipe has several: "distill", "prune", "quantize",
            "factorize", "share", "prune + share", "distill + prune".
        size: budgets of the packed file: "40 kB", or "10%" of the weights in float32.
        macs: budgets of multiply-accumulate operations for one sample: "2.3M", or "50%" of those of the model.
        latency: budgets of milliseconds of a call for one sample in ONNX Runtime: "0.8 ms", or "50%" of those of the model.
        train: the training of each candidate: all trainings of its steps together are as long as this one. Steps of techniques
            have its other settings, too; after a quantization the learning rate is a tenth.
        seeds: number of seeds with which each candidate is run.
        judge: the split on which candidates are judged. Choose on "validation"; "test" is for a comparison whose result no
            further choice depends on.

    Raises:
        UserError: E106 for a technique that is not known; E111 without a budget, or for techniques that exclude each other;
            E113 for a budget that cannot be read.
    """

    techniques: tuple[str, ...] = ()
    size: Limits = ()
    macs: Limits = ()
    latency: Limits = ()
    train: Training
    seeds: Count = 3
    judge: Literal["validation", "test"] = "validation"

    def __post_init__(self) -> None:
        mistakes: list[UserError] = []
        for position, name in enumerate(self.techniques):
            with gathered(mistakes, "techniques", position):
                techniques_in(name)
        for kind in KINDS:
            for position, limit in enumerate(getattr(self, kind)):
                with gathered(mistakes, kind, position):
                    limit_of(kind, limit, 1.0, where="")
            values = [limit_of(kind, limit, 1.0, where="") for limit in getattr(self, kind)] if not mistakes else []
            shares = [isinstance(limit, str) and limit.strip().endswith("%") for limit in getattr(self, kind)]
            if len(set(zip(values, shares, strict=False))) < len(values):
                mistakes.append(UserError("E111", f"{kind} names the same budget twice", "leave one out", path=(kind,)))
        parts = [frozenset(name.replace("+", " ").split()) for name in self.techniques]
        if len(set(parts)) < len(parts):
            mistakes.append(UserError("E111", "techniques names the same twice", "leave one out", path=("techniques",)))
        raise_all(mistakes)
        if not any(getattr(self, kind) for kind in KINDS):
            message = "[compare] needs a budget: size, macs or latency"
            raise UserError("E111", message, 'for example: size = ["10%", "5%"]')


def techniques_in(name: str) -> list[str]:
    """The techniques in a name such as "prune + share".

    Raises:
        UserError: E106 for one that is not known; E111 if one is named twice, or two exclude each other.
    """
    parts = [part.strip() for part in name.split("+")]
    for part in parts:
        if part not in TECHNIQUES:
            raise UserError("E106", f'no technique is called "{part}"', did_you_mean(part, TECHNIQUES))
    if len(set(parts)) < len(parts) or {"quantize", "share"} <= set(parts):
        message = f'"{name}" names the same technique twice, or quantize and share, of which a layer can have one'
        raise UserError("E111", message, 'for example: "prune + share"')
    return parts


@record
class Vary:
    """`vary` of a candidate: the setting that is chosen so that its result meets the budget.

    Args:
        setting: such as "step.1.sparsity"; steps count from 1.
        least: the value that compresses least.
        most: the value that compresses most. If both are whole numbers in the file, only whole numbers are tried.
    """

    setting: str
    least: int | float
    most: int | float


@dataclass(frozen=True)
class CandidateRecipe:
    """A recipe to compare.

    Args:
        name: of the candidate.
        tables: its steps as plain data.
        vary: the setting that is chosen by the budget; None if the steps are compared as they are.
    """

    name: str
    tables: Sequence[Mapping[str, Any]]
    vary: Vary | None = None

    def steps(self, amount: float) -> Sequence[Step]:
        """The steps with the varied setting at a part of the way from its least to its most."""
        return Recipe.from_data(self._with(amount)).steps

    def _with(self, amount: float) -> list[dict[str, Any]]:
        tables = copy.deepcopy([dict(table) for table in self.tables])
        if self.vary is None:
            return tables
        least, most = self.vary.least, self.vary.most
        value = least + amount * (most - least)
        place, key = self._place(tables)
        place[key] = round(value) if isinstance(least, int) and isinstance(most, int) else value
        return tables

    def _place(self, tables: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """The table and the key of the varied setting."""
        assert self.vary is not None, "a setting is varied"
        first, _, rest = self.vary.setting.partition(".")
        number, *keys = rest.split(".")
        position = int(number) - 1 if number.isascii() and number.isdecimal() else -1
        place: Any = tables[position] if first == "step" and keys and 0 <= position < len(tables) else None
        for key in keys[:-1]:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            message = f'"{self.vary.setting}" is no setting of a step of this candidate'
            raise UserError("E111", message, 'write, for example, setting = "step.1.sparsity"', path=("setting",))
        return place, keys[-1]


@record
class _CandidateTable:
    name: Annotated[str, Field(min_length=1)]
    step: tuple[Any, ...]
    vary: Vary | None = None


@dataclass(frozen=True, kw_only=True)
class ComparisonFile(SourcesFile):
    """A comparison file that has been read and is valid."""

    table: CompareTable
    candidates: tuple[CandidateRecipe, ...]

    @property
    def _keys(self) -> tuple[str, ...]:
        return KEYS


def read_comparison(path: Path, settings: Sequence[str] = (), *, data_folder: Path | None = None) -> ComparisonFile:
    """Read and check a comparison file.

    Args:
        path: of the file.
        settings: values that replace those of the file, such as "compare.seeds=5".
        data_folder: folder of "data:PATH" in names of models and weights.

    Raises:
        UserError: as `read_recipe`.
    """
    read = opened(path, settings, KEYS, data_folder)
    with names_of(path.parent, trust=True):
        parts = read.sources(path)
        table = read.part(lambda tables: records.build(CompareTable, tables.get("compare", {}), "compare"), "compare")
        candidates = read.part(lambda tables: _candidates(tables.get("candidate", [])), "candidate")
    check_sources({key: read.data[key] for key in KEYS if key in read.data}, (), read.mistakes)
    read.end()
    assert table is not None, "what could not be read is a mistake"
    assert candidates is not None, "what could not be read is a mistake"
    names = [*table.techniques, *(one.name for one in candidates)]
    with places_of(read, "compare", "techniques"):
        if len(names) < 2:  # noqa: PLR2004 (a comparison has two sides)
            raise UserError(
                "E111",
                f"a comparison needs two candidates or more; got {names}",
                'for example: techniques = ["prune", "distill"]',
            )
        check_names(names)
    return ComparisonFile(table=table, candidates=candidates, **parts)


def check_names(names: Iterable[str]) -> None:
    """Check that candidates have names that differ, and that can be those of folders.

    Raises:
        UserError: E110 for a name that cannot; E111 for two that are the same but for the case of letters.
    """
    known: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            remedy = f"use letters, digits, spaces and . + % - ( ), and none of {', '.join(_RESERVED)}"
            raise UserError("E110", f"a candidate cannot be called {name!r}: its runs have a folder of this name", remedy)
        if name.lower() in known:
            message = f'"{known[name.lower()]}" and "{name}" have the same name'
            raise UserError("E111", message, "give each candidate its own name")
        known[name.lower()] = name


@contextmanager
def places_of(read: Reading, *path: str) -> Iterator[None]:
    """A context that shows errors at a place of the file."""
    try:
        yield
    except UserError as error:
        raise error.at(read.places.of(path)) from None


def _candidates(data: Any) -> tuple[CandidateRecipe, ...]:
    if not isinstance(data, list):
        raise UserError("E103", f'"candidate" must be a list of tables; got {data!r}', "write [[candidate]], with two brackets")
    mistakes: list[UserError] = []
    found: list[CandidateRecipe] = []
    for position, given in enumerate(data):
        with gathered(mistakes, position):
            table = records.build(_CandidateTable, given, "candidate")
            candidate = CandidateRecipe(table.name, table.step, table.vary)
            with gathered(mistakes, position, "step"):
                steps = Recipe.from_data(list(table.step)).steps
                if not any(getattr(step, "train", None) for step in steps):
                    message = f'candidate "{table.name}" has no training, and all are trained equally long'
                    raise UserError("E111", message, "give one of its steps `train`")
                with gathered(mistakes, position, "vary"):
                    candidate.steps(0.0)
                    candidate.steps(1.0)
            found.append(candidate)
    raise_all(mistakes)
    return tuple(found)
