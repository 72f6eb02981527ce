"""`factorize.Linear`: the optimum of a rank, ranks by every rule, what is left alone, and what later steps do with factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, factorize, load, prune, quantize, save
from mirabelle.errors import UserError
from mirabelle.factorize import LowRankLinear
from mirabelle.inspection.measure import count_parameters, multiply_accumulates
from mirabelle.model.architecture import replaced_module_names
from mirabelle.run.journal import read_events
from mirabelle.sources.models.native import plain_tensors
from mirabelle.testing import check_replacement, check_step


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 2)).eval()


def task_of(inputs: torch.Tensor) -> Task:
    targets = (inputs.reshape(len(inputs), -1)[:, 0] > 0).long()
    return Task(train=(inputs, targets), test=(inputs, targets))


def correlated(count: int = 200, width: int = 24) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw) * 0.2 + 0.5


def step(**settings: Any) -> factorize.Linear:
    return factorize.Linear(**{"keep": "smaller", "multiple": 1, **settings})


def test_ranks_are_given_by_name(tmp_path: Path) -> None:
    dense, task = net(), task_of(correlated())
    small = step(ranks={"0": 5, "2": 7})(dense, task, Run(tmp_path))
    assert [small[place].reduce.out_features for place in (0, 2)] == [5, 7]
    alone = step(ranks={"2": 7})(dense, task, Run(tmp_path))
    assert torch.equal(alone[2].expand.weight, small[2].expand.weight)
    assert type(alone[0]) is nn.Linear
    for ranks, code in (({"9": 3}, "E112"), ({"0": 3, "?": 4}, "E111"), ({}, "E111")):
        with pytest.raises(UserError, match=code):
            step(ranks=ranks)(dense, task, Run(tmp_path))


def test_the_factors_are_those_of_eckart_and_young(tmp_path: Path) -> None:
    dense = net()
    small = step(rank=5)(dense, task_of(correlated()), Run(tmp_path))
    for place in (0, 2):
        values = np.linalg.svd(dense[place].weight.detach().double().numpy(), compute_uv=False)
        error = (dense[place].weight - small[place].expand.weight @ small[place].reduce.weight).detach().square().sum()
        assert float(error) == pytest.approx(float((values[5:] ** 2).sum()), rel=1e-5)
        assert torch.equal(small[place].expand.bias, dense[place].bias)
    assert isinstance(small[4], nn.Linear)


@pytest.mark.parametrize("bias", [True, False])
def test_whitened_factors_have_the_least_error_of_outputs_on_the_data(bias: bool, tmp_path: Path) -> None:
    task, rank = task_of(correlated()), 6
    x = task.train.inputs  # without the validation samples
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(24, 20, bias=bias))
    errors = {}
    for method in ("svd", "whitened"):
        small = step(rank=rank, method=method, samples=len(x))(dense, task, Run(tmp_path / method))
        errors[method] = float((small.double()(x.double()) - dense.double()(x.double())).detach().square().sum()) / len(x)
        dense = dense.float()
    outputs = dense.double()(x.double()).detach().numpy()
    outputs = outputs - outputs.mean(0) if bias else outputs
    # the principal components that are left out, computed on the outputs alone
    due = float(np.linalg.eigvalsh(outputs.T @ outputs / len(x))[: 20 - rank].sum())
    assert errors["whitened"] == pytest.approx(due, rel=1e-4)
    assert errors["whitened"] < 0.8 * errors["svd"]


def test_energy_gives_the_least_rank_that_keeps_it(tmp_path: Path) -> None:
    dense = net()
    small = step(energy=0.5)(dense, task_of(correlated()), Run(tmp_path))
    squares = np.linalg.svd(dense[2].weight.detach().numpy(), compute_uv=False) ** 2
    rank = small[2].settings["rank"]
    assert squares[:rank].sum() >= 0.5 * squares.sum() > squares[: rank - 1].sum()
    assert small[0].settings["rank"] < 16
    rounded = step(energy=0.5, multiple=4)(dense, task_of(correlated()), Run(tmp_path / "rounded"))
    assert rounded[2].settings["rank"] == -(-rank // 4) * 4


@pytest.mark.parametrize(("name", "limit"), [("macs", "70%"), ("parameters", "75%"), ("size", "12 kB")])
def test_a_limit_holds_and_more_does_not_fit(name: str, limit: str, tmp_path: Path) -> None:
    dense, task = net(), task_of(correlated())
    small = step(**{name: limit})(dense, task, Run(tmp_path))
    parameters, macs = count_parameters(dense)[0], multiply_accumulates(dense, task.example())
    most = {"macs": 0.7 * macs, "parameters": 0.75 * parameters, "size": 12_000}[name]
    now = {
        "macs": multiply_accumulates(small, task.example()),
        "parameters": count_parameters(small)[0],
        "size": 4 * count_parameters(small)[0],
    }[name]
    assert 0.9 * most < now <= most


def test_what_is_not_faster_is_left_alone_and_its_times_are_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    small = factorize.Linear(rank=15, multiple=1)(net(), task_of(correlated()), run)  # two calls of a tiny product
    assert not replaced_module_names(small)
    reasons = [part["why"] for event in read_events(tmp_path) if event["event"] == "left alone" for part in event["parts"]]
    assert any(reason.startswith("factors of rank 15 are not faster: 0.0") for reason in reasons)
    assert run.decided("ranks").startswith('{"ranks": {}')


def test_times_decide_the_rank_and_the_decision_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole layer takes 10, a product of rank 16 as long as one of 13, one of rank 14 longer."""
    asked: list[int] = []

    def times(operators: Any, threads: int) -> dict[Any, float]:
        del threads
        asked.append(len(operators))
        found = {48 * 40: 10.0, 48 * 13: 2.0, 13 * 40: 2.0, 48 * 16: 1.9, 16 * 40: 2.0}
        return {operator: found.get(operator.weight[0] * operator.weight[1], 9.0) for operator in operators}

    monkeypatch.setattr("mirabelle.factorize.candidate.milliseconds", times)
    rule = factorize.Linear(ratio=13 / 40, multiple="measured", include=("2",))
    run = Run(tmp_path)
    for _ in range(2):
        small = rule(net(), task_of(correlated()), run)
        assert small[2].settings["rank"] == 16
    assert len(asked) == 2  # once to round, once to compare; the second call of the step reads the decision


