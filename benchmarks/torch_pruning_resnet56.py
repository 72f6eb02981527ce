"""ResNet-56 on CIFAR-10 cut by Torch-Pruning, recovered, judged: the other side of the comparison.

Runs in an environment of its own, which needs torch, numpy, safetensors and torch-pruning (and onnx, onnxscript for --onnx), no more:

    PYTHONPATH=src ENVIRONMENT/bin/python benchmarks/torch_pruning_resnet56.py --weights resnet56.safetensors --data DATA --epochs 20
    PYTHONPATH=src ENVIRONMENT/bin/python benchmarks/torch_pruning_resnet56.py --weights resnet56.safetensors --data DATA --statistics 5000

Cut as its authors' reproduction of this very case does: group norms, ranked over the whole network, the last layer left alone, in
up to 400 steps until multiply-accumulates have fallen by the factor asked for. The shortcuts add channels of zeros on both sides;
version 1.6.1 takes channel k of one stage for channel k of the next, where it lies further on, so that without --within-blocks the
cut model is another one than its scores speak of (training may mend it). Data, split and model are those of Mirabelle's runs,
so that both sides learn from the same 45,000 images; one line of JSON tells what came of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning
from safetensors.torch import load_file
from torch import Tensor, nn

from mirabelle.sources.zoo import resnet56

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_OUT, STEPS, PAD, TEMPERATURE = 5_000, 400, 4, 4.0
BATCH_TO_JUDGE = 500

Split = tuple[Tensor, Tensor]


def split_of(folder: Path, names: list[str]) -> Split:
    """(images, classes) of files of the binary version, scaled."""
    records = np.concatenate([np.fromfile(folder / name, np.uint8).reshape(-1, 3073) for name in names])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)).float().div_(255)
    images.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(DEVIATION)[:, None, None])
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def data_in(folder: Path) -> tuple[Split, Split]:
    """(train, test); 5,000 images are held out of the training data as Mirabelle holds them out."""
    images, targets = split_of(folder, [f"data_batch_{number}.bin" for number in range(1, 6)])
    rest = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[HELD_OUT:]
    return (images[rest], targets[rest]), split_of(folder, ["test_batch.bin"])


def costs_of(model: nn.Module) -> tuple[int, int]:
    """(multiply-accumulates of convolutions and linear layers for one image, parameters)."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], outputs: Tensor) -> None:
        nonlocal total
        del given
        places = outputs[0, 0].numel() if outputs.dim() > 2 else 1
        total += places * module.weight.numel()  # type: ignore[union-attr, operator]  # of the classes hooked below

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [module.register_forward_hook(count) for module in layers]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return total, sum(tensor.numel() for tensor in model.parameters())


def pruned(model: nn.Module, options: argparse.Namespace) -> None:
    """Cut the model in place until it costs `speed_up` times less."""
    ignored: list[nn.Module] = [model.get_submodule("linear")]
    if options.within_blocks:
        ignored += [module for name, module in model.named_modules() if name == "conv1" or name.endswith(".conv2")]
    kinds = {"group_norm": torch_pruning.pruner.GroupNormPruner, "magnitude": torch_pruning.pruner.MetaPruner}
    pruner = kinds[options.method](
        model,
        torch.zeros(1, 3, 32, 32),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=not options.local,
        pruning_ratio=1.0,
        max_pruning_ratio=options.max_ratio,
        iterative_steps=STEPS,
        ignored_layers=ignored,
        round_to=options.round_to,
    )
    whole, _ = costs_of(model)
    for _ in range(STEPS):
        pruner.step()
        if whole / costs_of(model)[0] >= options.speed_up:
            return
    raise SystemExit(f"{STEPS} steps cut multiply-accumulates by {whole / costs_of(model)[0]:.2f} only")


def with_new_statistics(model: nn.Module, images: Tensor) -> None:
    """Means and variances of BatchNorm over the images, in place; no weight changes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
    model.train()
    with torch.inference_mode():
        for batch in images.split(BATCH_TO_JUDGE):
            model(batch)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Windows of the padded images, half of them mirrored."""
    count, channels, height, width = images.shape
    top, left = torch.randint(2 * PAD + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width)
    rows, columns = torch.arange(height) + top, torch.where(mirrored, columns.flip(0), columns) + left
    places = (rows[:, :, None] * (width + 2 * PAD) + columns[:, None, :]).reshape(count, 1, -1).expand(-1, channels, -1)
    return F.pad(images, (PAD,) * 4).flatten(2).gather(2, places).reshape(images.shape)


