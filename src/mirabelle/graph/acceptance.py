"""Whether a cut module computes what the cut program computes: the check that decides which form of a cut is returned.

Both run with the same random tensors, which hide nothing, on the example with its own number of samples and with two others,
after one optimizer step of the module in training mode, too. The tensors are drawn into a module that is thrown away, and the
program runs on the tensors of this module. What it computes with the first drawn tensors is kept for the other forms of a cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.graph.example_signature import Example
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.interpret import kept_without, run_cut
from mirabelle.graph.sizes import limits_of_batch, repeated, resized
from mirabelle.graph.trace import AttributesBefore, Program, exported_alone
from mirabelle.model.state import copied
from mirabelle.numerics.draws import generator_from, global_draws

_SAME = 1e-6  # largest relative difference between the same operators on the same numbers
# Larger differences, up to _ROUNDING, are accepted if they are below _TIMES the effect of rounding in the full model.
_ROUNDING, _TIMES = 1e-4, 10.0
_SCALE = 0.25  # factor of all random weights after the first comparison, with which a final sigmoid does not saturate
_STEP = 0.1  # length of the optimizer step


class DoesNotFollowError(Exception):
    """A module does not compute the same as the cut program; the message says how they differ."""


@dataclass
class _Drawn:
    """Tensors of the cut program that were drawn, and its outputs on the example with them; empty before the first draw."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)

    def are(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether other tensors are the same numbers."""
        return tensors.keys() == self.tensors.keys() and all(
            _alike(own, self.tensors[name]) and torch.equal(own, self.tensors[name]) for name, own in tensors.items()
        )


@dataclass(frozen=True)
class Acceptance:
    """The check of the two forms that a cut model may have.

    Args:
        model: the traced model.
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        example: inputs of the trace.
    """

    model: nn.Module
    program: Program
    flow: Flow
    kept: Kept
    example: Example
    _drawn: _Drawn = field(default_factory=_Drawn, init=False)

    @torch.no_grad()
    def check(self, trial: nn.Module, *, as_traced: bool = False) -> None:
        """Compare a module at three batch sizes and after an optimizer step in training mode.

        Args:
            trial: what `compare` returned, with the tensors of then; they are changed.
            as_traced: compare what an export makes of it, too.

        Raises:
            DoesNotFollowError: if they differ, or if the module fails where the dense model does not.
        """
        if as_traced and not self._traces(trial):
            raise DoesNotFollowError("an export of it takes another path")
        _scale(trial, self.program)
        self._compare(trial, self._one_more or self.example, scaled=True)
        self._train(trial)
        _in_mode(trial, training=False)
        try:
            self._compare(trial, self._alone or self.example, scaled=True)
        except DoesNotFollowError:
            if self._alone is None or self.fewest_samples == 1:
                raise
            self._compare(trial, self.example, scaled=True)

    @torch.no_grad()
    def compare(self, module: nn.Module) -> nn.Module:
        """The module, with random tensors, if it computes what the cut program computes on the example.

        Raises:
            DoesNotFollowError: if they differ.
        """
        _draw_into(_in_mode(module, training=False), self.program, self._drawn.tensors)
        tensors = self._tensors(module)
        if not self._drawn.are(tensors):
            self._drawn.outputs = [output.clone() for output in self._expected(tensors, self.example)]
            self._drawn.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self._compare(module, self.example, self._drawn.outputs)
        return module

    def _traces(self, module: nn.Module) -> bool:
        """Whether a module that `compare` has accepted computes the same when it is traced, as for an export.

        Code may take another path there: grouped queries repeat their keys by an attribute that other attention does not read.
        """
        args, kwargs = self.example
        apart = copied(module, {id(parameter): parameter for parameter in module.parameters()})
        try:
            exported = exported_alone(apart, args, kwargs)
            with global_draws(0):
                actual = _tensors(exported(args, kwargs))
        except Exception:  # noqa: BLE001 (any code of a user's)
            return False
        return difference(actual, self._drawn.outputs) <= _ROUNDING

    @cached_property
    @torch.no_grad()
    def fewest_samples(self) -> int:
        """The fewest samples for which the program of the whole model computes what the model computes: 1 or 2.

        Raises:
            DoesNotFollowError: if the program differs from the model for more samples, or takes fewer numbers of samples.
        """
        whole = replace(self, kept=kept_without(self.flow, np.zeros(0, int)))
        trial = copied(self.model).eval()
        self._refuse_if_fixed(trial)
        _draw_into(trial, self.program)
        whole._compare(trial, self._one_more or self.example)
        _scale(trial, self.program)
        if self._alone is not None:
            try:
                whole._compare(trial, self._alone, scaled=True)
            except DoesNotFollowError:
                whole._compare(trial, self.example, scaled=True)
                return 2
            return 1
        whole._compare(trial, self.example, scaled=True)
        return 1

    @cached_property
    def _one_more(self) -> Example | None:
        """The example with one more sample; None if the program does not take it."""
        return resized(self.program, self.example, more=1)

    @cached_property
    def _alone(self) -> Example | None:
        """The first sample of the example alone; None if the program does not take it, or if the example is no larger."""
        return resized(self.program, self.example, to=1)

    def _refuse_if_fixed(self, trial: nn.Module) -> None:
        """Raise `DoesNotFollowError` if the program limits the number of samples, but the model does not."""
        limits = limits_of_batch(self.program)
        for count in sorted(
            {limit.low - 1 for limit in limits} | {limit.high + 1 for limit in limits if limit.high is not None}
        ):
            if count > 1:
                other = repeated(self.example, count)
                if _runs(trial, other) is None:
                    words = " and ".join(dict.fromkeys(map(str, limits)))
                    message = f"its program holds for {words} samples only, since the code of the model depends on their number"
                    raise DoesNotFollowError(message)

    def _compare(
        self, module: nn.Module, example: Example, expected: list[Tensor] | None = None, *, scaled: bool = False
    ) -> None:
        """Raise `DoesNotFollowError` unless the module computes the same as the cut program, whose outputs may be known."""
        worst = self._difference(module, example, expected)
        if worst <= _SAME:
            return
        rounding = 0.0
        if worst <= _ROUNDING:
            whole, dense = replace(self, kept=kept_without(self.flow, np.zeros(0, int))), copied(self.model).eval()
            _draw_into(dense, self.program)
            if scaled:
                _scale(dense, self.program)
            rounding = whole._difference(dense, self.example)
        if worst > _TIMES * rounding:
            raise DoesNotFollowError(f"its outputs would differ by {worst:.1e}")

    def _difference(self, module: nn.Module, example: Example, expected: list[Tensor] | None = None) -> float:
        """The relative difference of the outputs of a module and of the program, both with the tensors of the module."""
        if expected is None:
            expected = self._expected(self._tensors(module), example)
        before = AttributesBefore(module)  # what a call caches is of other weights than the next one's
        try:
            with global_draws(0):  # operators that draw random numbers draw the same in both
                actual = _tensors(module(*example[0], **example[1]))
        except Exception as error:
            raise DoesNotFollowError(_words(error)) from error
        finally:
            before.restore()
        return difference(actual, expected)

    def _tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of the program, those of the module where it has them."""
        own = _named(module)
        return {name: own.get(name, tensor) for name, tensor in self.program.tensors.items()}

    def _expected(self, tensors: Mapping[str, Tensor], example: Example) -> list[Tensor]:
        """The outputs of the cut program."""
        try:
            with global_draws(0):
                return _tensors(run_cut(self.program, self.flow, self.kept, tensors, pytree.tree_leaves(example)))
        except Exception as error:  # an argument that no rule has adapted
            raise DoesNotFollowError(f"its program cannot be cut: {error}") from error

    def _train(self, trial: nn.Module) -> None:
        """One optimizer step in training mode, in which a module may fail only if the dense model fails, too."""
        error = _stepped(trial, self.example)
        if error is not None and _stepped(copied(self.model), self.example) is None:
            raise DoesNotFollowError(f"in training mode, {_words(error)}") from error


def _named(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}


def _drawn_in(module: nn.Module, program: Program) -> dict[str, Tensor]:
    """The tensors of floating point that a program reads; constants of its trace are left out, and masks of −inf.

    The fast path of torch's transformer layers takes every number in a mask but 0 for −inf.
    """
    own = {name: tensor for name, tensor in _named(module).items() if name in program.tensors and name in program.names}
    return {name: own[name] for name in program.tensors if name in own and _is_drawn(own[name])}


def _is_drawn(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _draw_into(module: nn.Module, program: Program, before: Mapping[str, Tensor] | None = None) -> None:
    """Fill a module with random numbers: normal with variance 1 / fan-in, or uniform in [0.5, 1.5) in one dimension.

    Args:
        module: to fill.
        program: of the model.
        before: tensors drawn earlier, which are taken again if they have the sizes of these.
    """
    wanted, before = _drawn_in(module, program), before or {}
    if all(name in before and _alike(tensor, before[name]) for name, tensor in wanted.items()):
        for name, tensor in wanted.items():
            tensor.copy_(before[name])
        return
    generator = generator_from(0)
    for tensor in wanted.values():
        fan = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 0
        if fan:
            tensor.copy_(torch.randn(tensor.shape, generator=generator).div_(math.sqrt(fan)))
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator).add_(0.5))


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _scale(module: nn.Module, program: Program) -> None:
    for tensor in _drawn_in(module, program).values():
        tensor.mul_(_SCALE)


