"""Trainings of models whose weights, gradients and optimizer state are divided among processes, by torch's FSDP2.

A layer has its whole weights only while it computes. The blocks of a model, the members of its lists of modules, are put
together and freed one after the other; what is outside of them stays together from the forward to the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError, first_line, is_out_of_memory
from mirabelle.model.state import copied, in_eval_mode, memory_of, tensors_of_module
from mirabelle.model.watch import watch
from mirabelle.run.group import Group
from mirabelle.run.process_group import together
from mirabelle.task.batch import Batch
from mirabelle.training.memory import blocks_to_recompute
from mirabelle.training.shards import is_shard, own_part, whole

if TYPE_CHECKING:
    from mirabelle.objectives.bound_objective import BoundObjective
    from mirabelle.objectives.objective import Objective
    from mirabelle.training.contracts import Control
    from mirabelle.training.settings import Training

_SETTING = ("train", "shard")


def shards(training: Training) -> bool:
    """Whether a training divides its weights: if it is asked to, and several processes compute it."""
    return training.shard and together() is not None


def check_can_be_sharded(training: Training, objective: Objective, controls: Sequence[Control] = ()) -> None:
    """Raise E111 if the weights of a training are to be divided, and a term of its loss or a control needs whole ones."""
    if not training.shard:
        return
    names = [type(term).__name__ for _, term in objective.terms if term.reads_weights]
    if names:
        raise _reads_weights(", ".join(names))
    if controls:
        names = [type(control).__name__ for control in controls]
        message = f"{', '.join(names)} changes whole weights between optimizer steps, and shard divides them"
        remedy = 'leave shard out, or compress first and train afterwards, such as with schedule = "one-shot"'
        raise UserError("E111", message, remedy, path=_SETTING)


def check_no_weight_was_read(model: nn.Module) -> None:
    """Raise E111 if a loss bound to a model whose divided copy is trained has given a gradient to the model itself."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise _reads_weights("a term of the objective")


def _reads_weights(what: str) -> UserError:
    message = f"{what} reads whole weights of the model, and shard divides them"
    return UserError("E111", message, "leave shard out, or the term", path=_SETTING)


def too_large_in_shards(error: Exception) -> UserError:
    """The E203 error for a training in shards for which memory does not suffice; no process can try smaller parts alone."""
    message = f"memory does not suffice for a training in shards: {first_line(error)}"
    return UserError("E203", message, "give a smaller micro_batch, or recompute = true, or start more processes", path=_SETTING)


