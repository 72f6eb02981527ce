"""Weights of MiniLM in few bits: accuracy on SST-2 by method and bits, bytes of the files, and the time of both kernels.

    python benchmarks/speed_weights.py --run RUN --data-dir DATA [--held-out 5000] [--weights FILE] [--no-times]

RUN is the folder of a run that has fine-tuned MiniLM on SST-2 (steps/0-baseline). Each form is made by `quantize.Weights` in groups of
128, and judged on the dev set and on training sentences that the fine-tuning has not seen: by accuracy, by the share of sentences
that get the class that the fine-tuned model gives, and by the divergence KL(p ‖ q) of its probabilities p. Differences are paired.
Times are medians of CPU time of interleaved calls in ONNX Runtime with one thread, of sentences of 32 tokens.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conditions import write
from mirabelle import Run, Task, artifact, quantize
from mirabelle.artifact.mira import pack
from mirabelle.model.architecture import replaced_modules
from mirabelle.model.state import copied
from mirabelle.numerics.statistics import Scores
from mirabelle.recipe.file import read_recipe
from mirabelle.run import files
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources import task_from
from mirabelle.task.batch import call
from mirabelle.task.metric import Metric
from mirabelle.task.samples import Samples

ACCURACY = Metric.of("accuracy")
LAYERS = {"exclude": ("*embeddings*",)}
FORMS: dict[str, dict[str, Any]] = {
    "nearest, 4 bits": {"weight_bits": 4},
    "GPTQ, 4 bits": {"weight_bits": 4, "method": "gptq"},
    "AWQ, 4 bits": {"weight_bits": 4, "method": "awq"},
    "nearest, 4 bits, embeddings, too": {"weight_bits": 4, "exclude": ()},
    "nearest, 3 bits": {"weight_bits": 3},
    "GPTQ, 3 bits": {"weight_bits": 3, "method": "gptq"},
    "AWQ, 3 bits": {"weight_bits": 3, "method": "awq"},
    "nearest, 3 bits, whole ranges": {"weight_bits": 3, "clipping": False},
    "GPTQ, 3 bits, whole ranges": {"weight_bits": 3, "clipping": False, "method": "gptq"},
    "nearest, 2 bits": {"weight_bits": 2},
    "GPTQ, 2 bits": {"weight_bits": 2, "method": "gptq"},
}
TOKENS, BLOCKS = 32, 30
KEYS = ("accuracy", "same", "divergence")


def judges(recipe: Path, data: Path, held_out: int) -> tuple[nn.Module, Task, dict[str, Samples]]:
    """The network as it was before training, its task, and the samples that judge."""
    file = read_recipe(recipe)
    arguments = dict(file.task.arguments)
    used = arguments.pop("samples")
    whole = task_from(file.task.data, arguments, data_folder=data, folder=file.folder)
    assert isinstance(whole.train, Samples), "files lie in memory"
    drawn = whole.train.drawn(used + held_out, int(arguments.get("seed", 0)))  # of which the run took the first
    rest = drawn.at(torch.arange(min(used, len(drawn) - held_out), len(drawn)))
    return file.build_model(), whole, {"dev": whole.test, "held out": Samples(rest.inputs, rest.targets)}


def plain(model: nn.Module, dense: nn.Module) -> nn.Module:
    """The dense module with the values of the codes, which computes the same and is judged faster."""
    found = copied(dense)
    with torch.no_grad():
        for name, layer in replaced_modules(model).items():
            for key, value in layer.plain_tensors().items():
                getattr(found.get_submodule(name), key).copy_(value)
    return found


def logarithms(model: nn.Module, sets: dict[str, Samples]) -> torch.Tensor:
    """The logarithms of the probabilities for all samples, (samples, classes)."""
    with torch.inference_mode():
        parts = [call(model.eval(), batch.inputs) for samples in sets.values() for batch in samples.batches(100)]
    return torch.cat(parts).float().log_softmax(1)


def compared(before: Scores, after: Scores) -> dict[str, float]:
    difference, low, high = ACCURACY.difference(before, after)
    return {"difference": difference, "low": low, "high": high}


def times(files_of: dict[str, bytes], inputs: Any) -> dict[str, float]:
    """CPU milliseconds of a call, interleaved; the median."""
    sessions = {name: default_runtime().load(file, 1) for name, file in files_of.items()}
    found: dict[str, list[float]] = {name: [] for name in files_of}
    for block in range(BLOCKS + 2):
        for name, session in list(sessions.items())[:: 1 if block % 2 else -1]:
            feed, began = session.feed(inputs), time.process_time()
            session.run(feed)
            if block > 1:
                found[name].append(1e3 * (time.process_time() - began))
    return {name: float(np.median(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, help="instead of that of the run")
    parser.add_argument("--weights", type=Path, help="a state dict, instead of steps/0-baseline of the run")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--no-times", action="store_true")
    given = parser.parse_args()
    net, task, sets = judges(
        given.run / "recipe.toml" if given.recipe is None else given.recipe, given.data_dir, given.held_out
    )
    if given.weights is None:
        dense = artifact.load(net, given.run / "steps" / "0-baseline").eval()
    else:
        dense = net.eval()
        dense.load_state_dict(files.read_tensors(given.weights)[0])

    targets = torch.cat([samples.targets for samples in sets.values()])
    teacher = logarithms(dense, sets)

    def scores(model: nn.Module) -> dict[str, Scores]:
        own = logarithms(model, sets)
        return {
            "accuracy": (own.argmax(1) == targets).double().numpy(),
            "same": (own.argmax(1) == teacher.argmax(1)).double().numpy(),
            "divergence": (teacher.exp() * (teacher - own)).sum(1).double().numpy(),
        }

    start = scores(dense)["accuracy"]
    onnx = {"float": export(dense, task.example())}
    found: dict[str, Any] = {"start": {"accuracy": ACCURACY.value(start), "onnx": len(onnx["float"]), "n": len(start)}}
    print(found, flush=True)
    known: dict[str, dict[str, Scores]] = {}
    for name in given.forms:
        step = quantize.Weights(**{"group_size": 128, **LAYERS, **FORMS[name]})
        with tempfile.TemporaryDirectory() as place:
            model = step(dense, task, Run(place))
        known[name] = scores(plain(model, dense))
        file = export(model, task.example())
        found[name] = {
            **{key: float(values.mean()) for key, values in known[name].items()},
            **compared(start, known[name]["accuracy"]), "onnx": len(file), "mira": len(pack(file)),
        }  # fmt: skip
        print(name, found[name], flush=True)
        if name == "nearest, 4 bits":
            onnx["codes decoded at loading"] = file
            kernel = quantize.Weights(**{"group_size": 128, **LAYERS, **FORMS[name], "kernel": "MatMulNBits"})
            with tempfile.TemporaryDirectory() as place:
                onnx["MatMulNBits"] = export(kernel(dense, task, Run(place)), task.example())
    pairs = [name for name in known if name.startswith("GPTQ") and name.replace("GPTQ", "nearest") in known]
    gains = {
        name.removeprefix("GPTQ, "): {
            key: compared(known[name.replace("GPTQ", "nearest")][key], known[name][key]) for key in KEYS
        }
        for name in pairs
    }
    measured = {} if given.no_times else {str(batch): times(onnx, task.test.first(batch).inputs) for batch in (1, 32)}
    rows = [
        f"| {name} | {one['accuracy']:.2%} | {100 * one['difference']:+.2f} ({100 * one['low']:+.2f} to {100 * one['high']:+.2f}) | "
        f"{one['same']:.2%} | {one['divergence']:.4f} | {one['onnx'] / 1e6:.1f} MB | {one['mira'] / 1e6:.1f} MB |"
        for name, one in found.items() if "mira" in one
    ]  # fmt: skip
    page = ["# Weights of MiniLM in few bits, SST-2", "", __doc__.split("\n\n")[-1].strip(), ""]
    page += [
        f"Fine-tuned in float32: {found['start']['accuracy']:.2%} of {len(start):,} sentences, {len(onnx['float']) / 1e6:.1f} MB.",
        "",
    ]
    page += [
        "| form | accuracy | points, 95 % interval | same class | divergence | model.onnx | model.mira |",
        "|---|--:|--:|--:|--:|--:|--:|", *rows, "",
    ]  # fmt: skip
    for bits, one in gains.items():
        points = {
            key: f"{100 * part['difference']:+.2f} points ({100 * part['low']:+.2f} to {100 * part['high']:+.2f})"
            for key, part in one.items()
        }
        less = one["divergence"]
        page += [
            f"GPTQ against the nearest codes, {bits}: accuracy {points['accuracy']}, same class {points['same']}, divergence "
            f"{less['difference']:+.4f} ({less['low']:+.4f} to {less['high']:+.4f}).", "",
        ]  # fmt: skip
    for batch, one in measured.items():
        ratios = ", ".join(f"{name} {value / one['float']:.2f}" for name, value in one.items() if name != "float")
        page += [f"Time at batch {batch} against float32 ({one['float']:.2f} ms): {ratios}.", ""]
    page += [f"Load of the machine meanwhile: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores.", ""]
    write("speed_weights", {"forms": found, "gains": gains, "times": measured}, "\n".join(page))


if __name__ == "__main__":
    main()
