"""Outputs and features of the teacher: computed once for the training data and cached on disk, or live for every batch."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.device import device_of_job, home
from mirabelle.model.state import copied, fingerprint, in_eval_mode
from mirabelle.model.taps import Taps
from mirabelle.run import files
from mirabelle.run.process_group import together
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, Outputs, as_outputs, call, parts_of
from mirabelle.task.samples import Samples, Stream
from mirabelle.training.evaluation import results_by_batch

if TYPE_CHECKING:
    from mirabelle.task.augmentation import Augmentation
    from mirabelle.training.execution import Execution

_EXACT = 100  # outputs with more classes are rounded to 8 bits
_LEVELS = 255  # number of steps between the levels of 8 bits
KEPT = 512 * 1024**2  # default limit of cached features, in bytes
_KEY = "of"  # the key of the file's name in its metadata
_LAST = "channels_last."  # prefix for the names of features that are stored with channels last


@dataclass(frozen=True)
class Guidance:
    """The outputs of a teacher for a batch, and the outputs of chosen layers (features), without gradients.

    Args:
        outputs: outputs of the teacher.
        features: outputs of layers, by their names.
    """

    outputs: Outputs
    features: Mapping[str, Tensor] = field(default_factory=dict)


Teacher: TypeAlias = Callable[[Batch], Guidance]


def guidance(
    teacher: nn.Module,
    data: Samples | Stream,
    run: Run,
    *,
    layers: Sequence[str] = (),
    augment: Augmentation | None = None,
    execution: Execution | None = None,
    limit: int = KEPT,
    one_length: bool = True,
) -> Teacher:
    """A function from a batch of `data` to the teacher's outputs and features for it.

    For `Samples`, they are computed once and cached under `teacher/` in the run's folder, named by a digest of the teacher, the
    layers and the data, so that a cache is never used for another teacher or other data. For a `Stream`, the teacher runs on
    every batch. For augmented samples, the teacher runs in the precision and layout of the training, on every batch, or, if the
    number of views is limited, once for each view. The cache keeps the precision of the teacher. Outputs are held in memory;
    features of more than 512 MiB stay on disk, and those of more than `limit` are not cached.

    Outputs for more than 100 classes are rounded to 8 bits: 256 levels, evenly spaced from the lowest to the highest logit of a
    position, so that the error of a logit is at most (highest − lowest) / 510. This also holds for a live teacher.

    Cached and live outputs of a sample need not be equal to the bit. A matrix product adds up in an order that depends on the
    number of rows, the number of threads and the processor; what is cached is computed in batches of 500, what is live in
    those of the training. Let δ be the largest difference that this makes to the teacher's outputs of a sample, some 10⁻⁷ of
    the largest value in float32 and up to 2⁻⁷ of it in bfloat16. Then cached and live outputs differ by at most

        δ                                   over at most 100 classes, and for features;
        (highest − lowest) / 255 + 2 δ      over more: next to the middle between two steps, one is rounded up, the other down.

    A difference of a whole step is rare: the mean difference over many outputs is of the size of δ. Where δ = 0, they are
    equal. A run that is killed and resumed reads the same cache, or computes the same batches again, to the same bits.

    Args:
        teacher: the teacher; it runs in evaluation mode, and the mode of each of its modules is restored.
        data: the training data.
        run: stores the cache and records an event about it.
        layers: names of the layers whose outputs are needed as features, as in `Taps`.
        augment: the data augmentation.
        execution: precision and layout of the training; needed for augmented samples.
        limit: most bytes of cached features on disk, for all views together.
        one_length: whether all batches have texts of one length; otherwise features are not cached.

    Raises:
        UserError: E112 if the teacher has no layer of a given name.
    """
    why = ""
    if isinstance(data, Stream):
        why = "the loader shuffles, so its samples cannot be identified"
    elif augment is not None and augment.views is None:
        why = "the samples are augmented differently in every epoch"
    elif layers and not one_length:
        why = "the features have the length of the longest text of each batch"
    elif layers:
        seen = None if augment is None else execution
        size = _bytes_of_features(_asked(teacher, layers, seen), data) * (1 if augment is None else augment.views or 1)
        if size > limit:
            why = f"the features need {size:,} bytes, more than the {limit:,} of the training's `teacher_cache`"
    if not why:
        assert isinstance(data, Samples), "a stream has a reason not to be cached"
        return _Kept(teacher, data, run, layers=layers, augment=augment, execution=execution)
    run.event("teacher", cached=False, why=why)
    live = _asked(teacher, layers, None if isinstance(data, Stream) else execution)
    return lambda batch: _as_kept(live(batch))


class _Kept:
    """The cached outputs and features of a teacher, for samples without augmentation or for each view of them."""

    def __init__(
        self,
        teacher: nn.Module,
        data: Samples,
        run: Run,
        *,
        layers: Sequence[str],
        augment: Augmentation | None,
        execution: Execution | None,
    ) -> None:
        self._data, self._run, self._augment = data, run, augment
        self._teach = _asked(teacher, layers, None if augment is None else execution)
        manner = "" if augment is None else f" {augment} {execution}"
        self._key = f"{fingerprint(teacher)} {data.digest()}{manner}{''.join(f' {layer}' for layer in layers)}"
        self._large = bool(layers) and _bytes_of_features(self._teach, data) > KEPT
        self._given: dict[int, dict[str, Tensor] | None] = {} if augment is not None else {0: self._of(0)}

    def __call__(self, batch: Batch) -> Guidance:
        assert batch.index is not None, "a batch of samples has its index"
        if batch.view not in self._given:
            self._given[batch.view] = self._of(batch.view)
        given = self._given[batch.view]
        if given is None:
            return _as_kept(self._teach(batch))
        device = batch.targets.device
        return _unpacked({name: tensor[batch.index].to(device, non_blocking=True) for name, tensor in given.items()})

    def _of(self, view: int) -> dict[str, Tensor] | None:
        """The outputs and features for all samples in a view; None if they are too large for the disk."""
        key = files.digest(self._key.encode(), f"view {view}".encode())
        path = self._run.journal.cache / "teacher" / f"{key}.safetensors"
        return kept_or_made(path, self._run, partial(self._made, path, view), large=self._large)

    def _made(self, path: Path, view: int) -> dict[str, Tensor] | None:
        packed = results_by_batch(self._data, partial(self._answer, view))
        if not self._large:
            parts = list(packed)
            given = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else None
            if given is not None:
                _keep(path, given, self._run)
            return given
        group = together()
        writes = group is None or group.leads
        written = writes and _stream(path, packed, len(self._data), self._run)
        collections.deque(packed, maxlen=0)  # what is left if the disk is full, and in other processes
        return read_cache(path, self._run) if written else None

    def _answer(self, view: int, batch: Batch) -> dict[str, Tensor]:
        return home(_packed(self._teach(batch if self._augment is None else self._augment.seen(batch, view))))


def kept_or_made(
    path: Path, run: Run, make: Callable[[], dict[str, Tensor] | None], *, large: bool = False
) -> dict[str, Tensor] | None:
    """The tensors of a file of what a teacher computed, which are made without it; None if they could not be kept.

    Of several processes the first reads or makes them for all, and the others read its file where they see it.

    Args:
        path: of the file.
        run: is told if the file is damaged.
        make: computes the tensors, and writes the file; called by all processes, it returns them to the first.
        large: whether they are left on disk; then None, if a process does not see the file.
    """
    group = together()
    if group is None:
        kept = read_cache(path, run)
        return make() if kept is None else kept
    kept = read_cache(path, run) if group.leads else None
    if not group.share(kept is not None):
        kept = make()
    if not group.share(kept is not None):
        return None
    if not group.leads:
        kept = read_cache(path, run)
    if not group.any(kept is None):
        return kept
    return None if large else group.share(kept)


def write_cache(path: Path, given: Mapping[str, Tensor]) -> None:
    """Write a file of what a teacher computed; its name tells of which teacher and data, and is stored in it, too."""
    files.write_tensors(path, given, {_KEY: path.stem})


def read_cache(path: Path, run: Run) -> dict[str, Tensor] | None:
    """The tensors of a file of what a teacher computed; None if there is none, or if it is damaged or another file.

    A damaged file is recorded as a warning; what it held can be computed again.
    """
    if not path.is_file():
        return None
    try:
        tensors, metadata = files.read_tensors(path)
    except UserError as error:
        run.event("warning", text=f"{error.message}; it is computed again")
        return None
    if metadata.get(_KEY, path.stem) != path.stem:
        run.event("warning", text=f"{path} is the file of another teacher or of other data; it is computed again")
        return None
    return tensors


def _packed(given: Guidance) -> dict[str, Tensor]:
    """Outputs and features as named tensors for the cache; outputs for many classes are rounded to 8 bits."""
    features = {}
    for name, tensor in given.features.items():
        last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)  # noqa: PLR2004 (images)
        features[f"{_LAST * last}features.{name}"] = tensor.permute(0, 2, 3, 1) if last else tensor
    if isinstance(given.outputs, Tensor):
        return {**_rounded(given.outputs), **features}
    several = {f"{k}.{name}": part for k, one in enumerate(given.outputs) for name, part in _rounded(one).items()}
    return {**several, **features}


def _rounded(outputs: Tensor) -> dict[str, Tensor]:
    """One output as named tensors for the cache: unchanged, or, for many classes, rounded to 8 bits."""
    if outputs.shape[-1] <= _EXACT or not outputs.is_floating_point():
        return {"outputs": outputs}
    outputs = outputs.float()
    low, high = outputs.aminmax(dim=-1, keepdim=True)
    step = (high - low) / _LEVELS
    codes = ((outputs - low) / step.clamp_min(torch.finfo(step.dtype).tiny)).round().to(torch.uint8)
    return {"codes": codes, "low": low, "step": step}


def _restored(kept: Mapping[str, Tensor], mark: str) -> Tensor | None:
    """The output from the cached tensors whose names start with `mark`, as float32 or integers; None if there are none."""
    if f"{mark}outputs" in kept:
        given = kept[f"{mark}outputs"]
        return given.float() if given.is_floating_point() else given
    return kept[f"{mark}low"] + kept[f"{mark}codes"] * kept[f"{mark}step"] if f"{mark}codes" in kept else None


def _unpacked(kept: Mapping[str, Tensor]) -> Guidance:
    outputs: Outputs = _restored(kept, "")
    if outputs is None:
        found = [_restored(kept, f"{k}.") for k in range(len(kept))]
        outputs = tuple(output for output in found if output is not None)
    features = {}
    for name, part in kept.items():
        marks, _, layer = name.partition("features.")
        if layer:
            features[layer] = part.permute(0, 3, 1, 2) if marks == _LAST else part
    return Guidance(outputs, features)


def _asked(teacher: nn.Module, layers: Sequence[str], execution: Execution | None) -> Teacher:
    """A function that runs the teacher on a batch, in the precision and layout of `execution` if it is given."""
    guide = teacher if execution is None else execution.laid_out(copied(teacher).eval())

    def given(batch: Batch) -> Guidance:
        # Inference tensors have no version counter, by which `Taps` see changes in place after a layer has returned.
        with torch.inference_mode(mode=not layers), torch.no_grad(), in_eval_mode(guide), Taps(guide, layers) as taps:
            if execution is None:
                outputs = call(guide, batch.inputs)
            else:
                with execution.autocast(device_of_job(guide)):
                    outputs = call(guide, execution.inputs(batch.inputs))
            features = taps.taken()
        # Copies made outside of inference mode can be used in autograd.
        copies = tuple(part.clone() for part in parts_of(outputs))
        return Guidance(as_outputs(copies), {name: tensor.clone() for name, tensor in features.items()})

    return given


def _as_kept(given: Guidance) -> Guidance:
    """The outputs and features as they would come from a cache."""
    return _unpacked(_packed(given))


def _bytes_of_features(teach: Teacher, data: Samples) -> int:
    """The bytes of the features for one view of the data."""
    few = data.first(2)
    return sum(tensor.nbytes for tensor in teach(few).features.values()) // len(few) * len(data)


def _stream(path: Path, parts: Iterable[Mapping[str, Tensor]], samples: int, run: Run) -> bool:
    """Write a cache that is too large for the memory part by part; return whether the disk had enough space."""
    try:
        size = files.write_rows(path, parts, samples, {_KEY: path.stem})
    except UserError as error:
        run.event("teacher", cached=False, why=error.message)
        return False
    run.event("teacher", cached=True, samples=samples, bytes=size)
    return True


def _keep(path: Path, given: Mapping[str, Tensor], run: Run) -> None:
    """Write the cache; if the disk is full, the run continues without it, and computes it again when it resumes."""
    try:
        write_cache(path, given)
        size = sum(tensor.nbytes for tensor in given.values())
        run.event("teacher", cached=True, samples=len(next(iter(given.values()))), bytes=size)
    except UserError as error:
        run.event("teacher", cached=False, why=error.message)