def recovered(model: nn.Module, teacher: nn.Module, train: Split, options: argparse.Namespace) -> int:
    """Train the cut model in place; the steps done."""
    images, targets = train
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, weight_decay=5e-4)
    an_epoch = len(images) // options.batch
    total = min(options.steps or options.epochs * an_epoch, options.epochs * an_epoch)
    generator, begin = torch.Generator().manual_seed(options.seed), time.monotonic()
    order = torch.randperm(len(images), generator=generator)
    for step in range(total):
        spent = (time.monotonic() - begin) / (60 * options.minutes) if options.minutes else 0.0
        if spent >= 1:
            return step
        done = max(step / total, spent)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 + np.cos(np.pi * done)) / 2
        place = step % an_epoch
        if place == 0:
            order = torch.randperm(len(images), generator=generator)
        index = order[place * options.batch : (place + 1) * options.batch]
        batch = augmented(images[index], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch).float()
        loss = F.cross_entropy(outputs, targets[index])
        if options.alpha:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                guide = teacher(batch).float()
            soft = F.kl_div(
                F.log_softmax(outputs / TEMPERATURE, 1), F.log_softmax(guide / TEMPERATURE, 1), log_target=True, reduction="batchmean"
            )  # fmt: skip
            loss = options.alpha * TEMPERATURE**2 * soft + (1 - options.alpha) * loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return total


def accuracy(model: nn.Module, test: Split) -> float:
    """Share of images whose class is found, in float32."""
    with torch.inference_mode():
        found = torch.cat([model.eval()(batch).argmax(1) for batch in test[0].split(BATCH_TO_JUDGE)])
    return float((found == test[1]).float().mean())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, required=True, help="of the dense model, as benchmarks/cifar_weights.py writes them"
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-bin")
    parser.add_argument("--speed-up", type=float, default=2.1, help="multiply-accumulates before, over those after")
    parser.add_argument("--method", choices=("group_norm", "magnitude"), default="group_norm")
    parser.add_argument("--local", action="store_true", help="the same share of every layer, instead of a ranking over all")
    parser.add_argument("--max-ratio", type=float, default=1.0, help="the largest share cut from one layer")
    parser.add_argument("--round-to", type=int, help="widths become multiples of it")
    parser.add_argument(
        "--within-blocks", action="store_true", help="cut only the channels between the convolutions of a block"
    )
    parser.add_argument(
        "--statistics", type=int, default=0, help="re-estimate BatchNorm over so many images, before any training"
    )
    parser.add_argument("--epochs", type=int, default=0, help="of training after the cut")
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--minutes", type=float, help="stop, and let the learning rate reach its end, after so many")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=0.0, help="weight of the dense model's softened outputs in the loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="the cut model, as torch saves modules")
    parser.add_argument("--onnx", type=Path, help="the cut model, to measure its latency")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    model = resnet56()
    model.load_state_dict(load_file(options.weights))
    train, test = data_in(options.data)
    dense, before = copy.deepcopy(model).eval(), costs_of(model)
    begin = time.monotonic()
    pruned(model, options)
    seconds = {"prune": time.monotonic() - begin}
    after = costs_of(model)
    if options.statistics:
        begin = time.monotonic()
        drawn = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(options.seed))[: options.statistics]
        with_new_statistics(model, train[0][drawn])
        seconds["statistics"] = time.monotonic() - begin
    begin = time.monotonic()
    steps = recovered(model, dense, train, options) if options.epochs else 0
    seconds["train"] = time.monotonic() - begin
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    if options.save:
        torch.save(model, options.save)
    if options.onnx:
        torch.onnx.export(model, (torch.zeros(1, 3, 32, 32),), options.onnx, input_names=["images"], output_names=["outputs"])
    told = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}  # settings, not places
    found = {
        "torch_pruning": version("torch-pruning"), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "macs": [before[0], after[0]], "macs_ratio": before[0] / after[0], "parameters": [before[1], after[1]],
        "widths": {name: layer.out_channels for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)},
        "steps": steps, "seconds": seconds, "test_accuracy": accuracy(model, test), "options": told,
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
