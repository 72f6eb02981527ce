"""Verify artifacts: run the gates of a finished run, or of a single file, again.

A gate that cannot be checked is reported as "not checked", with the reason.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto, checker
from torch import nn

from mirabelle import artifact
from mirabelle.artifact.reading import file_of, model_of, onnx_of
from mirabelle.errors import UserError
from mirabelle.job.digests import faults_of_run
from mirabelle.job.dry_run import with_model_outputs_as_targets
from mirabelle.job.reopening import origin_of_run, recipe_of_run, steps_of_run
from mirabelle.model.architecture import rounds
from mirabelle.model.state import fingerprint
from mirabelle.numerics.arrays import Array, to_numpy
from mirabelle.recipe.file import RecipeFile
from mirabelle.records.trust import NOT_TRUSTED
from mirabelle.run import files
from mirabelle.run.run import torch_threads
from mirabelle.runtime.drawn_inputs import GivenInput, accepted_inputs, batch_of, sizes_are_known
from mirabelle.runtime.gates import Gate, batches_to_compare, same_bytes, same_tensors, torch_equals_onnx
from mirabelle.runtime.runtime import Runtime, default_runtime, runtime_named
from mirabelle.runtime.seal import is_as_written
from mirabelle.runtime.signature import Value, check_inputs, signature_of
from mirabelle.task.batch import Batch, tensors_of
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training.evaluation import evaluation

Verdict = Literal["passed", "failed", "not checked"]
_NEEDS_CODE = (NOT_TRUSTED, "E106")  # it takes code that only a file names: of a folder that is not trusted, or not imported
_EQUAL = 1e-6  # relative tolerance between two metrics of the same file on the same data


@dataclass(frozen=True)
class Check:
    """The outcome of a gate.

    Args:
        name: of the gate.
        verdict: "passed", "failed" or "not checked".
        detail: what was compared, what differs, or why the gate was not checked.
    """

    name: str
    verdict: Verdict
    detail: str

    def to_data(self) -> dict[str, str]:
        return {"gate": self.name, "verdict": self.verdict, "detail": self.detail}


class _NotCheckedError(Exception):
    """Raised if a gate cannot be checked; the message is the reason."""


def verify_run(
    folder: Path,
    task: Task | None = None,
    data_folder: Path | None = None,
    *,
    trust: bool = False,
    runtime: Runtime | None = None,
) -> list[Check]:
    """Run the gates of a finished run. What takes code that its recipe names is not checked, unless the folder is trusted.

    - torch_onnx: the torch module, loaded from the folder, and `model.onnx` agree on validation samples.
    - packed_unpacked: unpacking `model.mira` gives exactly the bytes of `model.onnx`.
    - saved_loaded: the model in the folder is that of the last step.
    - metric: `model.onnx` has the metric of `report.json` on the test set.
    - digests: every file of the run has the digest with which it was written, and belongs to this run.

    Args:
        folder: of the run.
        task: data for the gates, instead of those of the run.
        data_folder: contains built-in data sets.
        trust: the folder is trusted like a program: what its recipe names may be imported.
        runtime: that is compared with torch; by default ONNX Runtime.

    Raises:
        UserError: E130 if the folder contains no finished run; E131 if the data do not fit the inputs of the model; and the
            errors of reading the recipe.
    """
    file = recipe_of_run(folder, trust=trust)
    if task is not None:
        _check_data(folder / "model.onnx", task)
    data = (lambda: task) if task is not None else (lambda: file.build_task(data_folder))
    with torch_threads(file.decisions.get("threads")):
        return [
            _check("torch_onnx", lambda: _torch_onnx(file, folder, _needed(data), runtime)),
            _check(
                "packed_unpacked",
                lambda: same_bytes(_bytes(folder / "model.onnx"), artifact.unpack(_bytes(folder / "model.mira"))),
            ),
            _check("saved_loaded", lambda: _saved_loaded(file, folder)),
            _check("metric", lambda: _same_metric(folder, _with_targets(file, _needed(data)))),
            _digests(file, folder),
        ]


def _digests(file: RecipeFile, folder: Path) -> Check:
    """Check the digests of all files of a run."""
    faults, unknown = faults_of_run(folder, steps_of_run(file, folder))
    if faults:
        return Check("digests", "failed", "; ".join(faults))
    if unknown:
        return Check("digests", "not checked", f"an earlier version wrote no digests for {', '.join(unknown)}")
    return Check("digests", "passed", "every file is as it was written")


def verify_file(
    path: Path, task: Task | None = None, shapes: Sequence[GivenInput] = (), runtime: Runtime | None = None
) -> list[Check]:
    """Run the gates of an .onnx or .mira file.

    - decoded: the file can be read and unpacked.
    - digest: a file that Mirabelle wrote has the bytes that it wrote, whatever else they compute.
    - valid: the ONNX model passes the checker of the onnx package.
    - outputs: ONNX Runtime runs the model, and its outputs are finite and have the stated shapes.
    - metric, if data are given: the metric on the test set.

    Args:
        path: of the file.
        task: data for the gates; without them, random inputs are used.
        shapes: sizes of random inputs, if the file does not determine them; those that are left out are found by trial.
        runtime: that runs the model; by default ONNX Runtime.

    Raises:
        UserError: E130 if there is no such file; E142 if its version is newer; E143 if it is of another kind; E110 or E111
            if `shapes` do not fit the inputs; E131 if the data do not fit the inputs of the model.
    """
    path = file_of(path)
    try:
        onnx = onnx_of(path)
    except UserError as error:
        if error.code != "E141":
            raise
        names = ("valid", "outputs", "metric") if task is not None else ("valid", "outputs")
        return [Check("decoded", "failed", error.message), *(Check(name, "not checked", "nothing to check") for name in names)]
    model = model_of(onnx)
    if task is not None:
        check_inputs(signature_of(model)[0], _arrays(task))
    if task is None:
        sizes_are_known(signature_of(model)[0], shapes)
    batch = batch_of(signature_of(model)[0])
    given = None if task is None else _batches(task.validation, batch)
    checks = [
        Check("decoded", "passed", f"{len(onnx)} bytes of ONNX"),
        *_as_written(model, onnx),
        _check("valid", lambda: _valid(model)),
        _check("outputs", lambda: _finite_outputs(model, onnx, given, shapes, runtime)),
    ]
    if task is not None and not task.labelled:
        checks.append(Check("metric", "not checked", "the data have no labels"))
    elif task is not None:
        checks.append(_check("metric", lambda: Gate(passed=True, worst=0.0, detail=_metric(onnx, task, batch, runtime)[1])))
    return checks


def _as_written(model: ModelProto, onnx: bytes) -> list[Check]:
    """Check the digest that an exported file carries; nothing for a file that others wrote."""
    found = is_as_written(onnx)
    if found is None and model.producer_name != "mirabelle":
        return []
    words: dict[bool | None, tuple[Verdict, str]] = {
        True: ("passed", "every byte is as it was written"),
        False: ("failed", "the file is damaged, or was changed since it was written"),
        None: ("not checked", "the file carries no digest: an earlier version wrote it"),
    }
    return [Check("digest", *words[found])]


def _check_data(path: Path, task: Task) -> None:
    """Raise E131 if the data do not fit the inputs of the file; a damaged file is left to the gates."""
    try:
        inputs, _ = signature_of(model_of(onnx_of(path)))
    except UserError:
        return
    check_inputs(inputs, _arrays(task))


def _arrays(task: Task) -> list[Array]:
    """The inputs of a few samples, in the order of the inputs of the ONNX model."""
    return [to_numpy(tensor) for tensor in tensors_of(task.example().inputs)]


def _check(name: str, gate: Callable[[], Gate]) -> Check:
    """Run a gate; if it raises an exception, it has failed."""
    try:
        found = gate()
    except _NotCheckedError as reason:
        return Check(name, "not checked", str(reason))
    except UserError as error:
        return Check(name, "not checked" if error.code in _NEEDS_CODE else "failed", _said(error))
    except Exception as error:  # noqa: BLE001 (ONNX Runtime raises its own exceptions)
        return Check(name, "failed", (str(error).strip() or type(error).__name__).splitlines()[0])
    return Check(name, "passed" if found.passed else "failed", found.detail)


def _said(error: UserError) -> str:
    """What is wrong; with what to do about it, if it takes code that only a file names."""
    return f"{error.message}; {error.remedy}" if error.code in _NEEDS_CODE else error.message


def _needed(data: Callable[[], Task]) -> Task:
    try:
        return data()
    except UserError as error:
        raise _NotCheckedError(f"the data are not available: {_said(error)}") from error


def _with_targets(file: RecipeFile, task: Task) -> Task:
    """The task; without labels, outputs of the teacher or of the model before compression are the targets, as in the run."""
    if task.labelled:
        return task
    try:
        return with_model_outputs_as_targets(task, file.build_teacher() or file.build_model())
    except UserError as error:
        raise _NotCheckedError(f"the recipe cannot build the model whose outputs are the targets: {_said(error)}") from error


def _torch_onnx(file: RecipeFile, folder: Path, task: Task, runtime: Runtime | None) -> Gate:
    model = _rebuilt(file, folder)
    batches = batches_to_compare(task.validation)
    return torch_equals_onnx(model, _bytes(folder / "model.onnx"), batches, quantized=rounds(model), runtime=runtime)


def _rebuilt(file: RecipeFile, folder: Path) -> nn.Module:
    """Load the compressed model of the run, with the dense module that its recipe names."""
    try:
        origin = origin_of_run(file, folder)
    except UserError as error:
        raise _NotCheckedError(f"the recipe cannot build the model: {_said(error)}") from error
    try:
        return artifact.load(origin, folder)
    except UserError as error:
        if error.code == "E140" and fingerprint(file.build_model()) != _recorded(folder).get("model"):
            raise _NotCheckedError("the recipe builds another module than at the time of the run") from error
        raise


def _saved_loaded(file: RecipeFile, folder: Path) -> Gate:
    last, _ = steps_of_run(file, folder)[-1]
    if not (last / "model.safetensors").is_file() or not (last / "architecture.json").is_file():
        raise _NotCheckedError(f"{last.relative_to(folder)} does not contain the model of the last step")
    one, other = ({**files.read_json(place / "architecture.json"), "tensors": None} for place in (folder, last))
    if one != other:  # the digests of the tensors apart, which are compared below
        return Gate(passed=False, worst=math.inf, detail=f"architecture.json is not that of {last.relative_to(folder)}")
    return same_tensors(files.read_tensors(last / "model.safetensors")[0], files.read_tensors(folder / "model.safetensors")[0])


def _same_metric(folder: Path, task: Task) -> Gate:
    recorded = _recorded(folder)
    if task.test.digest() != recorded.get("test"):
        raise _NotCheckedError(
            f"the test data differ from those of the run; on these it has {_metric(_bytes(folder / 'model.onnx'), task)[1]}"
        )
    end = files.read_json(folder / "report.json")["end"]
    expected, timed = end["metric"]["value"], end.get("latency_ms") or {}
    try:
        runtime = runtime_named(timed.get("runtime", "onnxruntime"))
        runtime.describe()
    except UserError as error:
        raise _NotCheckedError(f"the metric is that of a runtime which is not here: {error.message}") from error
    given, words = _metric(_bytes(folder / "model.onnx"), task, runtime=runtime)
    difference = abs(given - expected)
    if difference <= _EQUAL * max(1.0, abs(expected)):
        return Gate(passed=True, worst=difference, detail=f"{words}, as in report.json")
    return Gate(passed=False, worst=difference, detail=f"{words}; report.json has {expected:.6g}")


def _metric(onnx: bytes, task: Task, batch: int | None = None, runtime: Runtime | None = None) -> tuple[float, str]:
    """The metric on the test set, by default in ONNX Runtime, as a number and as text."""
    session = (runtime or default_runtime()).load(onnx, torch.get_num_threads())
    data = task.test if batch is None else _batches(task.test, batch)
    judged = evaluation(session, data, task, (task.metric,))
    found = task.metric.measured(judged.scores[0], judged.not_finite)
    return found.value, f"{found.name} {found.value:.6g} ({found.low:.4g} to {found.high:.4g}) on {found.n} test samples"


def _batches(data: Samples, batch: int | None) -> list[Batch]:
    """Batches of validation data; of the given size if the model takes only one batch size."""
    return batches_to_compare(data) if batch is None else [part for part in data.batches(batch) if len(part) == batch]


def _valid(model: ModelProto) -> Gate:
    checker.check_model(model, full_check=True)
    return Gate(passed=True, worst=0.0, detail=f"{len(model.graph.node)} nodes are well-formed")


def _finite_outputs(
    model: ModelProto, onnx: bytes, data: Sequence[Batch] | None, shapes: Sequence[GivenInput], runtime: Runtime | None
) -> Gate:
    """Check that the runtime runs the model on data or random inputs, and that its outputs are finite and as stated."""
    session, count, note = (runtime or default_runtime()).load(onnx, torch.get_num_threads()), 0, ""
    inputs, promised = signature_of(model)
    runs: Iterable[tuple[Mapping[str, Array], Sequence[Any]]]
    if data is None:
        try:
            accepted = accepted_inputs(session, inputs, shapes)
        except UserError as error:
            if sizes_are_known(inputs, shapes):
                raise
            raise _NotCheckedError(f"{error.message}; {error.remedy}") from error
        runs, note = [(accepted.feed, accepted.outputs)], accepted.note
    else:
        feeds = (session.feed(part.inputs) for part in data)
        runs = ((feed, session.run(feed)) for feed in feeds)
    for feed, outputs in runs:
        count += len(next(iter(feed.values()), ()))
        for value, output in zip(promised, outputs, strict=True):
            if fault := _fault(value, output):
                return Gate(passed=False, worst=math.inf, detail=fault)
    return Gate(passed=True, worst=0.0, detail=f"finite and of the stated shape on {count} samples{note}")


def _fault(value: Value, output: Any) -> str:
    """What is wrong with an output; "" if nothing is."""
    if not isinstance(output, np.ndarray):
        return ""  # sequences and maps have no shape
    if value.sizes is not None:
        fits = len(value.sizes) == output.ndim and all(
            size == given for size, given in zip(value.sizes, output.shape, strict=True) if isinstance(size, int)
        )
        if not fits:
            return f'output "{value.name}" has shape {output.shape}, but the file states {value.sizes}'
    if output.dtype.kind == "f" and not np.isfinite(output).all():
        return f'output "{value.name}" has values that are not finite'
    return ""


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError("E130", f"there is no {path.name}", "restore the file")
    return path.read_bytes()


def _recorded(folder: Path) -> dict[str, Any]:
    """The fingerprints of the run's model and data."""
    recorded: dict[str, Any] = tomllib.loads((folder / "recipe.toml").read_text("utf-8")).get("fingerprint", {})
    return recorded
