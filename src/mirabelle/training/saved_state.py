"""What a checkpoint holds of a training: the same, with whole tensors, however many processes compute it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mirabelle.model.state import load_tensors, tensors_of_module
from mirabelle.run.process_group import agreed
from mirabelle.training.checkpoint import Checkpoint, Numbers, in_todays_settings
from mirabelle.training.contracts import Control, check_same_training
from mirabelle.training.data_parallel import Processes
from mirabelle.training.gradient_step import GradientStep
from mirabelle.training.optimizer import load_optimizer_tensors, optimizer_tensors
from mirabelle.training.shards import placed_as, whole_for_first

if TYPE_CHECKING:
    from mirabelle.objectives.bound_objective import BoundObjective

_TIMES_IN_CHECKPOINT = 4  # a weight: itself, that of the best epoch, and two moments of the optimizer


class SavedState:
    """The state of a training, which is written to a checkpoint and read from it.

    Args:
        path: of the checkpoint.
        processes: that compute it; all of them write and read together, the first uses the file.
        model: in training, maybe with divided weights.
        loss: bound to it.
        optimizer: of both.
        gradient_step: with the scale of losses.
        controls: of the training.
        settings: what the training is, as plain data.
    """

    def __init__(
        self,
        path: Path,
        processes: Processes,
        *,
        model: nn.Module,
        loss: BoundObjective,
        optimizer: torch.optim.Optimizer,
        gradient_step: GradientStep,
        controls: Sequence[Control],
        settings: Mapping[str, Any],
    ) -> None:
        self.path, self._processes = path, processes
        self._model, self._loss, self._optimizer, self._gradient_step = model, loss, optimizer, gradient_step
        self._controls, self._settings = controls, settings
        size = sum(part.nbytes for part in (*model.parameters(), *loss.parameters()))
        self._checkpoint = Checkpoint(path, _TIMES_IN_CHECKPOINT * size)

    @property
    def due(self) -> bool:
        """Whether the first process should write a checkpoint now."""
        return self._processes.agreed(self._checkpoint.due)

    def write(self, numbers: Numbers, best: Mapping[str, Tensor]) -> None:
        """Write the state.

        Args:
            numbers: the progress.
            best: the best weights so far, as this process holds them.
        """
        groups = {
            "model": tensors_of_module(self._model),
            "objective": tensors_of_module(self._loss),
            "optimizer": optimizer_tensors(self._optimizer),
            "scaler": self._gradient_step.tensors(),
            "best": best,
        }
        complete = {name: whole_for_first(group, leads=self._processes.leads) for name, group in groups.items()}
        controls = [{"kind": type(control).__name__, **control.state_dict()} for control in self._controls]
        data = {**numbers.to_data(), "settings": self._settings, "controls": controls}
        agreed(lambda: self._checkpoint.write(complete, data))

    def weights(self) -> tuple[dict[str, Tensor], int | None]:
        """(the whole weights, their step) in the checkpoint; none if it has not been written."""
        written = self._checkpoint.read()
        return ({}, None) if written is None else (written[0].get("model", {}), written[1]["step"])

    def read(self) -> tuple[Numbers, dict[str, Tensor]] | None:
        """(the progress, the best weights so far) from the checkpoint, after restoring all else; None if there is none.

        Raises:
            UserError: E150 if it is the checkpoint of another training.
        """
        written = self._checkpoint.read() if self._processes.leads else None
        groups = {} if written is None else written[0]
        numbers = self._processes.agreed(None if written is None else written[1])
        if numbers is None:
            return None
        controls = numbers.pop("controls")
        check_same_training(in_todays_settings(numbers.pop("settings", None)), self._settings)
        kinds = [state.pop("kind", None) for state in controls]
        check_same_training({"controls": kinds}, {"controls": [type(control).__name__ for control in self._controls]})
        own = tensors_of_module(self._model)
        load_tensors(self._model, self._placed(groups, "model", own), source="the checkpoint")
        load_tensors(self._loss, dict(self._sent(groups, "objective")), source="the checkpoint")
        for name, tensor in self._sent(groups, "optimizer"):
            load_optimizer_tensors(self._optimizer, {name: tensor})
        self._gradient_step.load(dict(self._sent(groups, "scaler")))
        best = self._placed(groups, "best", own)
        for control, state in zip(self._controls, controls, strict=True):
            control.load_state_dict(state)
        return Numbers.from_data(numbers), best

    def _sent(self, groups: Mapping[str, Mapping[str, Tensor]], name: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a group, one after the other, from the first process to all."""
        agreed, tensors = self._processes.agreed, groups.get(name, {})
        for key in agreed(list(tensors)):
            yield key, agreed(tensors.get(key))  # type: ignore[misc]  # the first process has it

    def _placed(self, groups: Mapping[str, Mapping[str, Tensor]], name: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: placed_as(tensor, own.get(key)) for key, tensor in self._sent(groups, name)}
