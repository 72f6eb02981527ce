"""The conditions under which a run measures latency: runtime, threads and batch, as its goal asks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mirabelle.runtime.runtime import Runtime, Session, default_runtime, runtime_named
from mirabelle.task.batch import Inputs, map_tensors, tensors_of
from mirabelle.task.goal import Goal
from mirabelle.task.task import Task


@dataclass(frozen=True)
class Conditions:
    """The conditions of a call that is timed.

    Args:
        runtime: that runs the exported models.
        threads: number of threads of an operator.
        batch: number of samples in the call.
        inputs: of at least this many samples.
    """

    runtime: Runtime
    threads: int
    batch: int
    inputs: Inputs

    @staticmethod
    def of(goal: Goal, task: Task) -> Conditions:
        """What a goal asks: by default ONNX Runtime with the threads of the run, and a single sample.

        Raises:
            UserError: E160 if the runtime is not installed.
        """
        batch = goal.batch or 1
        runtime = runtime_named(goal.runtime) if goal.runtime and goal.names_a_runtime else default_runtime()
        return Conditions(runtime, goal.threads or torch.get_num_threads(), batch, _inputs(task, max(batch, 2)))

    def load(self, onnx: bytes) -> Session:
        """Load an exported model."""
        return self.runtime.load(onnx, self.threads)


def _inputs(task: Task, count: int) -> Inputs:
    """The inputs of the first samples, repeated if there are fewer than `count`."""
    inputs = task.example(count).inputs
    known = len(tensors_of(inputs)[0])
    return inputs if known >= count else map_tensors(inputs, lambda tensor: tensor[torch.arange(count) % known])