def sharded_copy(model: nn.Module, example: Batch, device: torch.device) -> nn.Module:
    """A copy of a model whose parameters are divided among the processes that compute this together, on a device of each.

    A parameter of no dimension is whole in every process, and so are buffers.

    Args:
        model: stays as it is, except that its gradients are dropped.
        example: a few samples, by which it is found which blocks are called as modules.
        device: of this process.

    Raises:
        UserError: E111 if parameters of the model share memory without being the same, or a module keeps one in an attribute.
    """
    from torch.distributed.device_mesh import DeviceMesh

    group = together()
    assert group is not None, "weights are divided among several processes"
    model.zero_grad(set_to_none=True)
    copy = copied(model)
    _check_apart(copy)
    for parameter in copy.parameters():
        parameter.data = parameter.data.contiguous()
    blocks = _blocks_of_their_own(copy, example)
    try:
        _divide(copy, blocks, DeviceMesh.from_group(group.reductions, device.type))
    except (ValueError, NotImplementedError, AssertionError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        message = f"the weights of this model cannot be divided: {first_line(error)}"
        raise UserError("E111", message, "leave shard out", path=_SETTING) from error
    _check_none_is_kept(copy)
    for parameter in copy.parameters():
        if not is_shard(parameter):
            parameter.data = parameter.data.to(device)
    return copy


def _divide(model: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    scalars = {parameter for parameter in model.parameters() if not parameter.dim()}
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    root: Any = fully_shard(model, mesh=mesh, ignored_params=scalars)
    # A process that does not use a weight which another one uses takes part in the sum of its gradients.
    root.set_reduce_scatter_unused_params(True)


def _blocks_of_their_own(model: nn.Module, example: Batch) -> list[nn.Module]:
    """The blocks of a model that are called as modules, and share no parameter with what is outside of them."""
    called: set[str] = set()
    names = {module: name for name, module in model.named_modules()}
    watch(model, [example], dict(model.named_modules()), after=lambda run: called.add(run.name))
    holders: dict[int, set[int]] = {}  # parameter -> modules that have it
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(id(module))

    def chosen(candidates: Iterable[nn.Module]) -> Iterator[nn.Module]:
        for block in candidates:
            inside = {id(module) for module in block.modules()}
            if names[block] not in called:
                yield from chosen(block.children())
            elif all(holders[id(parameter)] <= inside for parameter in block.parameters()):
                yield block

    return list(dict.fromkeys(chosen(blocks_to_recompute(model))))


def _check_apart(model: nn.Module) -> None:
    """Raise unless each tensor of a model has memory of its own."""
    seen: dict[Any, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        other = seen.setdefault(memory_of(tensor), name) if tensor.numel() else name
        if other != name:
            message = f"{other} and {name} are the same numbers in two tensors, which shard would separate"
            raise UserError("E111", message, "leave shard out", path=_SETTING)


def _check_none_is_kept(model: nn.Module) -> None:
    """Raise if a module still has a parameter that was replaced by its shard."""
    for name, module in model.named_modules():
        values = pytree.tree_leaves(list(vars(module).values()))
        if any(isinstance(value, nn.Parameter) and value.dim() and not is_shard(value) for value in values):
            message = f'module "{name}" keeps a parameter in an attribute of its own, where it cannot be divided'
            raise UserError("E111", message, "leave shard out", path=_SETTING)


@torch.no_grad()
def load_from_shards(model: nn.Module, sharded: nn.Module) -> None:
    """Copy the tensors of a divided copy of a model into the model, one after the other; every process must ask for it."""
    own = tensors_of_module(sharded)
    for name, tensor in tensors_of_module(model).items():
        tensor.copy_(whole(own[name]))


@contextmanager
def evaluated_in_shards(model: nn.Module) -> Iterator[None]:
    """A context in which a divided model runs in eval mode without gradients; at its end, all of its weights are divided."""
    root: Any = model
    with torch.no_grad(), in_eval_mode(model):
        try:
            yield
        finally:
            root.reshard()  # after a backward pass it is, after a forward pass alone it is not


class ShardedGradients:
    """Losses whose gradients are averaged over the processes, each process having those of its shards.

    Gradients of what is not divided, such as the parameters of terms, are averaged whole. Parts of a batch are averaged each by
    itself: gradients that wait for the last part would be whole in every process.

    Args:
        group: of the processes.
        model: divided, in training.
        loss: bound to it.
    """

    def __init__(self, group: Group, model: nn.Module, loss: BoundObjective) -> None:
        loss.in_lockstep = True
        trained = [one for module in (model, loss) for one in module.parameters() if one.requires_grad]
        self._group, self._loss, self._device = group, loss, next(model.parameters()).device
        self._shards = [one for one in trained if is_shard(one)]
        self._others = [one for one in trained if not is_shard(one)]
        self._of_model = [one for one in model.parameters() if one.requires_grad]
        self._used: set[int] = set()  # places of the parameters, shards first, that have had a gradient in this step
        self._connected = False  # whether a gradient may be zero because outputs count for nothing
        self._watch(model)

    def begin(self, progress: float) -> None:
        """Begin an optimizer step.

        Args:
            progress: of the training, in [0, 1].
        """
        self._used.clear()
        self._connected = not self._loss.reads_outputs(progress)

    def number_of_parts(self, samples: int, size: int) -> int:
        """The number of parts that each process takes of a batch: all put weights together equally often.

        Args:
            samples: of the whole batch.
            size: most samples of a part, if no process has fewer samples than another one needs parts.
        """
        count = self._group.launch.count
        smallest, largest = samples // count, -(-samples // count)
        return min(smallest, -(-largest // size))

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """The loss that a function computes."""
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # or all weights in half precision would stay until the end of the forward pass
        try:
            return function()
        finally:
            torch.set_autocast_cache_enabled(cached)

    def apart(self, *, when: bool) -> AbstractContextManager[None]:
        """A context for a part of a batch."""
        del when
        return nullcontext()

    @torch.no_grad()
    def finish(self) -> None:
        """Average what FSDP does not; weights that no process has used get no gradient, as in a single process."""
        for place, parameter in enumerate(self._others, start=len(self._shards)):
            if parameter.grad is not None:
                self._note(place, parameter.grad)
        used = torch.zeros(len(self._shards) + len(self._others), device=self._device)
        used[sorted(self._used)] = 1.0
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self._others]
        flat = self._group.add(torch.cat([used, *(one.flatten() for one in gradients)]))
        sizes = [len(self._shards), len(self._others), *(one.numel() for one in gradients)]
        of_shards, of_others, *sums = torch.split(flat, sizes)
        for parameter, count in zip(self._shards, of_shards.tolist(), strict=True):
            parameter.grad = parameter.grad if count else None
        for parameter, count, total in zip(self._others, of_others.tolist(), sums, strict=True):
            parameter.grad = (total / self._group.launch.count).view_as(parameter) if count else None

    @torch.no_grad()
    def clip(self, limit: float) -> None:
        """Scale the gradients of the model so that their norm over all processes is at most `limit`."""
        with_gradient = [one for one in self._of_model if one.grad is not None]
        parts = [own_part(one.grad) for one in with_gradient if one.grad is not None]
        squares = [part.square().sum() for part in parts]
        mine = [one for one, parameter in zip(squares, with_gradient, strict=True) if is_shard(parameter)]
        common = [one for one, parameter in zip(squares, with_gradient, strict=True) if not is_shard(parameter)]
        zero = torch.zeros((), device=self._device)
        norm = (self._group.add(torch.stack([zero, *mine]).sum()) + torch.stack([zero, *common]).sum()).sqrt()
        if parts:
            torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))

    def _watch(self, model: nn.Module) -> None:
        """Note which weights get a gradient. Each time that they are put together they are the same tensors."""
        from torch.distributed.fsdp import FSDPModule

        place = {id(one): k for k, one in enumerate(self._shards)}
        held = [
            (module, name, place[id(one)])
            for module in model.modules()
            for name, one in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(one) in place
        ]
        for unit in model.modules():
            if isinstance(unit, FSDPModule):
                inside = {id(module) for module in unit.modules()}
                mine = [entry for entry in held if id(entry[0]) in inside]
                handle: list[Any] = []
                handle.append(unit.register_forward_pre_hook(partial(self._first_call, mine, handle)))

    def _first_call(self, held: Sequence[tuple[nn.Module, str, int]], handle: list[Any], *_: object) -> None:
        """Watch the parameters that are put together now; those of blocks within are when these are called."""
        seen: set[int] = set()
        for module, name, place in held:
            parameter = getattr(module, name)
            if not is_shard(parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                parameter.register_hook(partial(self._note, place))
        handle.pop().remove()

    def _note(self, place: int, gradient: Tensor) -> None:
        if not self._connected or bool(gradient.any()):
            self._used.add(place)