@pytest.mark.parametrize("method", ["svd", "whitened"])
def test_it_keeps_the_contract_of_steps(method: str) -> None:
    check_step(step(rank=4, method=method), net(), task_of(correlated()))
    check_step(step(rank=4, method=method, train=Training(steps=2)), net(), task_of(correlated()))


def test_factors_keep_the_contract_of_replaced_modules() -> None:
    dense = nn.Linear(24, 16)
    small = step(rank=3)(dense, task_of(correlated()), Run("runs/unused"))
    assert isinstance(small, LowRankLinear)
    again = nn.Linear(24, 16)
    with torch.no_grad():
        again.weight.copy_(small.plain_tensors()["weight"])
        again.bias.copy_(small.plain_tensors()["bias"])
    check_replacement(small, again, correlated(5))
    torch.testing.assert_close(again(correlated(5)), small(correlated(5)))


@pytest.mark.parametrize(
    "then",
    [
        prune.Channels(sparsity=0.25),
        prune.Weights(sparsity=0.5),
        quantize.Static(samples=50),
        quantize.Dynamic(),
        quantize.Weights(),
    ],
    ids=lambda step: type(step).__name__,
)
def test_later_steps_treat_factors_as_layers(then: Any, tmp_path: Path) -> None:
    x = correlated()
    task = task_of(x)
    factors = step(rank=8)(net(), task, Run(tmp_path / "factors"))
    model = then(factors, task, Run(tmp_path / "then"))
    save(model, tmp_path / "saved")
    back = load(net, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(back(x), model.eval()(x))
        far = (model(x) - factors(x)).abs().max() / factors(x).abs().max()
    assert float(far) < (0.15 if then.stage == "quantize" else 1.5)  # random weights: outputs are sums that nearly cancel
    if then.stage == "quantize":
        assert {"0.reduce", "0.expand", "2.reduce", "2.expand", "4"} <= {*replaced_module_names(model)}
        assert plain_tensors(model)["2.weight"].shape == (40, 48)
    elif isinstance(then, prune.Channels):
        assert (model[2].reduce.out_features, model[2].in_features) == (6, 36)
        assert multiply_accumulates(model, task.example()) < multiply_accumulates(factors, task.example())


def test_the_linear_layer_of_gpt_2_is_factorized_and_written_back_in_its_layout(tmp_path: Path) -> None:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(20, 24)
    small = step(rank=10)(nn.Sequential(layer), task_of(correlated()), Run(tmp_path))
    exact = torch.linalg.svdvals(layer.weight.detach().double())[10:].square().sum()
    assert small[0].plain_tensors()["weight"].shape == (24, 20)
    error = (small[0].plain_tensors()["weight"] - layer.weight).detach().square().sum()
    assert float(error) == pytest.approx(float(exact), rel=1e-4)


class Shared(nn.Module):
    """One layer that is called twice, two that share a weight, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.other = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.other.weight, self.unused = self.one.weight, nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.one(self.twice(self.twice(x).relu())).relu())


def test_shared_layers_stay_shared_and_tied_weights_are_left_alone(tmp_path: Path) -> None:
    model, task = Shared(), task_of(correlated())
    preview = step(rank=4).preview(model, task, Run(tmp_path))
    assert replaced_module_names(preview.model) == ["twice"]
    told = " ".join(preview.description)
    assert "it shares its weight with one" in told
    assert "unused.weight" in told
    assert "the model does not call it" in told
    assert multiply_accumulates(preview.model, task.example()) == 2 * 4 * 48 + 2 * 24 * 24


MISTAKES = [
    ({"rank": 41}, "E110", r"rank = 41 is larger than every matrix: the largest full rank is 40 \(2\)"),
    ({"macs": "1%"}, "E114", "the limits cannot be reached"),
    ({"rank": 4, "include": ("7",)}, "E112", "matches nothing"),
]


@pytest.mark.parametrize(("settings", "code", "says"), MISTAKES)
def test_what_cannot_be_is_refused_in_one_line(settings: dict[str, Any], code: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        step(**settings)(net(), task_of(correlated()), Run(tmp_path))
    assert caught.value.code == code


@pytest.mark.parametrize("settings", [{}, {"rank": 3, "energy": 0.5}, {"rank": 3, "macs": "50%"}])
def test_the_rank_is_said_in_exactly_one_way(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"E111.*give one of energy, rank, ratio, ranks, or limits"):
        step(**settings)


def test_constant_inputs_are_left_alone_and_those_that_are_not_finite_refused(tmp_path: Path) -> None:
    constant = torch.ones(50, 24)
    model = net()
    preview = step(rank=4, method="whitened").preview(model, task_of(constant), Run(tmp_path))
    assert not replaced_module_names(preview.model)
    assert "its inputs are the same for all calibration samples" in " ".join(preview.description)
    with torch.no_grad():
        model[0].bias[0] = torch.inf
    with pytest.raises(UserError, match=r'E131.*inputs of layer "2" are not finite'):
        step(rank=4, method="whitened", include=("2",))(model, task_of(correlated()), Run(tmp_path))
    with torch.no_grad():
        model[2].weight[0] = torch.nan
    with pytest.raises(UserError, match=r'E121.*weight of layer "2" is not finite'):
        step(rank=4)(model, task_of(correlated()), Run(tmp_path))


def test_quantized_layers_are_refused_and_factors_are_not_factorized_again(tmp_path: Path) -> None:
    task = task_of(correlated())
    with pytest.raises(UserError, match=r"E105.*a model with quantized layers"):
        step(rank=4)(quantize.Dynamic(exclude=("2",))(net(), task, Run(tmp_path)), task, Run(tmp_path))
    factors = step(rank=4, include=("0",))(net(), task, Run(tmp_path))
    again = step(rank=2).preview(factors, task, Run(tmp_path))
    assert replaced_module_names(again.model) == ["0", "2"]


def test_what_other_frameworks_get_is_the_dense_layer_and_nothing_else(tmp_path: Path) -> None:
    task = task_of(correlated())
    factors = step(rank=6)(net(), task, Run(tmp_path / "factors"))
    coded = quantize.Dynamic(include=("2.reduce",))(factors, task, Run(tmp_path / "coded"))
    for model in (factors, coded):
        again, x = net(), task.test.inputs
        again.load_state_dict(plain_tensors(model))
        with torch.no_grad():
            torch.testing.assert_close(again(x), model.eval()(x), rtol=0.02, atol=0.02)


def test_layers_inside_an_attention_are_factorized_and_one_without_factors_stays_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(24, 2, 32, batch_first=True).eval()
    task = Task(
        train=(torch.randn(30, 4, 24), torch.zeros(30, 4, 24)), test=(torch.randn(8, 4, 24), torch.zeros(8, 4, 24)), loss="mse"
    )
    small = step(rank=6, include=("self_attn.q_proj",))(model, task, Run(tmp_path))
    values = torch.linalg.svdvals(model.self_attn.in_proj_weight[:24].detach().double())[6:]
    factors = small.self_attn.q_proj.plain_tensors()["weight"]
    error = (factors - model.self_attn.in_proj_weight[:24]).detach().double().square().sum()
    assert float(error) == pytest.approx(float(values.square().sum()), rel=1e-4)
    assert multiply_accumulates(model, task.example()) - multiply_accumulates(small, task.example()) == 4 * (24 * 24 - 6 * 48)
    preview = step(rank=20).preview(model, task, Run(tmp_path / "none"))
    assert isinstance(preview.model.self_attn, nn.MultiheadAttention)
    assert "self_attn.v_proj: factors of rank 20 would have 960 weights, the layer has 576" in " ".join(preview.description)
