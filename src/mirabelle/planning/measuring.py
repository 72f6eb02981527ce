"""Measure what a planner needs to know of a model, without labels but for the metric, and without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mirabelle.allocation.amount import Amount
from mirabelle.allocation.limits import Stopwatch
from mirabelle.artifact.mira import pack
from mirabelle.artifact.tensor_costs import costs_of
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters, multiply_accumulates, onnx_file
from mirabelle.model.architecture import architecture_of, replaced_modules
from mirabelle.model.state import fingerprint, tensors_of_module
from mirabelle.planning.draft import fewer_power
from mirabelle.planning.measured import FORMS, NOT_CODED, Form, FormMeasured, Measured, Part
from mirabelle.planning.noise import metrics_by_change
from mirabelle.planning.options import after_fitting, coded_options, counts_of, falling, nearest_to, rising, spread
from mirabelle.prune.channel_plan import ChannelPlan
from mirabelle.prune.recovery import recovered
from mirabelle.quantize.codebook_layer import CodebookLayer
from mirabelle.quantize.output_change import OutputChange
from mirabelle.run import files
from mirabelle.run.files import length_of_tensors
from mirabelle.run.machine import processor_name
from mirabelle.runtime.export_arguments import as_exported
from mirabelle.scores import Hessian, Magnitude

if TYPE_CHECKING:
    from mirabelle.run.run import Run
    from mirabelle.step import Step
    from mirabelle.task.task import Task

TIMED_SECONDS, _TIMED_TRIES = 0.5, 2  # of each measurement, and how often it is repeated if its interval is wide
SAMPLES = 128  # by which changes of outputs are measured
_MOST_CHANGE = 1e6  # for outputs that are not finite: plans need numbers
_TIMED_MULTIPLE = 8  # of units where milliseconds count: kernels take as long for 6 channels as for 8, or longer
_SHARES = (0.12, 0.06, 0.03, 0.015)  # of float32: sizes of all coded weights for which the change is measured
_HEAVY_TABLES = 0.05  # of the parameters
_VERSION = 11  # of what is measured, and how
_TENTH = 0.1  # of the bytes of float32: the size of coded weights with which the rest of a file is measured
_LEFT = (7 / 8, 5 / 8, 3 / 8, 1 / 8)  # of all units, in the cuts by which it is judged how the changes of groups add up
_OF_A_CUT = 0.03  # of float32: the size of the coded weights of a cut model
_AS_IN_STEPS = 1024  # samples of a fit, as in `prune.Channels`
_TIMED_CUT = 3 / 8  # of all units, in the cut whose forms are timed and whose weights are coded
_FITTED = (1 / 4, 5 / 8)  # of the units of a group, in the cuts that are fitted

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What has to be measured for a goal.

    Args:
        coded: whether weights may be coded with few bits, for the size of the packed file.
        timed: whether milliseconds are limited.
        batch: samples in a call that is timed.
    """

    coded: bool
    timed: bool
    batch: int = 1

    def covers(self, other: Wanted) -> bool:
        """Whether all that another goal needs is among what is measured for this one, and measured alike."""
        return self.coded >= other.coded and self.timed == other.timed and (self.batch == other.batch or not self.timed)


def measured(model: nn.Module, task: Task, run: Run, wanted: Wanted, tell: Tell, *, kept: Path) -> Measured:
    """Measure a model, or read from a file what was measured of it before on this machine.

    Args:
        model: trained, in eval mode; it is not changed.
        task: its training samples show inputs, its validation samples the metric.
        run: gives seeds.
        wanted: what the goal needs.
        tell: is given a line on each part of the work.
        kept: the file.

    Raises:
        UserError: E121 if outputs are not finite.
    """
    machine = f"{processor_name()}, {torch.get_num_threads()} threads"
    of = files.digest_of_data([_VERSION, fingerprint(model), task.fingerprint(), machine])
    known = files.read_json(kept) if kept.is_file() else {}
    for_goals = known["for_goals"] if known.get("of") == of else []
    covering = [one for one in for_goals if Wanted(**one["wanted"]).covers(wanted)]
    if covering:
        tell(f"the measurements of {kept} are used")
        best = next((one for one in covering if one["wanted"] == asdict(wanted)), covering[0])
        read = Measured.from_data(best["measured"])
        return read if wanted.coded or not best["wanted"]["coded"] else read.uncoded()
    found = _Measuring(model, task, run, wanted, tell).all()
    kept.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(kept, {"of": of, "for_goals": [*for_goals, {"wanted": asdict(wanted), "measured": found.to_data()}]})
    return found


