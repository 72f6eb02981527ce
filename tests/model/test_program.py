"""What counts as another program: code, what it names, attributes; not comments, docstrings, lines or files."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.program import program_digest, program_of
from mirabelle.records.functions import object_from
from mirabelle.run.code import compared

NET = """
import functools
import torch
from torch import nn
from torch.nn import functional as F
import tools_of_test

SHIFT = 0.5
TABLE = {"a": 1, "b": (2, 3)}
KINDS = frozenset(["one", "two", "three"])

def doubled(x):
    return x * 2

def helper(x):
    return doubled(x) + SHIFT

def decorated(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args) * 1.0
    return inner

class Base(nn.Module):
    factor = 3

    def mix(self, x):
        return x * self.factor

class Net(Base):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.act = nn.LeakyReLU(0.1)
        self.scale = 2.0
        self.squash = torch.tanh
        self.maps = [lambda x: x + 1, lambda x: x + 2]

    @property
    def doubled_scale(self):
        return self.scale * 2

    @decorated
    def last(self, x):
        return F.relu(x)

    def forward(self, x, order=(1, 2)):
        found = helper(self.mix(self.first(x)))
        if "one" in {"one", "two", "three"}:
            found = tools_of_test.shifted(found)
        return self.last(self.squash(found) * self.doubled_scale) + TABLE["a"]

def net():
    torch.manual_seed(0)
    return Net()
"""
TOOLS = """
def shifted(x):
    return x - AMOUNT

def unused(x):
    return x

