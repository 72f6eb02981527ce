"""Files of Mirabelle in other runtimes: ExecuTorch, Core ML's converter and LiteRT (TFLite), each in an environment of its own.

    python benchmarks/other_runtimes.py make PLACE          # in Mirabelle's environment: files, inputs, outputs of ONNX Runtime

    python -m venv et && et/bin/pip install torch==2.13.0 executorch==1.4.1
    et/bin/python benchmarks/other_runtimes.py executorch PLACE

    python -m venv coreml && coreml/bin/pip install torch==2.13.0 coremltools==9.0
    coreml/bin/python benchmarks/other_runtimes.py coreml PLACE

    python -m venv litert && litert/bin/pip install torch==2.13.0 litert-torch==0.10.0
    litert/bin/python benchmarks/other_runtimes.py litert PLACE

    litert/bin/python benchmarks/other_runtimes.py tflite PLACE --model small.pt2      # any program: PLACE/small.tflite, batch 1

    python benchmarks/other_runtimes.py table PLACE         # in Mirabelle's environment: results/other_runtimes.md

Three networks (a perceptron, a residual convolutional network with batch norms and a depthwise convolution, a transformer layer with an
embedding), each in floating point and after every quantizing step. Compared is the largest difference of the outputs for 8 samples, and
for one, relative to the largest output of `model.onnx` in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (8, 1)  # for floating-point convolutions ExecuTorch 1.4.1 plans memory for 15 samples at most
Answers = dict[int, np.ndarray]


def make(place: Path) -> None:
    """For every network and step: NAME.onnx, NAME.pt2, and NAME.npz with inputs and what ONNX Runtime gives."""
    import torch
    from torch import Tensor, nn

    import mirabelle
    from mirabelle import Run, Task, quantize
    from mirabelle.runtime.export import export
    from mirabelle.runtime.program import program_bytes
    from mirabelle.runtime.runtime import default_runtime

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.depthwise, self.depthwise_norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
            self.pointwise, self.pointwise_norm = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.enter(x)).relu()
            branch = self.pointwise_norm(self.pointwise(self.depthwise_norm(self.depthwise(x)).relu()))
            out: Tensor = self.head((x + branch).relu().mean((2, 3)))
            return out

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(100, 32), nn.Linear(32, 5)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(self.table(tokens)).mean(1))
            return out

    torch.manual_seed(0)
    linear = nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    networks = {
        "perceptron": (nn.Sequential(*linear), torch.randn(400, 20)),
        "residual": (Residual(), torch.randn(400, 3, 16, 16)),
        "transformer": (Transformer(), torch.randint(0, 100, (400, 12))),
    }
    steps = {
        "float": None,
        "Static": quantize.Static(),
        "Dynamic": quantize.Dynamic(),
        "Dynamic per tensor": quantize.Dynamic(granularity="tensor"),
        "Weights": quantize.Weights(),
    }
    for name, (network, inputs) in networks.items():
        with torch.no_grad():
            for _ in range(20):  # statistics of the batch norms
                network(inputs[:100])
            targets = network.eval()(inputs).argmax(1)
        task = Task(train=(inputs[:200], targets[:200]), test=(inputs[200:], targets[200:]))
        for told, step in steps.items():
            with tempfile.TemporaryDirectory() as folder:
                model = network if step is None else step(network, task, Run(folder))
            stem = place / f"{name}, {told}"
            onnx = export(model, task.example())
            session = default_runtime().load(onnx, 1)
            answers = {f"out_{count}": session.run(session.feed(inputs[200 : 200 + count]))[0] for count in BATCHES}
            np.savez(stem.with_suffix(".npz"), inputs=inputs[200 : 200 + max(BATCHES)].numpy(), **answers)
            stem.with_suffix(".onnx").write_bytes(onnx)
            program = mirabelle.exported_program(model, inputs[:2], largest_batch=max(BATCHES))
            stem.with_suffix(".pt2").write_bytes(program_bytes(program))


def in_executorch(stem: Path, inputs: np.ndarray, *, delegate: bool) -> tuple[Answers, str]:
    """By the portable kernels of ExecuTorch, or with what its partitioner gives to XNNPACK."""
    import executorch.kernels.quantized  # noqa: F401 (registers the kernels)
    import torch
    import torch.ao.quantization.fx
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.load(stem.with_suffix(".pt2"))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()] if delegate else [])
    file = edge.to_executorch().buffer
    method = Runtime.get().load_program(file).load_method("forward")
    given = torch.from_numpy(inputs)
    answers = {count: method.execute([given[:count].contiguous()])[0].clone().numpy() for count in BATCHES}
    graph = edge.exported_program().graph_module
    inside = [
        node for name, part in graph.named_children() if name.startswith("lowered") for node in part.original_module.graph.nodes
    ]
    told = f"in XNNPACK {_list(_products(inside))}; outside {_list(_products(graph.graph.nodes))}"
    return answers, told if delegate else "portable kernels"


def _products(nodes: Iterable[Any]) -> Counter[str]:
    """How many matrix products and convolutions there are among the nodes, by kind."""
    words = [set(re.findall(r"\w+", str(node.target))) for node in nodes if node.op == "call_function"]
    return Counter(kind for kind in ("convolution", "linear", "addmm", "mm", "bmm") for own in words if kind in own)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def in_core_ml(stem: Path, inputs: np.ndarray) -> tuple[Answers, str]:
    """Converted only: Core ML computes on Apple's systems."""
    del inputs
    import coremltools as ct
    import torch
    import torch.ao.quantization.fx

    program = torch.export.load(stem.with_suffix(".pt2")).run_decompositions({})
    package = ct.convert(program, minimum_deployment_target=ct.target.iOS17)
    (function,) = package._mil_program.functions.values()
    kinds = Counter(operation.op_type for operation in function.operations)
    kept = {kind: kinds[kind] for kind in ("quantize", "dequantize", "constexpr_affine_dequantize") if kinds[kind]}
    return {}, "converted; " + (_list(Counter(kept)) or "no integers")


