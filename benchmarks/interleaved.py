"""Trainings and runs on data in memory, on the CPU, of this checkout against an earlier one: seconds, alternating, and bits.

    git worktree add /tmp/before COMMIT
    python benchmarks/interleaved.py --before /tmp/before [--rounds 7]

train     LeNet-5 on images of MNIST's shape (drawn at random), two epochs of 100 steps in float32.
distill   the same under a cached teacher with soft targets and hints.
run       digits, as the installed package has them: a training, gradual pruning, integers, gates and report.

Each measurement is a process of its own with one thread; the ratio is that of the medians, the interval that of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from conditions import ROOT, write

WAYS = ("train", "distill", "run")


def work(way: str) -> dict[str, Any]:
    """The seconds of the work, and a digest of the weights."""
    import torch

    from mirabelle import Run, Task, Training, compress, prune, quantize
    from mirabelle.model.state import fingerprint
    from mirabelle.objectives import Hint, SoftTargets, TaskLoss
    from mirabelle.sources.datasets.digits import digits
    from mirabelle.sources.zoo import digits_cnn, lenet5
    from mirabelle.training import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    short = Training(epochs=2, batch_size=128, precision="float32", keep="last")
    with tempfile.TemporaryDirectory() as out:
        if way == "run":
            steps = [prune.Weights(sparsity=0.7, schedule="cubic", train=short), quantize.Static()]
            model, task = digits_cnn(), digits()
            decisions = {f"steps/{name}/execution": "float32" for name in ("0-baseline", "1-prune.weights")}
            from mirabelle.job.job import Source

            begin = time.perf_counter()
            found = compress(
                model,
                task,
                steps,
                {"latency": "any", "max_drop": "100pt"},
                out,
                baseline=short,
                source=Source(decisions=decisions),
            ).model
            return {"seconds": time.perf_counter() - begin, "weights": fingerprint(found)}
        generator = torch.Generator().manual_seed(0)
        images, targets = (
            torch.randn(13_000, 1, 28, 28, generator=generator),
            torch.randint(0, 10, (13_000,), generator=generator),
        )
        held = images[12_800:], targets[12_800:]
        task = Task(train=(images[:12_800], targets[:12_800]), validation=held, test=held)
        run = Run(out, seed=0)
        run.journal.decisions["execution"] = "float32"
        objective = None
        if way == "distill":
            task = task.with_teacher(lenet5().eval())
            objective = 0.9 * SoftTargets() + 0.1 * TaskLoss() + 0.01 * Hint()
        model = lenet5()
        begin = time.perf_counter()
        fit(model, task, short, run, objective=objective)
        return {"seconds": time.perf_counter() - begin, "weights": fingerprint(model)}


def measured(way: str, checkout: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--work", way], env=environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def page(found: dict[str, Any]) -> str:
    rows = [
        f"| {way} | ≤ 1.02 | **{one['ratio']:.3f}** ({one['lowest']:.3f} to {one['highest']:.3f}; {one['now']:.2f} s, before {one['before']:.2f} s) | {'the same' if one['same'] else 'others'} |"
        for way, one in found["ways"].items()
    ]
    title = f"# Data in memory on the CPU: now against {found['before']}"
    return "\n".join(
        [title, "", "| | asked | seconds, ratio (25 % to 75 % of the pairs) | weights |", "|---|---|---|---|", *rows, ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        print(json.dumps(work(options.work)))
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=options.before,
        capture_output=True,
        text=True,
        check=True,
    )
    ways: dict[str, Any] = {}
    for way in WAYS:
        pairs = []
        for number in range(options.rounds):
            order = (options.before, ROOT) if number % 2 else (ROOT, options.before)
            own = {place: measured(way, place) for place in order}
            pairs.append((own[options.before], own[ROOT]))
        ratios = sorted(now["seconds"] / before["seconds"] for before, now in pairs)
        low, _, high = statistics.quantiles(ratios, n=4)
        seconds = [statistics.median(one[k]["seconds"] for one in pairs) for k in (0, 1)]
        same = len({one["weights"] for pair in pairs for one in pair}) == 1
        ways[way] = {
            "before": seconds[0], "now": seconds[1], "ratio": seconds[1] / seconds[0], "lowest": low, "highest": high, "same": same,
        }  # fmt: skip
        print(way, ways[way], flush=True)
    found = {"before": commit.stdout.strip(), "ways": ways}
    write("interleaved", found, page(found))


if __name__ == "__main__":
    main()
