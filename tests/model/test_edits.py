"""Edits in their order: what was made is made again on a fresh module, whoever made it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, load, prune, quantize, save
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters, weights_of
from mirabelle.model.architecture import Architecture, architecture_of, attach, replace_module, replaced_module_names, replayed
from mirabelle.model.edits import Cut, Replace
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.run import files
from mirabelle.sources.models.native import plain_tensors

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import factories  # noqa: E402  # beside the folders that descend from what it makes

ORIGINS = {
    "pruned-folded-static": factories.normed,
    "cut-twice-dynamic": factories.normed,
    "program-static": factories.written,
    "program-twice-weights": factories.written,
    "dropped-then-cut": factories.residual,
    "cut-then-dropped-token": factories.residual,
    "reused-head-then-cut": factories.wide,
}


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir() if (path / "architecture.json").is_file()))
def test_an_artifact_of_schema_1_loads_and_is_the_same_model_when_it_is_saved_anew(name: str, tmp_path: Path) -> None:
    inputs, expected = factories.images()[0][:8], files.read_tensors(GOLDEN / name / "expected.safetensors")[0]["outputs"]
    for _ in range(2):
        model = load(ORIGINS[name], GOLDEN / name)
        with torch.no_grad():
            torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)  # other kernels round otherwise
        save(model, tmp_path)
        data = files.read_json(tmp_path / "architecture.json")
        assert data["schema"] == 2
        again = load(ORIGINS[name], tmp_path)
        assert architecture_of(again) == architecture_of(model)
        with torch.no_grad():
            assert torch.equal(again(inputs), model(inputs))


class LowRank(Replacement):
    """y = U (V x) + b."""

    def __init__(self, dense: nn.Linear, rank: int) -> None:
        super().__init__({"rank": rank})
        self.v = nn.Linear(dense.in_features, rank, bias=False)
        self.u = nn.Linear(rank, dense.out_features)
        with torch.no_grad():
            u, s, v = torch.linalg.svd(dense.weight)
            self.u.weight.copy_(u[:, :rank] * s[:rank])
            self.v.weight.copy_(v[:rank])
            self.u.bias.copy_(dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.u(self.v(x))

    def plain_tensors(self) -> dict[str, Tensor]:
        return {"weight": self.u.weight @ self.v.weight, "bias": self.u.bias}


class Levels(Replacement):
    """y = step · levels · x: whole numbers under a name that nobody knows."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("levels", torch.zeros(dense.weight.shape, dtype=torch.int16))
        self.register_buffer("step", torch.tensor(0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.step * self.levels).T


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 2))


def two_classes() -> Task:
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Task(train=(x, y), test=(x, y))


def factorized(model: nn.Module, name: str, rank: int = 6) -> nn.Module:
    model = copied(model)
    return replace_module(model, name, LowRank(model.get_submodule(name), rank))


@pytest.mark.parametrize(
    "order",
    [("factorize", "cut"), ("cut", "factorize"), ("cut", "factorize", "cut"), ("factorize", "cut", "quantize"), ("cut", "cut")],
    ids=" then ".join,
)
def test_edits_are_replayed_in_their_order(order: tuple[str, ...], tmp_path: Path) -> None:
    task, model = two_classes(), net().eval()
    for position, what in enumerate(order):
        run = Run(tmp_path / f"run{position}")
        if what == "factorize":
            model = factorized(model, "2")
        elif what == "cut":
            model = prune.Channels(sparsity=0.25)(model, task, run)
        else:
            model = quantize.Static(samples=20)(model, task, run)
    save(model, tmp_path / "saved")
    back = load(net, tmp_path / "saved")
    x = task.test.inputs
    with torch.no_grad():
        assert torch.equal(back(x), model.eval()(x))
    assert architecture_of(back) == architecture_of(model)
    assert count_parameters(back) == count_parameters(model)


def test_a_replaced_module_says_what_counts_and_what_it_is_in_plain_numbers() -> None:
    low = factorized(net(), "2", rank=6)
    assert count_parameters(low)[0] == 8 * 32 + 32 + 6 * (32 + 24) + 24 + 24 * 2 + 2
    plain = plain_tensors(low)
    assert plain["2.weight"].shape == (24, 32)
    torch.testing.assert_close(plain["2.weight"], low[2].u.weight @ low[2].v.weight)
    levels = Levels(nn.Linear(32, 24))
    levels.levels[:6] = 3
    model = replace_module(net(), "2", levels)
    assert count_parameters(model) == (8 * 32 + 32 + 24 * 32 + 24 * 2 + 2, 8 * 32 + 32 + 6 * 32 + 24 * 2 + 2)
    assert list(weights_of(model))[-1] == "2.levels"