AMOUNT = 1
"""


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tools_of_test.py").write_text(TOOLS)


def digest_of(folder: Path, text: str = NET, tools: str = TOOLS) -> str:
    sys.modules.pop("tools_of_test", None)
    (folder / "tools_of_test.py").write_text(tools)
    for kept in (folder / "__pycache__").glob("*"):
        kept.unlink()
    (folder / "net.py").write_text(text)
    sys.modules.pop("mirabelle_user_net", None)
    return program_digest(object_from("net.py:net", folder)())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return self.last(", "return -self.last("),
        ("return x * 2", "return x * 2 + 0"),
        ("return x * 2", "return x * 2.0"),
        ("SHIFT = 0.5", "SHIFT = 0.25"),
        ('"b": (2, 3)', '"b": (2, 4)'),
        ("factor = 3", "factor = 4"),
        ("return x * self.factor", "return x + self.factor"),
        ("self.scale = 2.0", "self.scale = 2.5"),
        ("self.scale * 2", "self.scale * 3"),
        ("nn.LeakyReLU(0.1)", "nn.LeakyReLU(0.2)"),
        ("nn.LeakyReLU(0.1)", "nn.ELU(0.1)"),
        ("torch.tanh", "torch.sigmoid"),
        ("F.relu", "F.relu6"),
        ("functional as F", "init as F"),
        ("order=(1, 2)", "order=(1, 3)"),
        ("* 1.0", "* 1.5"),
        ('"two", "three"}', '"two", "four"}'),
        ("lambda x: x + 1, lambda x: x + 2", "lambda x: x + 2, lambda x: x + 1"),
    ],
)
def test_another_program(old: str, new: str, tmp_path: Path) -> None:
    assert old in NET
    before, after = digest_of(tmp_path), digest_of(tmp_path, NET.replace(old, new))
    assert before != after


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def doubled(x):", 'def doubled(x):\n    """Twice."""'),
        ("class Net(Base):", 'class Net(Base):\n    """A net."""'),
        ("    def inner(*args):", '    def inner(*args):\n        """Inner."""'),
        ("def helper(x):", "# a comment\n\n\ndef helper(x):"),
        ("        found = helper(", "        found = (\n            helper)("),
        ("found", "other"),
        ("SHIFT = 0.5", "SHIFT = 0.5\nUNUSED = 3"),
        ("return doubled(x) + SHIFT", "return doubled(x) + SHIFT  # noqa"),
    ],
)
def test_the_same_program(old: str, new: str, tmp_path: Path) -> None:
    assert old in NET
    assert digest_of(tmp_path) == digest_of(tmp_path, NET.replace(old, new))


def test_functions_of_the_users_other_modules_count_if_they_are_named(tmp_path: Path) -> None:
    before = digest_of(tmp_path)
    assert before != digest_of(tmp_path, tools=TOOLS.replace("x - AMOUNT", "x + AMOUNT"))
    assert before != digest_of(tmp_path, tools=TOOLS.replace("AMOUNT = 1", "AMOUNT = 2"))
    assert before == digest_of(tmp_path, tools=TOOLS.replace("return x\n", "return -x\n"))


def test_the_place_of_a_file_does_not_count(tmp_path: Path) -> None:
    before = digest_of(tmp_path)
    (tmp_path / "moved").mkdir()
    sys.modules.pop("tools_of_test", None)
    (tmp_path / "moved" / "net.py").write_text(f"# moved\n{NET}")
    assert before == program_digest(object_from("net.py:net", tmp_path / "moved")())


def test_every_process_gives_the_same_digest(tmp_path: Path) -> None:
    digest_of(tmp_path)
    code = """
        from pathlib import Path
        from mirabelle.model.program import program_digest
        from mirabelle.records.functions import object_from
        print(program_digest(object_from("net.py:net", Path("."))()))
    """
    found = set()
    for seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert found == {digest_of(tmp_path)}


def test_the_part_that_changed_is_named(tmp_path: Path) -> None:
    def parts(text: str) -> Any:
        digest_of(tmp_path, text)
        return program_of({"the model": object_from("net.py:net", tmp_path)()})

    def changed(text: str) -> str:
        with pytest.raises(UserError) as caught:
            compared(tmp_path, [parts(NET)], parts(text))
        return caught.value.message.partition("other code: ")[2]

    changes = {
        "return x * 2": "function doubled",
        "return x * self.factor": "class Base",
        "self.scale * 2": "class Net",
    }
    for code, name in changes.items():
        assert changed(NET.replace(code, f"{code} + 1")) == f"{name} changed since it was started"
    both = "class Net, attribute scale of Net in the model changed since it was started"
    assert changed(NET.replace("scale = 2.0", "scale = 2.5")) == both
    assert compared(tmp_path, [parts(NET)], parts(NET)) == ""


def test_values_outside_of_the_state_count() -> None:
    def net(value: Any, buffer: float = 1.0) -> nn.Module:
        model = nn.Sequential(nn.ReLU())
        model.value = value
        model.register_buffer("kept", torch.tensor(buffer), persistent=False)
        return model

    same = [
        ([1, 2.0], [1, 2.0]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.ones(2), torch.ones(2)),
        (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=0)),
        (object(), object()),
    ]
    other = [
        (1, 1.0),
        (0.0, -0.0),
        (torch.ones(2), torch.zeros(2)),
        (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=1)),
        (nn.ReLU(), nn.ELU()),
        (torch.float32, torch.float64),
    ]
    assert all(program_digest(net(one)) == program_digest(net(two)) for one, two in same)
    assert all(program_digest(net(one)) != program_digest(net(two)) for one, two in other)
    assert program_digest(net(0, 1.0)) != program_digest(net(0, 2.0))


def test_hooks_and_replaced_forwards_count() -> None:
    plain, hooked, replaced = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    assert len({program_digest(one) for one in (plain, hooked, replaced)}) == 3


def test_a_model_that_holds_itself_is_read() -> None:
    model = nn.Sequential(nn.ReLU())
    model.parents = [model]  # type: ignore[assignment]
    assert program_digest(model) == program_digest(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_and_scripted_modules_count_by_their_code() -> None:
    class Net(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.times = times

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.times

    traced = [program_digest(torch.fx.symbolic_trace(Net(times))) for times in (2, 2, 3)]
    assert traced[0] == traced[1] != traced[2]
    scripted = [program_digest(torch.jit.trace(Net(times), torch.ones(2))) for times in (2, 2, 3)]
    assert scripted[0] == scripted[1] != scripted[2]


def test_bert_takes_a_fraction_of_a_second() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 24, "vocab_size": 50}

    def bert(**settings: Any) -> nn.Module:
        return transformers.BertModel(transformers.BertConfig(**sizes, **settings))

    model, begin = bert(), time.perf_counter()
    found = program_digest(model)
    assert time.perf_counter() - begin < 2.0  # 0.05 s on a free machine
    assert found == program_digest(bert()) != program_digest(bert(layer_norm_eps=1e-3))
    assert found != program_digest(bert(hidden_act="relu"))
