"""TensorFlow Model Optimization on the LeNets: prune, cluster and quantize (PCQAT), as its guide combines them.

It runs in an environment of its own, without Mirabelle:

    python -m venv tfmot; tfmot/bin/pip install tensorflow-cpu tf-keras tensorflow-model-optimization
    TF_USE_LEGACY_KERAS=1 tfmot/bin/python benchmarks/tfmot_mnist.py --data-dir DATA [--seeds 3]

Training as usual with Keras, then pruning to a sparsity on a polynomial schedule, weight clustering that keeps the zeros, and
training with simulated int8 that keeps both, each for a few epochs; the best setting by the 5,000 validation images, judged
on the 10,000 test images with the TFLite interpreter. Bytes: the .tflite file after xz -9e, and after gzip -9, by which its
guide measures.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

RESULTS = Path(__file__).with_name("results")
VALIDATION = 5000
SETTINGS = {"LeNet-300-100": ((0.9, 16), (0.95, 16), (0.97, 8)), "LeNet-5": ((0.95, 16), (0.98, 16), (0.99, 4))}
EPOCHS, BATCH = (10, 10, 3, 3), 128  # trained, pruned, clustered, quantized
LIMIT = {"LeNet-300-100": 1.80, "LeNet-5": 0.95}  # percent of errors


def images(folder: Path, kind: str) -> tuple[Any, Any]:
    def read(name: str, skip: int) -> Any:
        return np.frombuffer(gzip.decompress((folder / f"{kind}-{name}-ubyte.gz").read_bytes()), np.uint8, offset=skip)

    return read("images-idx3", 16).reshape(-1, 28, 28, 1).astype(np.float32) / 255, read("labels-idx1", 8).astype(np.int64)


def network(name: str) -> Any:
    layers = keras.layers
    if name == "LeNet-300-100":
        parts = [layers.Flatten(), layers.Dense(300, "relu"), layers.Dense(100, "relu"), layers.Dense(10)]
    else:
        parts = [
            layers.Conv2D(20, 5), layers.MaxPooling2D(), layers.Conv2D(50, 5), layers.MaxPooling2D(), layers.Flatten(),
            layers.Dense(500, "relu"), layers.Dense(10),
        ]  # fmt: skip
    return keras.Sequential([layers.InputLayer((28, 28, 1)), *parts])


def fitted(model: Any, data: Any, epochs: int, rate: float, callbacks: Any = ()) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def compressed(trained: Any, data: Any, sparsity: float, clusters: int) -> bytes:
    """The .tflite file after pruning, clustering and quantization-aware training."""
    steps = -(-len(data[0]) // BATCH) * EPOCHS[1]

    def sparse(layer: Any) -> Any:
        if not layer.get_weights():
            return layer
        least = 2 * clusters / layer.get_weights()[0].size  # a layer needs more weights than clusters
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, min(sparsity, 1 - least), 0, int(0.7 * steps))
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)

    pruned = keras.models.clone_model(trained, clone_function=sparse)
    pruned = fitted(pruned, data, EPOCHS[1], 1e-3, [tfmot.sparsity.keras.UpdatePruningStep()])
    pruned = tfmot.sparsity.keras.strip_pruning(pruned)
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    clustered = cluster.cluster_weights(
        pruned, number_of_clusters=clusters, cluster_centroids_init=start, preserve_sparsity=True
    )
    clustered = tfmot.clustering.keras.strip_clustering(fitted(clustered, data, EPOCHS[2], 3e-4))
    annotated = tfmot.quantization.keras.quantize_annotate_model(clustered)
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
    aware = fitted(tfmot.quantization.keras.quantize_apply(annotated, scheme), data, EPOCHS[3], 3e-4)
    converter = tf.lite.TFLiteConverter.from_keras_model(aware)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def error(file: bytes, data: Any) -> float:
    interpreter = tf.lite.Interpreter(model_content=file, num_threads=1)
    place, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(place, [500, 28, 28, 1])
    interpreter.allocate_tensors()
    wrong = 0
    for start in range(0, len(data[0]), 500):
        interpreter.set_tensor(place, data[0][start : start + 500])
        interpreter.invoke()
        wrong += int((interpreter.get_tensor(out).argmax(1) != data[1][start : start + 500]).sum())
    return 100 * wrong / len(data[0])


def chosen(name: str, seed: int, train: Any, validation: Any, test: Any) -> dict[str, Any]:
    """The smallest setting whose validation error is within the limit, else the one with the smallest error."""
    keras.utils.set_random_seed(seed)
    trained = fitted(network(name), train, EPOCHS[0], 1e-3)
    weights, found = trained.get_weights(), []
    for sparsity, clusters in SETTINGS[name]:
        copy = network(name)
        copy.set_weights(weights)
        file = compressed(copy, train, sparsity, clusters)
        found.append(
            (error(file, validation), len(lzma.compress(file, preset=9 | lzma.PRESET_EXTREME)), file, (sparsity, clusters))
        )
    good = [one for one in found if one[0] <= LIMIT[name]]
    _, size, file, setting = min(good, key=lambda one: one[1]) if good else min(found, key=lambda one: one[0])
    zipped = len(gzip.compress(file, 9))
    return {"seed": seed, "setting": setting, "xz": size, "gzip": zipped, "plain": len(file), "error": error(file, test)}


def remembered(folder: Path, name: str, seed: int, parts: Any) -> dict[str, Any]:
    """One run, from its file in the folder where it was made before."""
    file = folder / f"{name}-{seed}.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(chosen(name, seed, *parts)))
    return dict(json.loads(file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default="runs/tfmot", help="where finished runs are kept")
    options = parser.parse_args()
    pixels, labels = images(Path(options.data_dir) / "mnist", "train")
    order = np.random.default_rng(0).permutation(len(pixels))
    held, kept = order[:VALIDATION], order[VALIDATION:]
    parts = (pixels[kept], labels[kept]), (pixels[held], labels[held]), images(Path(options.data_dir) / "mnist", "t10k")
    runs = [{name: remembered(options.out, name, seed, parts) for name in SETTINGS} for seed in range(options.seeds)]
    found = {name: [one[name] for one in runs] for name in SETTINGS}
    versions = f"tensorflow {tf.__version__}, tensorflow-model-optimization {tfmot.__version__}"
    lines = ["# TensorFlow Model Optimization on MNIST: prune, cluster, quantize", "", "Means over the seeds.", ""]
    lines += [
        "| network | seeds | bytes, xz -9e | gzip -9 | .tflite | error, % | sparsity and clusters |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for name, runs in found.items():
        mean = {key: statistics.mean(one[key] for one in runs) for key in ("xz", "gzip", "plain", "error")}
        settings = ", ".join(f"{one['setting'][0]:.0%} and {one['setting'][1]}" for one in runs)
        sizes = f"{mean['xz']:,.0f} | {mean['gzip']:,.0f} | {mean['plain']:,.0f}"
        lines.append(f"| {name} | {len(runs)} | {sizes} | {mean['error']:.2f} | {settings} |")
    RESULTS.joinpath("tfmot_mnist.json").write_text(json.dumps({"networks": found, "versions": versions}, indent=1))
    RESULTS.joinpath("tfmot_mnist.md").write_text("\n".join([*lines, "", f"`python tfmot_mnist.py`; {versions}.", ""]))


if __name__ == "__main__":
    main()
