"""The amount with which a recipe meets a limit of bytes, operations or milliseconds, found without training."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mirabelle.artifact.mira import pack
from mirabelle.errors import UserError
from mirabelle.inspection.measure import multiply_accumulates, onnx_file
from mirabelle.job.techniques import OpenRecipe
from mirabelle.model.state import copied, fingerprint, tensors_of_module
from mirabelle.recipe.comparison import LimitKind
from mirabelle.run import files
from mirabelle.run.files import length_of_tensors
from mirabelle.run.run import Run
from mirabelle.runtime.runtime import default_runtime, time_alone
from mirabelle.step import Step, folder_of, step_to_data
from mirabelle.task.goal import limit_of
from mirabelle.task.task import Task
from mirabelle.training import with_replaced_model_as_teacher

_TURNS = 14  # by interpolation and by halving, in turn
_CLOSE = 0.02  # share of what is aimed at by which a cost may be below it
_AIM = {"size": 0.97, "macs": 1.0, "latency": 1.0}  # share of the limit: trained weights take up to 5 % more bytes than before
_SAFELY = 0.997  # of what a limit leaves for the preview, once it is known how much a training adds
_SAME = 1e-4  # amounts that are so close are the same
_EDGE = 0.05
UNITS = {"size": "bytes", "macs": "multiply-accumulates", "latency": "ms"}


@dataclass(frozen=True)
class Limit:
    """A limit that every candidate is to meet.

    Args:
        kind: "size", bytes of the packed file; "macs", multiply-accumulates for one sample; or "latency", milliseconds of a
            call for one sample in ONNX Runtime.
        asked: as it was given, such as "10%", or "40 kB".
        value: in its unit.
    """

    kind: LimitKind
    asked: str
    value: float

    @staticmethod
    def of(kind: LimitKind, asked: str | float, model: nn.Module, task: Task) -> Limit:
        """The limit for a model, to whose cost a share refers: its weights in float32, its operations, or its latency.

        Raises:
            UserError: E113 if the limit cannot be read.
        """
        whole = 1.0
        if isinstance(asked, str) and asked.strip().endswith("%"):
            whole = float(length_of_tensors(tensors_of_module(model))) if kind == "size" else cost_of(kind, model, task)
        return Limit(kind, str(asked).strip(), limit_of(kind, asked, whole, where=""))

    @staticmethod
    def kept(kind: LimitKind, asked: str | float, model: nn.Module, task: Task, path: Path) -> Limit:
        """The limit from a file, or that for a model, which is kept there: what was measured is not measured again."""
        known: dict[str, float] = files.read_json(path) if path.is_file() else {}
        key = f"{kind} {asked} of {fingerprint(model)}"
        if key not in known:
            path.parent.mkdir(parents=True, exist_ok=True)
            known[key] = Limit.of(kind, asked, model, task).value
            files.write_json(path, known)
        return Limit(kind, str(asked).strip(), known[key])

    @property
    def in_words(self) -> str:
        """Such as "10% of the bytes", "40 kB" or "0.8 ms"."""
        of = {"size": "of the bytes", "macs": "of the operations", "latency": "of the milliseconds"}
        if self.asked.endswith("%"):
            return f"{self.asked} {of[self.kind]}"
        return self.asked if not self.asked[-1:].isdigit() else f"{self.value:,.6g} {UNITS[self.kind]}"


def cost_of(kind: LimitKind, model: nn.Module, task: Task) -> float:
    """The bytes of the packed file of a model, its multiply-accumulates, or its milliseconds."""
    if kind == "macs":
        return float(multiply_accumulates(model, task.example()))
    onnx = onnx_file(model, task)
    if kind == "size":
        return float(len(pack(onnx)))
    session = default_runtime().load(onnx, torch.get_num_threads())
    return float(time_alone(session, task.example().inputs).median)


@dataclass(frozen=True)
class Fitted:
    """The steps of a recipe with the amount that meets a limit.

    Args:
        steps: of the recipe.
        amount: about the smallest that meets it, in [0, 1].
        cost: expected without a training.
    """

    steps: Sequence[Step]
    amount: float
    cost: float


def fitted(recipe: OpenRecipe, limit: Limit, model: nn.Module, task: Task, path: Path, *, grown: float | None = None) -> Fitted:
    """About the smallest amount with which the previewed model is within a limit, and not far below it.

    It is found by previews and kept in a file. Bytes are fitted to 97 % of their limit, as trained weights mostly take more.

    Args:
        recipe: with an open amount; a fixed one is taken as it is.
        limit: to meet.
        model: to which the recipe is applied.
        task: of the model.
        path: of the file.
        grown: by which factor a training has made this recipe's bytes more than its preview; the file is written anew then.

    Raises:
        UserError: E114 if the largest amount is not within the limit, with the cost that it reaches; E150 if the file is of
            another comparison; and the errors of previews.
    """
    asked = {
        "limit": {"kind": limit.kind, "asked": limit.asked, "value": limit.value},
        "model": fingerprint(model),
        "least": [step_to_data(step) for step in recipe.steps(0.0)],
        "most": [step_to_data(step) for step in recipe.steps(1.0)],
    }
    if path.is_file() and grown is None:
        kept = files.read_json(path)
        if kept["asked"] != json.loads(json.dumps(asked)):
            message = f"{path.parent} contains another comparison"
            raise UserError("E150", message, "repeat it with the same file, or choose another --out")
    else:
        most = limit.value / (grown or 1.0)
        aim = _AIM[limit.kind] * limit.value if grown is None else _SAFELY * most
        amount, cost = _found(recipe, limit.kind, (aim, most), lambda steps: previewed(steps, model, task), task)
        kept = {"amount": amount, "cost": cost}
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"asked": asked, **kept})
    if kept["amount"] is None:
        message = f"{recipe.name} reaches {kept['cost']:,.6g} {UNITS[limit.kind]} at the least; asked are {limit.value:,.6g}"
        raise UserError("E114", message, f"allow at least {kept['cost']:,.6g}, or leave it out at this budget")
    return Fitted(recipe.steps(kept["amount"]), kept["amount"], kept["cost"])


def _found(
    recipe: OpenRecipe, kind: LimitKind, bounds: tuple[float, float], preview: Callable[[Sequence[Step]], nn.Module], task: Task
) -> tuple[float | None, float]:
    """(the amount, its cost); (None, the least cost) if there is none.

    Args:
        recipe: with an open amount.
        kind: of the cost.
        bounds: what is aimed at, and the most; a cost between is accepted where no amount reaches less, or none comes close.
        preview: makes a model of steps.
        task: of the model.
    """
    aim, limit = bounds
    known: dict[str, float] = {}  # several amounts may give the same steps

    def cost(amount: float) -> float:
        steps = recipe.steps(amount)
        key = json.dumps([step_to_data(step) for step in steps])
        if key not in known:
            known[key] = cost_of(kind, preview(steps), task)
        return known[key]

    least = cost(0.0)
    if recipe.fixed or least <= aim:
        return (0.0 if least <= limit else None), least
    most = cost(1.0)
    if most > aim:
        amount, reached = (1.0, most) if most < least else (0.0, least)
        return (amount if reached <= limit else None), reached
    low, above, high, reached = 0.0, least, 1.0, most
    for turn in range(_TURNS):
        if reached >= (1 - _CLOSE) * aim or high - low < _SAME:
            break
        middle = low + (high - low) * (_interpolated(above, reached, aim) if turn % 2 == 0 else 0.5)
        found = cost(middle)
        if found > aim:
            low, above = middle, found
        else:
            high, reached = middle, found
    coarse = reached < (1 - _CLOSE) * aim  # no amount is close
    return (low, above) if coarse and above <= limit else (high, reached)


def _interpolated(above: float, below: float, aim: float) -> float:
    """Where between two amounts the cost is as aimed at, if the logarithm of the cost falls evenly: from 0.05 to 0.95."""
    if below <= 0 or above <= below:
        return 0.5
    share = math.log(above / (aim * (1 - _CLOSE / 2))) / math.log(above / below)
    return min(max(share, _EDGE), 1 - _EDGE)


def previewed(steps: Sequence[Step], model: nn.Module, task: Task) -> nn.Module:
    """The model after the steps as their previews make it: shapes and sparsity without any training."""
    found = copied(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        for position, step in enumerate(steps, start=1):
            under = with_replaced_model_as_teacher([step], found, task)
            found = step.preview(found, under, run.within(folder_of(position, step))).model
    return found
