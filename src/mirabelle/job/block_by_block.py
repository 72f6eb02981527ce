"""Prune and quantize a large language model block by block, so that memory holds one block and the activations of its input."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle import quantize
from mirabelle.calibration.moments import Moments
from mirabelle.errors import UserError
from mirabelle.job.block_onnx import OnnxGraph
from mirabelle.job.block_steps import applies, changed, check_steps, is_linear, matrix_of, packed_codes
from mirabelle.model.watch import EndOfForward, LayerRun, watched
from mirabelle.numerics.arrays import bytes_of
from mirabelle.run import files
from mirabelle.run.lock import FolderLock
from mirabelle.sources.models.blocks import INDEX, Blocks, Call
from mirabelle.step import Step, step_to_data

_PROGRESS, _REPORT = "progress.json", "compression.json"
_ALSO = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt",
"added_tokens.json")  # fmt: skip


@dataclass(frozen=True)
class LargeResult:
    """What was written.

    Args:
        folder: with the model, as transformers loads it.
        errors: name of each changed layer -> mean squared error of its outputs as a share of their mean square, on inputs
            that the changed layers before it give.
        sparsity: name of each changed layer -> share of zeros of its weight.
    """

    folder: Path
    errors: Mapping[str, float] = field(default_factory=dict)
    sparsity: Mapping[str, float] = field(default_factory=dict)


def compress_large(
    model: str | Path,
    steps: Sequence[Step],
    data: Tensor,
    out: str | Path,
    *,
    onnx: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> LargeResult:
    """Prune and quantize the weights of a causal language model of transformers, one block after the other.

    Memory holds one block, the second moments of one layer's inputs, and the hidden states of the calibration tokens, not the
    model: nothing is exported, packed or converted to float32 as a whole. The linear layers within the blocks are changed in
    the order in which they run, each by the inputs that the changed layers before it give. Embeddings, norms and the output
    layer stay as they are.

    The result is a folder that `from_pretrained` loads: config.json, the tokenizer, and safetensors files, one per block,
    with plain weights in the dtype of the model. Of a quantized model they hold the values of the codes, rounded to that
    dtype; codes of 2, 4 and 8 bits lie beside them in codes/, packed as in the format pack-quantized of compressed-tensors.
    compression.json has the errors of all layers. If the process is killed, the same call goes on at the next block.

    With `onnx`, model.onnx and model.onnx.data are written at the end, with inputs input_ids and attention_mask and the output
    logits, for any number of samples and tokens, without a cache of keys and values. Layers of 4 bits in groups of 16, 32, 64,
    128 or 256 are MatMulNBits nodes, which multiply by the codes with activations in float32; all other weights are float32.
    The graph is made before the first block, so that a model that cannot be exported is refused then.

    Args:
        model: folder with config.json and safetensors files. Code in it is not run.
        steps: `prune.Weights`, one-shot, with a sparsity or a pattern, and any score that needs no gradients; and, as the
            last, `quantize.Weights` with the method "nearest" or "gptq".
        data: calibration tokens, (samples, length), whole numbers.
        out: a new folder, or that of an earlier call with the same arguments.
        onnx: whether an ONNX file is written, too; an earlier call need not have asked for it.
        progress: called after each block with the number of blocks that are done, that of all, and the seconds left.

    Raises:
        UserError: E111 or E105 for steps that are not possible; E121 for a model that is no causal language model, is
            quantized already, or cannot be exported; E130, E140 or E141 if its files are missing or damaged; E131 for tokens
            that are no such table, or inputs that are NaN or infinite; E150 if `out` has the result of other arguments.

    Example:
        >>> from mirabelle import prune, quantize
        >>> steps = [prune.Weights(sparsity=0.5, score="SparseGPT"), quantize.Weights(weight_bits=4, method="gptq")]
        >>> compress_large("llama-1b", steps, tokens, out="llama-1b-small")  # doctest: +SKIP

    Source: Frantar, Alistarh 2023, arXiv:2301.00774 (blocks in order); Frantar et al. 2022, arXiv:2210.17323.
    """
    check_steps(steps)
    source, folder = Path(model), Path(out)
    if folder.resolve() == source.resolve():
        raise UserError("E151", f"{folder} is the folder of the model itself", "choose another folder")
    blocks = Blocks(source)
    _check_tokens(data, blocks)
    lock = FolderLock(folder)
    try:
        return _Work(blocks, [*steps], data, source, folder).done(progress, onnx=onnx)
    finally:
        blocks.shards.close()
        lock.release()


class _Work:
    """The work on one folder."""

    def __init__(self, blocks: Blocks, steps: list[Any], data: Tensor, source: Path, folder: Path) -> None:
        self._blocks, self._steps, self._data = blocks, steps, data
        self._source, self._folder = source, folder
        self._settings = {
            "steps": [step_to_data(step) for step in steps],
            "model": {name: files.digest_of_file(source / name) for name in ("config.json", *blocks.shards.names)},
            "data": files.digest(str(tuple(data.shape)).encode(), bytes_of(data)),
        }
        self._errors: dict[str, float] = {}
        self._sparsity: dict[str, float] = {}
        self._calls: list[Call] = []

    @torch.no_grad()
    def done(self, progress: Callable[[int, int, float], None] | None, *, onnx: bool) -> LargeResult:
        first, total = self._resumed(), len(self._blocks.names)
        graph = OnnxGraph(self._source, self._steps) if onnx else None
        began = time.monotonic()
        if first < total:
            hidden = self._embedded()
            hidden = files.read_tensors(self._state(first))[0]["hidden"] if first else hidden
        for position in range(first, total):
            hidden = self._block(position, hidden)
            if progress is not None:
                left = (time.monotonic() - began) / (position + 1 - first) * (total - position - 1)
                progress(position + 1, total, left)
        self._finish()
        if graph is not None:
            graph.write(self._folder)
        return LargeResult(self._folder, self._errors, self._sparsity)

    def _resumed(self) -> int:
        """The position of the first block that is still to be done."""
        path = self._folder / _PROGRESS
        if not path.is_file():
            if any(self._folder.glob("*.safetensors")):
                raise UserError("E150", f"{self._folder} has another model", "choose another folder")
            return 0
        known = files.read_json(path)
        if known["settings"] != self._settings:
            differing = next(key for key in self._settings if known["settings"].get(key) != self._settings[key])
            raise UserError("E150", f"{self._folder} has the result of another {differing}", "choose another folder")
        self._errors, self._sparsity = dict(known["errors"]), dict(known["sparsity"])
        return int(known["blocks"])

    def _embedded(self) -> Tensor:
        """The inputs of the first block for all samples, (samples, length, width), and how blocks are called."""
        found: list[Tensor] = []
        for hidden, calls in self._blocks.inputs(torch.split(self._data, 1)):
            if self._calls and not _alike(self._calls, calls):
                message = "blocks get other arguments for each sample, not only the hidden states"
                raise UserError("E121", message, "use mirabelle.compress")
            self._calls = self._calls or calls
            found.append(hidden)
        return torch.cat(found)

    def _block(self, position: int, hidden: Tensor) -> Tensor:
        """Change a block, write it, and return its outputs."""
        name, block, call = self._blocks.names[position], self._blocks.load(position), self._calls[position]
        layers = {f"{name}.{own}": layer for own, layer in block.named_modules() if is_linear(layer)}
        codes: dict[str, Tensor] = {}
        for group in _groups(layers, block, call, hidden[:1]):
            chosen = {own: [step for step in self._steps if applies(step, own)] for own in group}
            if any(chosen.values()):
                moments = _moments(group[0], layers[group[0]], block, call, hidden)
                for own in group:
                    codes |= self._layer(own, layers[own], moments, chosen[own])
        outputs = torch.cat([call.of(block, part) for part in torch.split(hidden, 1)])
        self._write(position, block, codes)
        files.write_tensors(self._state(position + 1), {"hidden": outputs})
        self._blocks.free(position)
        progress = {"blocks": position + 1, "settings": self._settings, "errors": self._errors, "sparsity": self._sparsity}
        files.write_json(self._folder / _PROGRESS, progress)
        self._state(position).unlink(missing_ok=True)
        return outputs

    def _state(self, position: int) -> Path:
        """The file with the inputs of a block; progress.json says of which block there is one."""
        return self._folder / f"inputs-{position}.safetensors"

    def _layer(self, name: str, layer: nn.Module, moments: Tensor, steps: list[Any]) -> dict[str, Tensor]:
        """Change a layer; returns its packed codes."""
        if not steps:
            return {}
        weight = matrix_of(layer)
        found = changed(weight.float(), moments, steps, f"{name}.weight")
        weight.copy_(found.values)
        self._errors[name], self._sparsity[name] = round(found.error, 8), round(found.sparsity, 6)
        bits = steps[-1].weight_bits if isinstance(steps[-1], quantize.Weights) else 0
        if found.codes is None or bits not in (2, 4, 8):
            return {}
        return {f"{name}.{key}": tensor for key, tensor in packed_codes(found.codes, bits).items()}

    def _write(self, position: int, block: nn.Module, codes: dict[str, Tensor]) -> None:
        prefix = self._blocks.names[position]
        known = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        tensors = {source: known[own].detach() for own, source in self._blocks.shards.below(prefix).items()}
        files.write_tensors(self._folder / self._file(position), tensors, {"format": "pt"})
        if codes:
            files.write_tensors(self._folder / "codes" / f"{prefix}.safetensors", codes, {"format": "pt"})

    def _file(self, position: int) -> str:
        return f"model-{position + 1:05}-of-{len(self._blocks.names) + 1:05}.safetensors"

    def _finish(self) -> None:
        """Write what is outside of the blocks, the index, and the files beside the model."""
        names, shards = self._blocks.names, self._blocks.shards
        place = {source: self._file(k) for k, name in enumerate(names) for source in shards.below(name).values()}
        rest = [name for name in shards.files if name not in place]
        files.write_tensors(self._folder / self._file(len(names)), {name: shards[name] for name in rest}, {"format": "pt"})
        place |= dict.fromkeys(rest, self._file(len(names)))
        size = sum((self._folder / name).stat().st_size for name in set(place.values()))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(place.items()))}
        files.write_text(self._folder / INDEX, json.dumps(index, indent=2))
        for pattern in _ALSO:
            for path in self._source.glob(pattern):
                shutil.copyfile(path, self._folder / path.name)
        report = {"steps": self._settings["steps"], "errors": self._errors, "sparsity": self._sparsity}
        files.write_json(self._folder / _REPORT, report)
        self._state(len(names)).unlink(missing_ok=True)


def _check_tokens(data: Tensor, blocks: Blocks) -> None:
    if data.ndim != 2 or not data.numel() or data.is_floating_point():  # noqa: PLR2004 (samples and length)
        message = f"calibration tokens must be whole numbers, (samples, length); got {data.dtype}, {tuple(data.shape)}"
        raise UserError("E131", message, "give at least one sample")
    size = int(blocks.config.get_text_config().vocab_size)
    if int(data.min()) < 0 or int(data.max()) >= size:
        message = f"calibration tokens lie between {int(data.min())} and {int(data.max())}, but the model has {size}"
        raise UserError("E131", message, "use the tokenizer of the model")


def _alike(calls: Sequence[Call], others: Sequence[Call]) -> bool:
    """Whether blocks get the same arguments besides the hidden states."""
    return all(
        len(one.tensors()) == len(other.tensors())
        and all(torch.equal(*pair) for pair in zip(one.tensors(), other.tensors(), strict=True))
        for one, other in zip(calls, others, strict=True)
    )


def _groups(layers: Mapping[str, nn.Module], block: nn.Module, call: Call, hidden: Tensor) -> list[list[str]]:
    """The layers in the order in which they run, those with the same input together."""
    inputs: list[Tensor] = []
    found: list[list[str]] = []

    def look(run: LayerRun) -> None:
        if any(run.name in group for group in found):
            raise UserError("E121", f'layer "{run.name}" runs more than once in its block', f'exclude = ["{run.name}"]')
        assert run.input is not None, "linear layers take a tensor"
        if inputs and inputs[-1] is run.input:
            found[-1].append(run.name)
        else:
            inputs.append(run.input)
            found.append([run.name])

    with watched(layers, before=look):
        call.of(block, hidden)
    return found


def _moments(name: str, layer: nn.Module, block: nn.Module, call: Call, hidden: Tensor) -> Tensor:
    """E[x xᵀ] of the inputs of a layer over all samples, in float32."""
    moments = Moments(centred=False, dtype=torch.float32)

    def take(run: LayerRun) -> None:
        assert run.input is not None, "linear layers take a tensor"
        moments.add(run.input.reshape(1, -1, run.input.shape[-1]))
        raise EndOfForward

    with watched({name: layer}, before=take):
        for part in torch.split(hidden, 1):
            with contextlib.suppress(EndOfForward):
                call.of(block, part)
    found = moments.mean()[0]
    if not bool(found.isfinite().all()):
        message = f'inputs of layer "{name}" are NaN or infinite on the calibration data'
        raise UserError("E131", message, "correct the data or the model, or exclude the layer")
    return found
