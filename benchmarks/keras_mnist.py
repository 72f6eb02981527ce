"""A dense Keras network on MNIST, 95 % of its weights pruned, as a Keras user would do it; judged by plain Keras.

The network is trained by Mirabelle, pruned by the cubic schedule that TFMOT calls PolynomialDecay while the dense network teaches it,
fine-tuned until validation has not got better for `patience` epochs, and written as a `.keras` file. A process of its own, in which
Mirabelle is not imported, loads that file and evaluates it on the 10,000 test images. Needs MIRABELLE_DATA (or --data-dir). Settings
were chosen on the validation images; a run that is there is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
import numpy as np
from keras import layers

import mirabelle
from conditions import ROOT, write
from mirabelle import Training, prune
from mirabelle.sources import task_from

SIZES = {"784–512–512–10": (512, 512), "784–300–100–10": (300, 100)}
REACH, SPARSITY, ANCHOR = 0.98, 0.95, 0.9391
# Pixels from 0 to 1 and channels last, as Keras' examples have them.
PIXELS = {"mean": [0.0], "deviation": [1.0], "layout": "channels-last"}
PLAIN_KERAS = """
import json, sys
import keras, numpy as np

model = keras.models.load_model(sys.argv[1])
model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
test = np.load(sys.argv[2])
_, accuracy = model.evaluate(test["images"], test["labels"], batch_size=500, verbose=0)
kernels = [layer.get_weights()[0] for layer in model.layers if isinstance(layer, keras.layers.Dense)]
zeros, count = sum(int((kernel == 0).sum()) for kernel in kernels), sum(kernel.size for kernel in kernels)
print(json.dumps({"accuracy": accuracy, "zeros": zeros, "weights": count, "mirabelle": "mirabelle" in sys.modules}))
"""


def network(widths: tuple[int, ...], seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    hidden = [part for width in widths for part in (layers.Dense(width, activation="relu"), layers.Dropout(0.2))]
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), *hidden, layers.Dense(10, activation="softmax")])


def settings(epochs: int) -> Training:
    return Training(epochs=epochs, batch_size=128, lr=1e-3, patience=4)


def one_run(widths: tuple[int, ...], seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What plain Keras says of the dense and of the pruned file."""
    model = network(widths, seed)
    task = task_from("mnist", PIXELS, data_folder=options.data_dir, folder=Path())
    # PolynomialDecay(initial_sparsity=0.0, final_sparsity=0.95, begin_step=0, end_step=half of the steps, frequency=100)
    growing = mirabelle.Gradual(begin=0.0, end=0.5, power=3.0, frequency=100)
    step = prune.Weights(sparsity=SPARSITY, schedule=growing, train=settings(options.epochs))
    begin = time.monotonic()
    result = mirabelle.compress(model, task, [step], out=folder, seed=seed, baseline=settings(options.epochs))
    seconds = time.monotonic() - begin
    np.savez(folder / "test.npz", images=task.test.inputs.numpy(), labels=task.test.targets.numpy())
    command = [sys.executable, "-c", PLAIN_KERAS, str(folder / "model.keras"), str(folder / "test.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    with zipfile.ZipFile(folder / "model.keras") as file:
        config = json.loads(file.read("config.json"))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    return {
        "dense": result.start.metric.value,
        "pruned": found["accuracy"],
        "sparsity": found["zeros"] / found["weights"],
        "weights": found["weights"],
        "packed_bytes": result.profile.size_bytes.packed,
        "plain": not found["mirabelle"] and all(layer["module"] == "keras.layers" for layer in config["config"]["layers"]),
        "epochs": sum(event.get("event") == "epoch" for event in events),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20, help="at most, of each of the two trainings")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark-keras-mnist")
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds mnist with --data-dir or MIRABELLE_DATA")
    numbers: dict[str, Any] = {}
    lines = []
    for name, widths in SIZES.items():
        runs = [one_run(widths, seed, options, options.out / f"{'-'.join(map(str, widths))}-{seed}") for seed in options.seeds]
        numbers[name] = {"seeds": options.seeds, "runs": runs, "met": all(run["pruned"] >= REACH for run in runs)}
        pruned, dense = ([run[key] for run in runs] for key in ("pruned", "dense"))
        lines.append(
            f"| {name} | {runs[0]['weights']:,} | {statistics.mean(dense):.2%} | **{statistics.mean(pruned):.2%}** "
            f"({', '.join(f'{value:.2%}' for value in pruned)}) | {min(run['sparsity'] for run in runs):.2%} | "
            f"{statistics.mean(run['packed_bytes'] for run in runs):,.0f} | {statistics.median(run['seconds'] for run in runs):.0f} s | "
            f"{'yes' if numbers[name]['met'] else 'NO'} |"
        )
    plain = all(run["plain"] for known in numbers.values() for run in known["runs"])
    page = "\n".join(
        [
            "# MNIST with a dense Keras network at 95 % sparsity", "",
            "Accuracy on the 10,000 test images, of `model.keras` in plain Keras, in a process that knows nothing of Mirabelle. Asked: at",
            f"least {REACH:.1%}; a published walk-through of this case reports {ANCHOR:.2%}. 55,000 images to train, 5,000 to validate.", "",
            "| network | weights | dense | pruned (each seed) | zeros among weights | packed file, bytes | both trainings, median | reached |",
            "|---|--:|--:|--:|--:|--:|--:|---|", *lines, "",
            f"At most {options.epochs} epochs of training and {options.epochs} of pruning, batches of 128, AdamW at 1e-3; sparsity grows by the cubic",
            "schedule over the first half of the steps, every 100; four epochs without a better validation accuracy end a training. Every layer of",
            f"the files is one of Keras' own: {'yes' if plain else 'NO'}.",
        ]
    )  # fmt: skip
    write("keras_mnist", numbers, page + "\n")


if __name__ == "__main__":
    main()
