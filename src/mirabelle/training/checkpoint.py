"""Checkpoints: the whole state of a training in one safetensors file.

A training that is killed at any moment loses a few seconds, and its result is the same to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.records.earlier import ADDED_TO_TRAININGS
from mirabelle.run import files

if TYPE_CHECKING:
    from mirabelle.objectives.objective import Objective
    from mirabelle.training.settings import Training

_COST = 0.01  # largest fraction of the time spent on writing checkpoints
_LEAST_SECONDS = 1.0
_BYTES_PER_SECOND = 5e8  # of digest, copy and disk together, before one has been written


CHECKPOINT = "checkpoint.safetensors"  # the name of the file


@dataclass
class Numbers:
    """The progress of a training, as plain data."""

    step: int = 0
    loss: float = 0.0  # sum over the steps of the current epoch
    seconds: float = 0.0
    best: float = -math.inf
    since_best: int = 0
    stopped: bool = False

    def to_data(self) -> dict[str, Any]:
        """The fields, with None in the place of an infinite metric, which JSON lacks."""
        return {**dataclasses.asdict(self), "best": self.best if math.isfinite(self.best) else None}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Numbers:
        """The progress that `to_data` returned."""
        best = data["best"]
        return Numbers(**{**data, "best": -math.inf if best is None else best})


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints in a folder and in its subfolders, with the subfolders that are then empty."""
    for path in checkpoints_in(folder):
        path.unlink()
        for parent in path.parents:
            if parent == folder or any(parent.iterdir()):
                break
            parent.rmdir()


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder and in its subfolders."""
    return sorted(path for path in folder.rglob(CHECKPOINT) if path.is_file())


def seconds_in(folder: Path) -> float:
    """The seconds that the trainings with checkpoints in a folder have taken so far.

    A checkpoint may contain the seconds of others: its "instead_of" names the subfolders that it replaces.

    Raises:
        UserError: E141 if a checkpoint is damaged.
    """
    numbers = {path: written[1] for path in checkpoints_in(folder) if (written := Checkpoint(path).read()) is not None}
    replaced = {folder / name for one in numbers.values() for name in one.get("instead_of", ())}
    return sum(float(one.get("seconds", 0.0)) for path, one in numbers.items() if not replaced & set(path.parents))


class Checkpoint:
    """A checkpoint file of groups of tensors and plain data, written so rarely that it takes at most 1 % of the time.

    Args:
        path: the file.
        size: about how many bytes it will have, from which the time of the first one is estimated.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self._written_at = time.monotonic()
        self._pause = max(_LEAST_SECONDS, size / _BYTES_PER_SECOND / _COST)

    @property
    def due(self) -> bool:
        return time.monotonic() - self._written_at >= self._pause

    def write(self, groups: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        begin = time.monotonic()
        tensors = {f"{group}/{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
        files.write_tensors(self.path, tensors, {"numbers": json.dumps(numbers)})
        self._written_at = time.monotonic()
        self._pause = max(_LEAST_SECONDS, (self._written_at - begin) / _COST)

    def read(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """(groups of tensors, plain data) from the file; None without a file.

        Raises:
            UserError: E141 if the file is damaged, or is no checkpoint.
        """
        if not self.path.is_file():
            return None
        tensors, metadata = files.read_tensors(self.path)
        if "numbers" not in metadata:
            raise UserError("E141", f"{self.path} is no checkpoint", "remove it to train this step again")
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        return groups, json.loads(metadata["numbers"])


def settings_of(training: Training, objective: Objective) -> dict[str, Any]:
    """What a checkpoint says of its training, as plain data."""
    fields = {one.name: getattr(training, one.name) for one in dataclasses.fields(training) if one.name != "objective"}
    return {**fields, "objective": [type(term).__name__ for _, term in objective.terms]}


def in_todays_settings(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings in a checkpoint, maybe of an earlier version, which lacks those that were added since."""
    return None if settings is None else {"micro_batch": None, **ADDED_TO_TRAININGS, **settings}
