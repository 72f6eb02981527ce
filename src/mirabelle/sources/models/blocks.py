"""A causal language model of transformers whose blocks are in memory one at a time; its files are read when they are needed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, first_line
from mirabelle.model.watch import EndOfForward

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Shards:
    """The tensors of a folder in safetensors files, one file or several with an index; each is read when it is asked for.

    Args:
        folder: of the model.

    Attributes:
        files: name of each tensor -> name of its file.
        names: of the files.

    Raises:
        UserError: E130 if there are no such files; E141 if the index cannot be read, or names a file that is missing.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._open: dict[str, Any] = {}
        self._folder = folder
        if (folder / INDEX).is_file():
            try:
                self.files: dict[str, str] = dict(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError("E141", f"{folder / INDEX} cannot be read: {error}", "fetch the folder again") from error
        elif (folder / SINGLE).is_file():
            with safe_open(folder / SINGLE, "pt") as file:
                self.files = dict.fromkeys(file.keys(), SINGLE)
        else:
            message = f"{folder} has neither {SINGLE} nor {INDEX}"
            raise UserError("E130", message, "give the folder of a model of transformers, saved by save_pretrained")
        self.names = sorted(set(self.files.values()))
        for name in self.names:
            if "/" in name or "\\" in name or not (folder / name).is_file():
                raise UserError("E141", f'{INDEX} names "{name}", which is not a file in {folder}', "fetch the folder again")

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        file = self.files[name]
        if file not in self._open:
            self._open[file] = safe_open(self._folder / file, "pt")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        from safetensors import safe_open

        with safe_open(self._folder / self.files[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def below(self, prefix: str) -> dict[str, str]:
        """Name within a module -> name of the tensor, for all tensors of the module."""
        return {name.removeprefix(f"{prefix}."): name for name in self.files if name.startswith(f"{prefix}.")}

    def close(self) -> None:
        """Close the files; what was read stays."""
        self._open.clear()


class Blocks:
    """A causal language model, of which blocks are loaded and freed.

    Args:
        folder: with config.json and safetensors files.
        dtype: of the model; by default that of config.json. What is loaded has the dtype of the files.

    Attributes:
        model: on the meta device, except for what is loaded, and for buffers that its files do not have.
        names: of the blocks, in the order in which they run.
        shards: the files.

    Raises:
        UserError: E130 if files are missing; E121 if the folder is no causal language model that transformers has code for,
            if it is quantized already, or if it has no list of blocks.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        import transformers

        if not (folder / "config.json").is_file():
            message = f"{folder} has no config.json"
            raise UserError("E130", message, "give the folder of a model of transformers, saved by save_pretrained")
        try:
            self.config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            auto: Any = transformers.AutoModelForCausalLM
            with _parameters_without_memory():
                given = {} if dtype is None else {"dtype": dtype}
                self.model: Any = auto.from_config(self.config, trust_remote_code=False, **given).eval()
        except Exception as error:
            raise UserError(
                "E121", f"{folder} is no causal language model: {first_line(error)}", "give the folder of one"
            ) from error
        if getattr(self.config, "quantization_config", None) is not None:
            message = f"{folder} is quantized already, as its config.json says"
            raise UserError("E121", message, "give the folder of the model in floating point")
        self.shards = Shards(folder)
        self.names = _names_of_blocks(self.model)

    def block(self, position: int) -> nn.Module:
        """The module of a block."""
        module: nn.Module = self.model.get_submodule(self.names[position])
        return module

    def load(self, position: int) -> nn.Module:
        """Read a block into memory."""
        self._load(self.names[position])
        return self.block(position)

    def free(self, position: int) -> None:
        """Give the memory of a block back."""
        block = self.block(position)
        for module in block.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    def inputs(self, samples: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[Call]]]:
        """For each sample of tokens, (1, length): the input of the first block, (1, length, width), and the calls of all."""
        modules = dict(self.model.named_modules())
        outside = [name for name in self.shards.files if not any(name.startswith(f"{block}.") for block in self.names)]
        for name in outside:
            owner, _, own = name.rpartition(".")
            module = modules.get(owner)  # an output layer may have another name in the files; it is not needed
            if module is not None and own in module._parameters:
                module._parameters[own] = nn.Parameter(self.shards[name], requires_grad=False)
        self.model.tie_weights()
        blocks = {name: self.block(k) for k, name in enumerate(self.names)}
        for tokens in samples:
            with _passed_through(blocks) as calls, torch.no_grad(), contextlib.suppress(EndOfForward):
                self.model(input_ids=tokens, use_cache=False)
            yield calls[0].hidden, calls

    def _load(self, prefix: str) -> None:
        module, found = self.model.get_submodule(prefix), self.shards.below(prefix)
        missing = [name for name, _ in module.named_parameters() if name not in found]
        if missing:
            message = f'"{prefix}.{missing[0]}" is not in the files of the model under this name'
            raise UserError("E140", message, "load and save the model with this version of transformers first")
        for name, source in found.items():
            owner, _, own = name.rpartition(".")
            holder = module.get_submodule(owner)
            if own in holder._parameters:
                holder._parameters[own] = nn.Parameter(self.shards[source].clone(), requires_grad=False)
            elif own in holder._buffers:
                holder._buffers[own] = self.shards[source].clone()


class Call:
    """How a block is called: with its input, and with arguments that do not depend on it."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.named = not args
        self.hidden: Tensor = kwargs["hidden_states"] if self.named else args[0]
        self._args, self._kwargs = args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}

    def of(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The output of a block for another input."""
        given = block(hidden_states=hidden, **self._kwargs) if self.named else block(hidden, *self._args, **self._kwargs)
        found: Tensor = given[0] if isinstance(given, tuple) else given
        return found

    def tensors(self) -> list[Tensor]:
        """The tensors among the other arguments."""
        from torch.utils import _pytree as pytree

        return [leaf for leaf in pytree.tree_leaves((self._args, self._kwargs)) if isinstance(leaf, Tensor)]


@contextmanager
def _passed_through(blocks: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """A context in which blocks return their inputs; the calls are listed, and the forward pass ends before the last one."""
    calls: list[Call] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(Call(args, kwargs))
        if len(calls) == len(blocks):
            raise EndOfForward
        return calls[-1].hidden

    for block in blocks.values():
        block.__dict__["forward"] = forward
    try:
        yield calls
    finally:
        for block in blocks.values():
            del block.__dict__["forward"]


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """A context in which the parameters of new modules are on the meta device; buffers that are computed are not."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _names_of_blocks(model: nn.Module) -> list[str]:
    """The names of the modules in the list of equal modules that holds most parameters."""
    best: tuple[int, list[str]] = 0, []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(part) for part in module}) == 1:
            size = sum(parameter.numel() for parameter in module.parameters())
            best = max(best, (size, [f"{name}.{k}" for k in range(len(module))]), key=lambda pair: pair[0])
    if not best[1]:
        raise UserError("E121", "the model has no list of blocks of one class", "use mirabelle.compress")
    return best[1]