def quantizing(form: Form, coded_bytes: float, *, embeds: bool = False) -> list[Step]:
    """The steps that give a model this form of numbers.

    Args:
        form: of the numbers.
        coded_bytes: of the weights in the form "coded".
        embeds: whether tables of embeddings are heavy: integers of layers leave them in floating point, so they get 8 bits.
    """
    from mirabelle import quantize

    tables: list[Step] = [quantize.Weights(weight_bits=8)] if embeds else []
    if form == "dynamic":
        return [quantize.Dynamic(), *tables]
    if form == "static":
        return [quantize.Static(), *tables]
    return [quantize.RateDistortion(size=f"{coded_bytes:.0f} B")] if form == "coded" else []


def has_heavy_tables(model: nn.Module) -> bool:
    """Whether tables of embeddings have a twentieth of the parameters or more."""
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    return tables >= _HEAVY_TABLES * max(count_parameters(model)[0], 1)


def stopwatch(model: nn.Module, task: Task, batch: int) -> Stopwatch:
    """Measures milliseconds of models relative to a given one, in less time than where one number decides."""
    return Stopwatch(model, task, batch, seconds=TIMED_SECONDS, tries=_TIMED_TRIES)


def without_codes(onnx: bytes, model: nn.Module) -> float:
    """The bytes of the packed file of a model without the codes and values of its layers with codebooks."""
    packed = pack(onnx)
    layers = [name for name, module in replaced_modules(model).items() if isinstance(module, CodebookLayer)]
    tensors = {tensor.name: tensor.size_bytes for tensor in costs_of(packed).tensors}
    names = {f"{layer}.{tensor}" for layer in as_exported(layers, tensors) for tensor in ("codes", "values", "weight")}
    return len(packed) - sum(size for name, size in tensors.items() if name in names)


def channel_plan(model: nn.Module, task: Task, run: Run) -> ChannelPlan:
    """The groups of units of a model that can be cut, ranked by what removing them does to the layers that read them.

    Raises:
        UserError: as `prune.Channels`.
    """
    try:
        return ChannelPlan(model, task, run, amount=Amount(sparsity=0.0), score=Hessian())
    except UserError as error:
        if error.code not in ("E112", "E131"):
            raise
        return ChannelPlan(model, task, run, amount=Amount(sparsity=0.0), score=Magnitude())