def in_litert(stem: Path, inputs: np.ndarray) -> tuple[Answers, str]:
    """A .tflite file for one sample, computed by its interpreter with its default delegate."""
    from ai_edge_litert.interpreter import Interpreter

    file = to_tflite(stem.with_suffix(".pt2"), stem.with_suffix(".tflite"))
    interpreter = Interpreter(model_path=str(file))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers = []
    for sample in inputs[: max(BATCHES)]:
        interpreter.set_tensor(given["index"], _coded(sample[None], given))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(result["index"]))
    kinds = Counter(tensor["dtype"].__name__ for tensor in interpreter.get_tensor_details() if tensor["shape"].size > 1)
    told = f"{file.stat().st_size:,} bytes; {kinds['int8']} of {kinds.total()} tensors with axes are int8"
    return {count: np.concatenate(answers[:count]) for count in BATCHES}, told


def _coded(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Values as an input of the interpreter, which may be of int8."""
    scale, zero_point = tensor["quantization"]
    return (
        values.astype(tensor["dtype"])
        if not scale
        else np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)
    )


def to_tflite(program: Path, out: Path) -> Path:
    """Convert a .pt2 file of Mirabelle to a .tflite file for one sample.

    LiteRT's converter expects weights that are quantized in the graph, as torch's own tools leave them; so codes become the numbers
    that they stand for, followed by the same quantization, which gives the same codes again. An input that is rounded first of all
    is then one of int8, with its scale and zero point in the file.
    """
    import litert_torch
    import torch
    import torch.ao.quantization.fx
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    loaded = torch.export.load(program)
    module, operators = loaded.module(), torch.ops.quantized_decomposed
    graph = module.graph
    for node in graph.nodes:
        if node.target is operators.dequantize_per_channel.default:
            stored = [_stored(module, part.target) for part in node.args[:3]]
            name = f"{node.name}_numbers"
            module.register_buffer(name, operators.dequantize_per_channel(*stored, *node.args[3:]))
            with graph.inserting_before(node):
                numbers = graph.get_attr(name)
                codes = graph.call_function(operators.quantize_per_channel.default, (numbers, *node.args[1:]))
            node.replace_input_with(node.args[0], codes)
    module.recompile()
    args, keywords = loaded.example_inputs
    one = [tuple(tensor[:1] for tensor in args), {name: tensor[:1] for name, tensor in keywords.items()}]
    settings = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    litert_torch.convert(module, *one, quant_config=QuantConfig(pt2e_quantizer=settings)).export(str(out))
    return out


def _stored(module: Any, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def table(place: Path) -> None:
    """results/other_runtimes.md: a row for every file, a column for every road."""
    from conditions import write

    parts = [json.loads((place / f"{road}.json").read_text("utf-8")) for road in ROADS]
    found = {(entry["runtime"], entry["file"]): entry for part in parts for entry in part["found"]}
    runtimes, names = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    lines = [f"| file | {' | '.join(runtimes)} |", "|---|" + "---|" * len(runtimes)]
    lines += [f"| {name} | {' | '.join(_cell(found.get((runtime, name))) for runtime in runtimes)} |" for name in names]
    versions = {name: number for part in parts for name, number in part["versions"].items()}
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    page = "# Other runtimes\n\nLargest difference from `model.onnx` in ONNX Runtime, relative to the largest output.\n\n"
    page += "\n".join(lines) + f"\n\nIn environments of their own: {told}.\n"
    write("other_runtimes", {"found": list(found.values()), "environments": versions}, page)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not run"
    if entry["differences"] is None:
        return f"fails: {entry['told']}"
    worst = f"{max(entry['differences']):.0e}; " if entry["differences"] else ""
    return worst + entry["told"]


ROADS: dict[str, dict[str, Callable[..., tuple[Answers, str]]]] = {
    "executorch": {
        "ExecuTorch": lambda *args: in_executorch(*args, delegate=False),
        "ExecuTorch, XNNPACK": lambda *args: in_executorch(*args, delegate=True),
    },
    "coreml": {"Core ML's converter": in_core_ml},
    "litert": {"LiteRT (TFLite)": in_litert},
}


def run(road: str, place: Path) -> None:
    """Every file by a road; what was found is written to ROAD.json."""
    found = []
    for kind, function in ROADS[road].items():
        for stem in sorted(path.with_suffix("") for path in place.glob("*.npz")):
            kept = np.load(stem.with_suffix(".npz"))
            try:
                with _silent():
                    answers, told = function(stem, kept["inputs"])
            except Exception as error:  # noqa: BLE001 (any reason is the finding)
                answers, told = {}, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                worst = None
            else:
                worst = [_difference(answers[count], kept[f"out_{count}"]) for count in BATCHES] if answers else []
            found.append({"runtime": kind, "file": stem.name, "differences": worst, "told": told})
            print(found[-1])
    packages = ("torch", "executorch", "coremltools", "litert-torch", "ai-edge-litert")
    versions = {}
    for package in packages:
        with contextlib.suppress(ModuleNotFoundError):
            versions[package] = version(package)
    (place / f"{road}.json").write_text(json.dumps({"versions": versions, "found": found}, indent=1), "utf-8")


def _difference(given: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(given.astype(np.float64) - expected).max() / np.abs(expected).max())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what converters print, also from C++."""
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            for target, source in zip((1, 2), kept, strict=True):
                os.dup2(source, target)
                os.close(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", *ROADS, "tflite", "table"])
    parser.add_argument("place", type=Path)
    parser.add_argument("--model", type=Path, help="a .pt2 file for tflite")
    options = parser.parse_args()
    options.place.mkdir(parents=True, exist_ok=True)
    if options.what == "make":
        make(options.place)
    elif options.what == "table":
        table(options.place)
    elif options.what == "tflite":
        print(to_tflite(options.model, options.place / options.model.with_suffix(".tflite").name))
    else:
        run(options.what, options.place)


if __name__ == "__main__":
    main()
