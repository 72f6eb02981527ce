"""Published weights of ResNet-20 and ResNet-56 for CIFAR-10, from a file of torch to the safetensors file that a recipe names.

    python benchmarks/cifar_weights.py resnet56-4bfd9763.th resnet56.safetensors
    python benchmarks/cifar_weights.py resnet56-4bfd9763.th resnet56.safetensors --data-dir DATA

With the data, the accuracy on the 10,000 test images is told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from mirabelle.run import files
from mirabelle.sources import load_weights
from mirabelle.sources.datasets.cifar10 import cifar10
from mirabelle.sources.zoo import resnet20, resnet56
from mirabelle.training import evaluate

_PREFIX = "module."  # of a model that was trained on several devices


def converted(source: Path, target: Path) -> None:
    """Write the tensors of a state dict, without the prefix of its names, with the counters that torch lacked in those days."""
    state = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    tensors = {name.removeprefix(_PREFIX): tensor.contiguous() for name, tensor in state.items()}
    means = [name for name in tensors if name.endswith("running_mean")]
    counters = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in means}
    files.write_tensors(target, tensors | counters)


def model_with(weights: Path) -> nn.Module:
    """The model whose depth the file's tensors tell."""
    deep = any(name.startswith("layer1.3.") for name in files.read_tensors(weights)[0])
    model = resnet56() if deep else resnet20()
    load_weights(model, weights)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a state dict with the names of akamaster/pytorch_resnet_cifar10")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("--data-dir", type=Path, help="the folder that holds CIFAR-10")
    options = parser.parse_args()
    converted(options.source, options.target)
    model = model_with(options.target)
    print(f"{options.target}: {sum(tensor.numel() for tensor in model.parameters()):,} parameters")
    if options.data_dir is not None:
        task = cifar10(options.data_dir)
        for name, data in (("validation", task.validation), ("test", task.test)):
            print(f"{name}: {100 * float(evaluate(model, data, task).mean()):.2f} %")


if __name__ == "__main__":
    main()
