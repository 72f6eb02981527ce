"""Which layers of a static quantization stay in floating point, because their quantization changes the outputs most."""

from __future__ import annotations

import bisect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.quantize.output_change import OutputChange, standing_in
from mirabelle.quantize.static_plan import Make, Planner
from mirabelle.run.run import Run
from mirabelle.task.task import Task

MEASURED = 128  # most calibration samples on which changes are measured


@dataclass(frozen=True)
class Floating:
    """The layers and values that stay in floating point.

    Args:
        damages: name of each -> the change of the outputs if it alone is quantized.
        before: the change of the outputs if everything is quantized.
        after: the change without these.
    """

    damages: Mapping[str, float] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0

    def reasons(self, limit: float) -> dict[str, str]:
        """Name of each -> why it stays in floating point."""
        return {
            name: f"its quantization alone changes the outputs by {damage:.2g}; max_damage is {limit:g}"
            for name, damage in self.damages.items()
        }

    def notes(self, limit: float) -> tuple[str, ...]:
        """Sentences on what was left, and by how much each part hurt."""
        if not self.damages:
            return (f"the outputs change by {self.before:.2g} of their spread, within max_damage = {limit:g}",)
        left = ", ".join(f"{name} ({damage:.2g})" for name, damage in self.damages.items())
        whole = f"quantized as a whole, the outputs change by {self.before:.2g} of their spread"
        return (
            f"{whole}; with {len(self.damages)} parts in floating point by {self.after:.2g}, max_damage is {limit:g}",
            f"in floating point stay, with the change of the outputs if each alone is quantized: {left}",
        )


def floating_within(
    limit: float, planner: Planner, make: Make, task: Task, run: Run, *, samples: int, preview: bool = False
) -> Floating:
    """Leave the parts that hurt most in floating point, so that the outputs change no more than the limit.

    The damage of a layer, or of a rounded value between layers, is the change of the outputs (`OutputChange`) if it alone is
    quantized; then the layer's output is rounded, too, where its kernel needs that. The parts are left in the order of their
    damage; how many is found by halving the interval, and each time the change of the whole model is measured. Layers that
    share a weight are one part.

    Args:
        limit: of the change of the outputs.
        planner: plans the integer forms.
        make: makes the model of a plan.
        task: its training samples are used.
        run: records the decision, which a resumed run repeats.
        samples: number of samples on which changes are measured.
        preview: record nothing, and accept a limit that was not met on few samples.

    Raises:
        UserError: E114 if the limit is not met with a single layer; E121 if outputs are not finite.
    """
    search = _Search(limit, planner, make, CalibrationSamples.drawn(task.train, samples, run.seed_for("damage")), run)
    if preview:
        return search.found()

    def measured() -> str:
        found = search.found()
        if found.after > limit:
            message = (
                f"max_damage = {limit:g} cannot be met: with a single layer quantized the outputs change by {found.after:.2g}"
            )
            raise UserError("E114", message, "raise max_damage, or leave out this step", path=("max_damage",))
        return json.dumps({"floating": dict(found.damages), "before": found.before, "after": found.after})

    known = json.loads(run.decide("floating", measured))
    return Floating(known["floating"], known["before"], known["after"])


class _Search:
    def __init__(self, limit: float, planner: Planner, make: Make, samples: CalibrationSamples, run: Run) -> None:
        self._limit, self._planner, self._make, self._run = limit, planner, make, run
        planner.observe_all()
        self._plan = planner.plan()
        self._change = OutputChange(planner.dense, samples.for_model(planner.dense))

    def found(self) -> Floating:
        before = self._whole(())
        if before <= self._limit:
            return Floating({}, before, before)
        damages = self._damages()
        order = sorted(damages, key=lambda part: -damages[part])
        layers = set(self._plan.selection.layers)
        most = max(k for k, part in enumerate(order) if layers & set(part))  # so that a layer is left
        measured: dict[int, float] = {0: before}

        def within(count: int) -> bool:
            if count not in measured:
                measured[count] = self._whole([name for part in order[:count] for name in part])
            return measured[count] <= self._limit

        count = bisect.bisect_left(range(most), x=True, key=within)
        within(count)
        left = {name: damages[part] for part in order[:count] for name in part}
        return Floating(left, before, measured[count])

    def _whole(self, floating: Sequence[str]) -> float:
        """The change of the outputs if everything but some parts is quantized."""
        return self._change.of(self._make(self._planner.plan(floating)))

    def _damages(self) -> dict[tuple[str, ...], float]:
        """The names of the layers of each part, or the name of its value -> its damage."""
        parts = list(dict.fromkeys(self._plan.selection.group_of(name) for name in self._plan.parts))
        found: dict[tuple[str, ...], float] = {}
        begin = time.monotonic()
        for done, part in enumerate(parts, start=1):
            with standing_in(self._planner.dense, self._alone(part)) as changed:
                found[part] = self._change.of(changed)
            left = (time.monotonic() - begin) / done * (len(parts) - done)
            self._run.progress(done, len(parts), seconds_left=left, text=f"damage of {part[0]} alone")
        return found

    def _alone(self, part: tuple[str, ...]) -> dict[str, nn.Module]:
        """The modules that stand in if a part alone is quantized: layers as without any other layer, a value as with all."""
        others = [name for name in self._plan.coded if name not in part]
        plan = self._planner.plan(others) if part[0] in self._plan.coded else self._plan
        return {name: one for key in part for name, one in plan.form(key, self._planner.dense).items()}