def _in_mode(module: nn.Module, *, training: bool) -> nn.Module:
    """The module in a mode; its code may compute something there, such as a cache, which may fail with new widths."""
    try:
        return module.train(training)
    except Exception as error:
        raise DoesNotFollowError(_words(error)) from error


def _runs(module: nn.Module, example: Example) -> Exception | None:
    """The error of a call; None if there is none."""
    before = AttributesBefore(module)
    try:
        with global_draws(0):
            module(*example[0], **example[1])
    except Exception as error:  # noqa: BLE001 (any code of a user's)
        return error
    finally:
        before.restore()
    return None


def _stepped(module: nn.Module, example: Example) -> Exception | None:
    """Train a module for one step of gradient descent of a fixed length; the error, or None if there is none."""
    before = AttributesBefore(module)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.train()  # may compute something, such as a cache
        with torch.enable_grad(), global_draws(0):
            outputs = [part for part in _tensors(module(*example[0], **example[1])) if part.requires_grad]
            if not outputs or not parameters:
                return None
            loss = torch.stack([part.abs().square().mean().double() for part in outputs]).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    except Exception as error:  # noqa: BLE001 (any code of a user's)
        return error
    finally:
        before.restore()
    given = [(parameter, change) for parameter, change in zip(parameters, gradients, strict=True) if change is not None]
    norm = math.sqrt(sum(float(change.double().square().sum()) for _, change in given))
    for parameter, change in given if 0 < norm < math.inf else ():
        parameter.add_(change, alpha=-_STEP / norm)
    return None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _tensors(outputs: Any) -> list[Tensor]:
    return [part for part in pytree.tree_leaves(outputs) if isinstance(part, Tensor)]


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over all outputs, each relative to its largest absolute value; infinite if shapes differ."""
    if len(actual) != len(expected) or any(a.shape != b.shape for a, b in zip(actual, expected, strict=True)):
        return math.inf
    return max(map(_distance, actual, expected), default=0.0)


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference relative to the largest absolute value; infinite if only one is NaN or infinite."""
    differ = one != other
    if not differ.any():
        return 0.0
    kind = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.to(kind), other.to(kind)
    largest = other[other.isfinite()].abs().max() if other.isfinite().any() else torch.tensor(0.0)
    relative = float((one - other)[differ].abs().max() / largest.clamp_min(1e-30))
    return math.inf if math.isnan(relative) else relative