@pytest.mark.parametrize("settings", [None, {}])
def test_a_module_that_no_file_could_make_again_is_refused(settings: dict[str, Any] | None) -> None:
    other = nn.Identity()
    if settings is not None:
        other.settings = settings
    with pytest.raises(UserError, match=r'E106.*Identity cannot stand for "2" in a saved model'):
        replace_module(net(), "2", other)


def test_what_stood_below_a_replaced_module_no_longer_counts() -> None:
    model = nn.Sequential(net(), nn.Linear(2, 2))
    model = replace_module(model, "0.2", Levels(model[0][2]))
    model = replace_module(model, "0", prune.Skipped())
    assert replaced_module_names(model) == ["0"]
    assert count_parameters(model)[0] == 2 * 2 + 2


def test_kept_indices_are_composed_over_cuts() -> None:
    first = Architecture().with_edit(Cut.of({"a": {0: [0, 2, 4, 6]}}, {}))
    second = first.with_edit(Cut.of({"a": {0: [1, 3], 1: [0]}}, {}))
    assert second.kept_since(Architecture(), "a", 0, 8) == [2, 6]
    assert second.kept_since(first, "a", 0, 4) == [1, 3]
    assert second.kept_since(first, "b", 0, 3) == [0, 1, 2]


def test_tensors_of_a_replaced_module_are_no_longer_pruned_ones() -> None:
    model = net()
    attach(model, Architecture().with_pruned(["0.weight", "2.weight"]))
    assert architecture_of(factorized(model, "2")).pruned == ("0.weight",)


def test_a_module_of_a_users_own_is_found_only_where_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    record = architecture_of(factorized(net(), "2"))
    assert record.edits == (Replace("2", f"{__name__}:LowRank", {"rank": 6}),)
    assert isinstance(replayed(net(), Architecture.from_data(record.to_data()))[2], LowRank)
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", imported.append)
    for use in ("antigravity:Anything", "./mine.py:LowRank", "this.that:Name"):
        with pytest.raises(UserError, match=r"E106.*module is not imported") as caught:
            replayed(net(), Architecture((Replace("2", use, {}),)))
        assert "a name in a file never imports a module" in caught.value.remedy
    with pytest.raises(UserError, match=r"E141.*is not a replaced module"):
        replayed(net(), Architecture((Replace("2", "os:getcwd", {}),)))
    with pytest.raises(UserError, match=r"E141.*is not a replaced module"):
        replayed(net(), Architecture((Replace("2", "torch.nn:Linear", {}),)))
    assert imported == []


DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({}, "E141"),
    ({"pruned": []}, "E141"),
    ({"pruned": [], "edits": {}}, "E141"),
    ({"pruned": [], "edits": [3]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "model.Cutt"}]}, "E106"),
    ({"pruned": [], "edits": [{"edit": "os.system"}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "model.Cut", "slices": 3}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "model.Cut", "slices": {"x": {"0": "0"}}}]}, "E140"),
    ({"pruned": [], "edits": [{"edit": "model.Cut", "slices": {"0.weight": {"0": "5-99"}}}]}, "E140"),
    ({"pruned": [], "edits": [{"edit": "model.Cut", "slices": {"0.weight": {"0": "x"}}}]}, "E140"),
    ({"pruned": [], "edits": [{"edit": "model.Cut", "attributes": {"0": {"forward": 3}}}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "model.Cut", "attributes": {"7": {"in_features": 3}}}]}, "E140"),
    ({"pruned": [], "edits": [{"edit": "model.Replace", "module": "0"}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "model.Replace", "module": "9", "use": "prune.Skipped"}]}, "E140"),
    ({"pruned": [], "edits": [{"edit": "model.Replace", "module": "0", "use": "prune.Skipped", "settings": {"x": 1}}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "model.Replace", "module": "0", "use": "prune.Weights"}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "graph.Rewrite", "why": "x"}]}, "E141"),
    ({"pruned": [], "edits": [{"edit": "graph.Rewrite", "inputs": {"args": 3}}]}, "E141"),
]


@pytest.mark.parametrize(("data", "code"), DAMAGED)
def test_edits_that_cannot_be_are_refused(mlp: nn.Sequential, data: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        replayed(mlp, Architecture.from_data({"schema": 2, **data}))
    assert caught.value.code == code