@dataclass
class _Measuring:
    model: nn.Module
    task: Task
    run: Run
    wanted: Wanted
    tell: Tell
    notes: list[str] = field(default_factory=list)
    forms: dict[Form, FormMeasured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.change = OutputChange.drawn(self.model, self.task.train, SAMPLES, self.run.seed_for("damage"))
        self.embeds = has_heavy_tables(self.model)

    def all(self) -> Measured:
        self.tell("the metric, if the outputs change")
        metrics = metrics_by_change(self.model, self.task, self.run.seed_for("noise"))
        self.forms = {form: self._form(form) for form in FORMS}
        parameters = float(count_parameters(self.model)[0])
        macs = float(multiply_accumulates(self.model, self.task.example()))
        known: dict[str, Any] = {
            "forms": self.forms, "parameters": parameters, "macs": macs, "metrics": metrics,
            "embeds": self.embeds,
            "float_bytes": float(length_of_tensors(tensors_of_module(self.model))),
        }  # fmt: skip
        known |= self._units() | self._ranks()
        if self.wanted.coded and not self.forms["coded"].why_not:
            known |= self._codes()
            if known.get("units"):
                known["fewer_power"] = self._fewer_power(Measured(**known))
        return Measured(**known, notes=tuple(self.notes))

    def _form(self, form: Form) -> FormMeasured:
        if form == "coded" and not self.wanted.coded:
            return FormMeasured(why_not=NOT_CODED)
        self.tell(f"the model in the form {form}")
        try:
            model = self._in_form(self.model, form)
            onnx = onnx_file(model, self.task)
            packed = float(len(pack(onnx)))
        except UserError as error:
            if form == "float":
                raise
            self.notes.append(f"no form {form}: {error.errors[0].message}")
            return FormMeasured(why_not=error.errors[0].message)
        milliseconds = self._milliseconds(model) if self.wanted.timed else 0.0
        if form == "coded":  # what its weights take and change is measured for each layer
            return FormMeasured(0.0, without_codes(onnx, model), float(len(onnx)), milliseconds)
        return FormMeasured(self._change_of(model), packed, float(len(onnx)), milliseconds)

    def _in_form(self, model: nn.Module, form: Form) -> nn.Module:
        """A model in a form of numbers; of "coded", levels that are drawn at random, since each layer's are measured alone."""
        coded, run = float(_TENTH * length_of_tensors(tensors_of_module(model))), self.run.within(f"forms/{form}")
        for step in quantizing(form, coded, embeds=self.embeds):
            model = step.preview(model, self.task, run).model if form == "coded" else step(model, self.task, run)
        return model

    def _milliseconds(self, model: nn.Module) -> float:
        """Of a call, measured in alternation with the model in floating point."""
        return self._watch.start_ms if model is self.model else self._watch.start_ms * self._watch.ratio(model).median

    @cached_property
    def _watch(self) -> Stopwatch:
        return stopwatch(self.model, self.task, self.wanted.batch)

    @cached_property
    def _plan(self) -> ChannelPlan:
        return channel_plan(self.model, self.task, self.run.within("units"))

    def _cut(self, parts: Sequence[Part]) -> tuple[list[int], nn.Module]:
        """(the option of each group, the model), for the cut whose forms are timed and whose weights are coded."""
        choice = [int(np.argmin(np.abs(np.array(part.sizes) - _TIMED_CUT))) for part in parts]
        return choice, self._plan.with_counts([int(part.options[k]) for part, k in zip(parts, choice, strict=True)])

    def _change_of(self, model: nn.Module) -> float:
        return min(self.change.of(model), _MOST_CHANGE)

    def _units(self) -> dict[str, Any]:
        """How much each group of units changes the outputs when it is cut and the layers behind it are fitted.

        The fit is made for two cuts of each group; how far it goes differs much between groups, and little between cuts.
        """
        try:
            plan = self._plan
        except UserError as error:
            self.notes.append(f"no channels, neurons or heads can be cut: {error.errors[0].message}")
            return {}
        items = plan.items
        whole = [len(item) for item, _ in items]
        multiple = _TIMED_MULTIPLE if self.wanted.timed else 1
        options = [counts_of(len(item), item.allowed, multiple) for item, _ in items]
        rewriting = self._rewriting(plan, options)
        parts = []
        for place, (item, names) in enumerate(items):
            self.tell(f"units {names[0]} ({place + 1} of {len(items)})")
            own = options[place] if place not in rewriting or len(rewriting) == len(items) else (len(item),)
            changes = {len(item): 0.0}
            fitted: dict[int, float] = {}
            for count in own[:-1]:
                smaller = plan.with_counts([*whole[:place], count, *whole[place + 1 :]])
                changes[count] = self._change_of(smaller)
                if count in nearest_to(own[:-1], [share * len(item) for share in _FITTED]) and changes[count] > 0:
                    fitted[count] = self._change_of(self._fitted(smaller)) / changes[count]
            shares = tuple(count / len(item) for count in own)
            parts.append(Part(names[0], tuple(map(float, own)), falling(after_fitting(own, changes, fitted)), shares))
        found: dict[str, Any] = {
            "units": parts, "parameters_of": plan.parameters_by_name(), "macs_of": plan.macs(),
            "recovered": self._recovered(plan, parts),
        }  # fmt: skip
        if self.wanted.timed:
            self.tell("milliseconds of operators of many widths")
            found["times"] = dict(plan.milliseconds([np.array(part.sizes) for part in parts]))
            cut, smaller = self._cut(parts)
            found |= {"cut": cut, "forms": {form: self._timed_when_cut(form, one, smaller) for form, one in self.forms.items()}}
        return found

    def _rewriting(self, plan: ChannelPlan, options: Sequence[tuple[int, ...]]) -> set[int]:
        """The places of groups whose cut the code of the model does not work with.

        A program would replace the code then, without layers that could be fitted or quantized. Unless all groups are such,
        these keep their units.
        """
        whole = [own[-1] for own in options]
        found = {}
        for place, own in enumerate(options):
            smaller = plan.with_counts([*whole[:place], own[0], *whole[place + 1 :]])
            if (why := architecture_of(smaller).rewritten) and own[0] < own[-1]:
                found[place] = why
        names = [plan.items[place][1][0] for place in found]
        if names and len(names) < len(options):
            self.notes.append(f"{', '.join(names)}: all units stay, as the code of the model has these widths written into it")
        return set(found)

    def _timed_when_cut(self, form: Form, one: FormMeasured, smaller: nn.Module) -> FormMeasured:
        if one.why_not:
            return one
        self.tell(f"milliseconds of a cut model in the form {form}")
        return replace(one, latency_when_cut=self._milliseconds(self._in_form(smaller, form)))

    def _recovered(self, plan: ChannelPlan, parts: Sequence[Part]) -> list[tuple[float, float]]:
        """(sum of the changes of the groups in a cut, change of the whole cut model after it is fitted), for four cuts."""
        pairs = []
        for left in _LEFT:
            self.tell(f"a cut of all groups to {left:.0%} of their units")
            counts = [int(min(part.options, key=lambda one: abs(one - left * part.options[-1]))) for part in parts]
            fitted = self._fitted(plan.with_counts(counts), _AS_IN_STEPS)
            expected = sum(part.changes[part.options.index(count)] for part, count in zip(parts, counts, strict=True))
            pairs.append((expected, self._change_of(fitted)))
        return rising(pairs)

    def _fitted(self, cut: nn.Module, samples: int = SAMPLES) -> nn.Module:
        return recovered("least-squares", self.model, cut, self.task.train, self.run, samples=samples)

    def _ranks(self) -> dict[str, Any]:
        """How much factors of each rank in the place of a layer change the outputs."""
        from mirabelle import factorize
        from mirabelle.factorize.candidate import CandidateTimes
        from mirabelle.factorize.factorizing import with_factors

        parts, times, macs, tables = [], [], [], []
        timer = CandidateTimes(torch.get_num_threads())
        for step in (factorize.Linear(ratio=0.5, method="whitened"), factorize.Embedding(ratio=0.5)):
            try:
                candidates = step.candidates(self.model, self.task, self.run.within("ranks"))
            except UserError as error:
                if error.code != "E112":
                    self.notes.append(f"no low rank: {error.errors[0].message}")
                continue
            for candidate in candidates:
                levels = spread([level for level in candidate.levels(8) if level])
                if not levels:
                    continue
                self.tell(f"ranks of {candidate.name}")
                model = step.opened(self.model, (candidate.name,), ())
                changes = [self._change_of(with_factors(model, [candidate], {candidate.name: level})) for level in levels]
                options = [*levels, ()]
                sizes = [float(candidate.cost(level).parameters) for level in options]
                ranks = tuple(float(level[0]) if level else 0.0 for level in options)
                tables += [candidate.name] if isinstance(step, factorize.Embedding) else []
                parts.append(Part(candidate.name, ranks, falling([*changes, 0.0]), tuple(sizes)))
                macs.append([float(candidate.cost(level).macs) for level in options])
                if self.wanted.timed:
                    times.append(timer([(candidate, level) for level in options]))
        return {"ranks": parts, "tables": tables, "macs_of_ranks": macs, "rank_times": times}

    def _codes(self) -> dict[str, Any]:
        """The bytes of each layer's weight with steps from coarse to fine, and how much they change the outputs."""
        from mirabelle import quantize

        self.tell("bytes and errors of coded weights")
        step = quantize.RateDistortion(size="10%")
        options, pairs = step.survey(self.model, self.task, self.run.within("codes"), _SHARES)
        together = rising([(expected, min(found, _MOST_CHANGE)) for expected, found in pairs])
        codes = [coded_options(name, found) for name, found in options.items()]
        return {"codes": codes, "coded_together": together}

    def _fewer_power(self, found: Measured) -> float:
        """`Measured.fewer_power`, by a cut model whose weights are coded as well."""
        from mirabelle import quantize

        self.tell("bytes and errors of coded weights of a cut model")
        choice, cut = self._cut(found.units)
        step, run = quantize.RateDistortion(size="10%"), self.run.within("codes of a cut")
        try:
            _, pairs = step.survey(self._fitted(cut, _AS_IN_STEPS), self.task, run, (_OF_A_CUT,))
        except UserError as error:  # such as of a program that replaces the code, which has no layers
            self.notes.append(f"no coded weights of a cut model: {error.errors[0].message}")
            return found.fewer_power
        return fewer_power(found, choice, _OF_A_CUT, pairs[0][1]) if pairs else found.fewer_power
