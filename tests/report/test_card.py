"""The metadata of a model card, read as a hub reads it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

import mirabelle
from mirabelle import quantize
from mirabelle.report import Report, read_report
from mirabelle.report.page import card
from sources.test_huggingface import reading, saved

hub = pytest.importorskip("huggingface_hub")


def read(text: str) -> Any:
    """The card as the hub's own package reads it: its metadata, and its results parsed."""
    return hub.ModelCard(text).data


def test_the_card_of_a_run_has_what_was_measured_and_nothing_else(report: Report) -> None:
    data = read(card(report))
    assert data.to_dict().keys() == {"library_name", "tags", "metrics", "model-index"}
    assert data.library_name == "onnx"
    assert data.tags == ["mirabelle", "onnx", "model-compression", "pruning", "quantization"]
    assert data.metrics == ["accuracy"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.metric_name) == ("accuracy", 0.975, "accuracy, 400 test samples")
    assert (result.dataset_name, result.dataset_type, result.dataset_split, result.task_type) == (
        "digits",
        "digits",
        "test",
        "other",
    )
    assert data.model_name == "digits"


def test_what_the_source_says_stands_in_it(report: Report) -> None:
    about = {"license": "apache-2.0", "base_model": "org/bert", "pipeline_tag": "text-classification"}
    data = read(card(dataclasses.replace(report, about=about)))
    assert (data.license, data.base_model, data.pipeline_tag) == tuple(about.values())
    assert data.base_model_relation == "quantized"
    assert data.eval_results[0].task_type == "text-classification"


def test_errors_are_positive_on_hubs_and_what_is_not_finite_is_left_out(report: Report) -> None:
    def with_metric(name: str, value: float) -> Any:
        metric = dataclasses.replace(report.end.metric, name=name, value=value)
        return read(card(dataclasses.replace(report, end=dataclasses.replace(report.end, metric=metric))))

    data = with_metric("negative_squared_error", -2.5)
    assert (data.metrics, data.eval_results[0].metric_value) == (["mse"], 2.5)
    data = with_metric("my metric: of \"mine\"\n# 'x' <b>", 1.5)
    assert data.metrics == ["my metric: of \"mine\" # 'x' <b>"]
    data = with_metric("negative_perplexity", -math.inf)
    assert data.metrics == ["perplexity"]
    assert data.eval_results is None


@pytest.mark.parametrize(
    "name", ["no", "1.0", "- x: y", "---", "{{ x }}", 'it\'s "so"', "日本 \x07\x85\u2028", "😀", "", "null"]
)
def test_names_are_texts_whatever_is_in_them(report: Report, name: str) -> None:
    data = read(card(dataclasses.replace(report, name=name)))
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(name.split()))
    assert data.eval_results[0].dataset_name == (shown or "data")


@pytest.mark.slow
def test_a_run_of_a_folder_of_transformers_keeps_its_licence(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert")
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nbase_model: org/bert\ntags:\n- x\n---\n\n# A model\n"
    )
    secret = tmp_path / "secret"
    secret.write_text("x")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "again.txt").symlink_to(folder / "vocab.txt")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    result = mirabelle.compress(loaded(folder), reading(), [quantize.Dynamic()], out=tmp_path / "run")
    data = hub.ModelCard.load(tmp_path / "run" / "README.md").data
    assert (data.license, data.license_name, data.base_model) == ("other", "mine", "org/bert")
    assert data.pipeline_tag == "text-classification"
    assert data.eval_results[0].metric_value == pytest.approx(result.profile.metric.value)
    assert read_report(tmp_path / "run").about["license"] == "other"
    written = {path.name for path in (tmp_path / "run" / "huggingface").iterdir()}
    assert {"vocab.txt", "again.txt", "README.md"} <= written
    assert not {"notes.txt", "pytorch_model.bin"} & written


def loaded(folder: Path) -> Any:
    from mirabelle.sources import model_from

    return model_from(str(folder), {}, Path())


@pytest.mark.parametrize("text", ["# no metadata\n", "---\nlicense: [a, b]\n---\n", "---\n: : :\n---\n", "\x00"])
def test_a_card_that_says_nothing_gives_nothing(tmp_path: Path, text: str) -> None:
    from mirabelle.job.origins import known_of

    folder = saved(tmp_path / "bert")
    (folder / "README.md").write_text(text)
    assert known_of(reading(), loaded(folder)) == {"pipeline_tag": "text-classification"}
    assert known_of(reading(), loaded(folder), "hf:org/bert@main")["base_model"] == "org/bert"
